"""That the benchmarks of a GPU run, in small and without one: a slip is found before it costs time on a device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kill_tools import HANG

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(name: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / f"bench_gpu_{name}.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "OUT": str(out), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("ops", "'fused SGD, no mask': "),
        ("search", "plain loop, bfloat16, channels_last"),
        ("paper", "50%  D_A, no D_R"),
    ],
)
def test_rehearsal(tmp_path, name, last):
    rehearsed = run(name, tmp_path, "--device", "cpu", "--small")
    assert rehearsed.returncode == 0, rehearsed.stdout + rehearsed.stderr
    assert last in rehearsed.stdout.splitlines()[-1]
    assert not [*tmp_path.iterdir()]  # of a rehearsal nothing is kept


def test_a_cpu_is_for_rehearsals_only(tmp_path):
    refused = run("ops", tmp_path, "--device", "cpu")
    assert refused.returncode == 2
    assert "--device cpu is for rehearsals: add --small" in refused.stderr
