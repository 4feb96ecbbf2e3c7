"""What tests of the command line share."""

import json
from pathlib import Path

from safetensors import safe_open

from amun_ext import cli


def models_forgotten(path: Path) -> list[int]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["forgotten"])


def told(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def forget(original: Path, out: Path, *more: str) -> int:
    return cli.main(["forget", "--model", str(original), "--data", "digits", "--out", str(out), *more])
