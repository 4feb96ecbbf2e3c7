"""The packages and modules of amun_ext import each other one way."""

import ast
import graphlib
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
