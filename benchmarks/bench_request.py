"""What a deletion request costs beside its training: seconds before the first step, and the memory at its peak.

`amun forget` of 100 images, on the 60,000 of Fashion-MNIST (the Debian package dataset-fashion-mnist) and on a folder
of 3,400 drawn images of 128x128. Each command runs in a process of its own; importing the package is not counted. Rows
of other commits stay in the result: to measure one of them, run this file with PYTHONPATH at a checkout of it.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, peak_memory_mib, read, write
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

from amun_ext import cli

CLASSES, TRAIN, TEST, SIZE = 4, 800, 50, 128  # of the folder: classes, images of each in train and test, pixels
FORGET = ["--ids", "0-99", "--epochs", "1", "--lr", "0.01", "--batch-size", "32"]


def measured(command: list[str], whole: bool) -> dict[str, float]:
    """A command in this process, as a whole or to its first step: seconds before that, and the peak of memory."""
    wall, cpu = time.perf_counter(), time.process_time()
    taken: dict[str, float] = {}

    def first_step(*_: object) -> None:
        if not taken:
            taken.update(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)
        if not whole:
            raise Stopped

    register_optimizer_step_pre_hook(first_step)
    with contextlib.suppress(Stopped):
        if cli.main(command):
            sys.exit(1)
    return {**taken, "MiB": peak_memory_mib()}


class Stopped(BaseException):
    """At the first step."""


def in_a_process(*command: str, whole: bool = False) -> dict[str, Any]:
    call = [sys.executable, __file__, *["--whole"] * whole, "--command", json.dumps(command)]
    result: dict[str, Any] = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return result


def draw_folder(root: Path) -> None:
    """Images of noise, as PNG."""
    generator = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("test", TEST)):
        for label in range(CLASSES):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=0)


def request(data: str, place: Path, repeats: int) -> dict[str, Any]:
    """Train for an epoch, then forget, to the first step; of the seconds the median."""
    model = str(place / "original.safetensors")
    how = ["--data", data, "--device", "cpu", "--quiet"]
    small = ["--model", "small-cnn", "--epochs", "1", "--batch-size", "32"]
    trained = in_a_process("train", *how, *small, "--out", model, whole=True)
    forget = ["forget", *how, "--model", model, *FORGET, "--out"]
    runs = [in_a_process(*forget, str(place / f"forgotten-{run}")) for run in range(repeats)]
    seconds = {clock: float(np.median([run[clock] for run in runs])) for clock in ("wall", "cpu")}
    peak = in_a_process(*forget, str(place / "forgotten"), whole=True)["MiB"]
    return {**seconds, "train MiB": trained["MiB"], "forget MiB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--command", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command:
        out, sys.stdout = sys.stdout, sys.stderr
        told = measured(json.loads(options.command), options.whole)
        print(json.dumps(told), file=out)
        return
    result = {key: value for key, value in (read("request") or {}).items() if key != "machine"}
    for data in ("fashion-mnist", "folder"):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "images"
            if data == "folder":
                draw_folder(folder)
            row = request(str(folder) if data == "folder" else data, Path(place), options.repeats)
        result[data] = result.get(data, {}) | {machine()["commit"]: row}
        print(data, row, flush=True)
    write("request", result)


if __name__ == "__main__":
    main()
