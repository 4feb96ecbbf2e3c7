"""What bounds the memory of a search and of a training: the batch size of the one, accumulation steps of the other.

ResNet-18 of width 16 on images of 3x64x64, in memory before. Each number is the most that a process of its own takes
beyond what it had, where freed blocks go back to the system.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from bench_memory import Peak
from common import write
from torch.utils.data import TensorDataset

from amun_ext import find_min_adversarial, models
from amun_ext.models import predict
from amun_ext.training import DataPart, Pass, Recipe, fit

SAMPLES = 128
BATCHES, PIECES = (16, 32, 64, 128), (8, 4, 2, 1)


def measured(kind: str, number: int) -> float:
    """MiB."""
    torch.manual_seed(0)
    model = models.build("resnet18", num_classes=10, in_channels=3, width=16).eval()
    images = torch.rand(SAMPLES, 3, 64, 64)
    labels = predict(model, images[:8]).argmax(1).repeat(SAMPLES // 8)
    works = {
        "search": partial(find_min_adversarial, model, images, labels, method="ddn", steps=2, batch_size=number),
        "training": partial(
            fit,
            model,
            [Pass([DataPart(TensorDataset(images, labels))])],
            Recipe(epochs=1, lr=0.0, batch_size=SAMPLES, accumulation_steps=number),
        ),
    }
    with Peak() as peak:
        works[kind]()
    return peak.most - peak.before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(json.dumps(measured(options.measure[0], int(options.measure[1]))))
        return
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    table: dict[str, Any] = {"search": {}, "training": {}}
    for kind, numbers in (("search", BATCHES), ("training", PIECES)):
        for number in numbers:
            call = [sys.executable, __file__, "--measure", kind, str(number)]
            table[kind][str(number)] = json.loads(subprocess.run(call, env=environment, check=True, stdout=-1).stdout)
    print(table)
    write("micro_batches", {"table": table, "samples": SAMPLES})


if __name__ == "__main__":
    main()
