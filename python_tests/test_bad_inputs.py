"""A part of the campaign of bad inputs (benchmarks/bad_inputs.py), which repeats any of them by its kind and number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and forks as Linux has them")
def test_each_is_refused_in_one_line_or_handled(tmp_path) -> None:
    counted = ["--count", "48", "--processes", "0", "--out", str(tmp_path / "counts.json")]
    made = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bad_inputs.py"), *counted],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)},
        check=False,
    )
    assert made.returncode == 0, made.stdout
    told = json.loads((tmp_path / "counts.json").read_text())
    assert told["total"]["refused"] + told["total"]["handled"] == told["inputs"] == 48
    assert told["total"]["refused"] > 20
    assert told["peak MiB"] - told["MiB before"] < 1024
