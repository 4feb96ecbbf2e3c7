"""A search of 100,000 images of 3x32x32 (1.2 GB) from a memory map into a file: how much memory of its own it takes.

Anonymous memory is what a process cannot give back to the system; pages of mapped files it can. Sampled ten times a
second. The network is linear, with random weights, and the search a short one: memory does not depend on either.
"""

import argparse
import math
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import timed, write
from torch import nn

from amun_ext import find_min_adversarial

SHAPE = (3, 32, 32)


def resident(kind: str) -> float:
    """MiB of this process: RssAnon or RssFile."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


class Peak:
    """The most anonymous memory while it is open."""

    def __enter__(self) -> "Peak":
        self.before = self.most = resident("RssAnon")
        self.closing = threading.Event()
        self.watch = threading.Thread(target=self._watch)
        self.watch.start()
        return self

    def _watch(self) -> None:
        while not self.closing.wait(0.1):
            self.most = max(self.most, resident("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.watch.join()


def images(path: Path, count: int) -> torch.Tensor:
    """Random ones, written without holding them."""
    mapped = np.memmap(path, np.float32, "w+", shape=(count, *SHAPE))
    for start in range(0, count, 1000):
        mapped[start : start + 1000] = torch.rand(min(1000, count - start), *SHAPE).numpy()
    mapped.flush()
    return torch.from_numpy(mapped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    linear = nn.Linear(math.prod(SHAPE), 10)
    linear.bias.data = -0.5 * linear.weight.detach().sum(1)  # all classes meet in the middle of the box
    model = nn.Sequential(nn.Flatten(), linear)
    search: dict[str, Any] = {"method": "deepfool", "steps": 3}
    result: dict[str, Any] = {"samples": options.samples, "shape": SHAPE}
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent.parent / "build") as folder:
        inputs = images(Path(folder) / "images.bin", options.samples)
        with torch.no_grad():
            labels = torch.cat([model(batch).argmax(1) for batch in inputs.split(1000)])
        for name, out in (("into a file", Path(folder) / "found.safetensors"), ("in memory", None)):
            with Peak() as peak:
                found, seconds = timed(lambda out=out: find_min_adversarial(model, inputs, labels, out=out, **search))  # type: ignore[misc]
            result[name] = {
                "MiB before": round(peak.before),
                "MiB at most": round(peak.most),
                "found": float(found.found.float().mean()),
                "seconds": round(seconds["wall"], 1),
            }
            print(name, result[name], flush=True)
    write("memory", result)


if __name__ == "__main__":
    main()
