"""Each command is killed at some of its file-system events and run again (benchmarks/kills.py does it at all)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
COMMANDS = ["train", "forget", "forget --overwrite", "prepare", "forget by distillation", "search", "references"]
COMMANDS += ["shadows", "compare", "tune", "audit"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_differs_after_a_kill(tmp_path: Path, command: str) -> None:
    ended = subprocess.run(
        [sys.executable, BENCHMARKS / "kills.py", command, "--every", "11", "--json", tmp_path / "counts.json"],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads((tmp_path / "counts.json").read_text())[command]
    assert told["kills"] >= 3
