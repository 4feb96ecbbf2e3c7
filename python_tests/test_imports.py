"""The packages and modules of amun_ext import each other one way, and the help of the command line imports no torch."""

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import amun_ext


def test_no_two_packages_need_each_other() -> None:
    root, needs = Path(amun_ext.__file__).parent, defaultdict(set)
    for path in root.rglob("*.py"):
        own = path.relative_to(root).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if own != "__init__" and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("amun_ext"):
                names = [f"amun_ext.{each.name}" for each in node.names] if node.module == "amun_ext" else [node.module]
                needs[own] |= {name.split(".")[1] for name in names} - {own}
    graphlib.TopologicalSorter(needs).prepare()  # CycleError names a circle


def test_help_and_errors_of_arguments_do_not_import_torch() -> None:
    code = """
import contextlib, io, sys, amun_ext
from amun_ext import cli
for arguments in (["--version"], ["--help"], ["audti"], *([name, "--help"] for name in cli.COMMANDS)):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main(arguments)
    assert not {"torch", "numpy"} & {*sys.modules}, arguments
assert "unlearn" in dir(amun_ext)
assert not hasattr(amun_ext, "nothing")
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
