"""What every benchmark shares: facts about the machine, one way to time, one place for results."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from amun_ext.files import write_json
from amun_ext.info import processor, versions

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Where and with what a number was measured."""
    commit = subprocess.run(
        ["git", "-C", RESULTS.parent, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit.stdout.strip() or os.environ.get("COMMIT") or None,  # the variable: where there is no git
        "versions": versions(),
    }


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of `work`, and its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def microseconds(
    works: dict[str, Callable[[], Any]],
    repeats: int,
    calls: int = 10,
    clock: Callable[[], int] = time.process_time_ns,  # of several threads it would give the sum
) -> dict[str, dict[str, float]]:
    """Time per call of each work: median and best over `repeats` of the mean of `calls`.

    Works take turns, so that drift hits all alike; one untimed call before each turn brings its own data back.
    """
    samples: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            work()
            start = clock()
            for _ in range(calls):
                work()
            samples[name].append((clock() - start) / 1000 / calls)
    return {name: {"median": statistics.median(taken), "best": min(taken)} for name, taken in samples.items()}


def peak_memory_mib() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(name: str, result: dict[str, Any]) -> None:
    write_json(RESULTS / f"{name}.json", {"machine": machine(), **result})


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


# ------------------------------------------------------------------------------------------------- benchmarks of a GPU


def gpu_benchmark(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What such a benchmark is asked: where it runs, and whether it is a rehearsal."""
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="a rehearsal in small sizes, which writes nothing")
    options = parser.parse_args()
    if options.device == "cpu" and not options.small:
        parser.error("--device cpu is for rehearsals: add --small")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; a rehearsal needs --device cpu --small")
    return options


def driver() -> str | None:
    """The version of the GPU's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, check=False)
    return told.stdout.strip() or None


def write_gpu(name: str, result: dict[str, Any], options: argparse.Namespace) -> None:
    """Into $OUT, or results/gpu; of a rehearsal nothing."""
    if not options.small:
        where = {**machine(), "driver": driver(), "cuda": torch.version.cuda}
        write_json(Path(os.environ.get("OUT") or RESULTS / "gpu") / f"{name}.json", {"machine": where, **result})
