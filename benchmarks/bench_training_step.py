"""What would faster arithmetic give a training step? python benchmarks/bench_training_step.py

Forward, backward and SGD in plain PyTorch, with every combination of the channels-last layout, bfloat16 autocast and
torch.compile: on the demo's network and a ResNet-18 of width 8, with the batches of the recipes "paper" and "fast". CPU
time on one thread. `fit` has no torch.compile.
"""

import copy
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import microseconds, write
from torch import Tensor, nn

from amun_ext import models
from amun_ext.experiments import demo
from amun_ext.memory import keep_freed_memory
from amun_ext.recipe import RECIPES

NETWORKS = {"demo cnn": (demo.MODEL, None), "resnet18, width 8": ("resnet18", 8)}
CHANGES, REPEATS, CALLS = ("channels_last", "bfloat16", "torch.compile"), 7, 2
PLAIN = "float32"


def stepping(model: nn.Module, images: Tensor, labels: Tensor, changes: tuple[str, ...]) -> Callable[[], None]:
    layout = torch.channels_last if "channels_last" in changes else torch.contiguous_format
    model, images = copy.deepcopy(model).train().to(memory_format=layout), images.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    forward = torch.compile(model, dynamic=False) if "torch.compile" in changes else model

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in changes):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()

    return step


def bench(name: str, width: int | None, batch: int) -> dict[str, object]:
    torch.compiler.reset()  # its limit of variants is that of the process
    torch.manual_seed(0)
    model = models.build(name, num_classes=10, in_channels=1, width=width)
    images, labels = torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))
    chosen = [each for count in range(len(CHANGES) + 1) for each in itertools.combinations(CHANGES, count)]
    steps = {" + ".join(each) or PLAIN: stepping(model, images, labels, each) for each in chosen}
    with keep_freed_memory():  # as `fit` does
        times = microseconds(steps, REPEATS, CALLS)  # of its untimed calls the first one compiles
    ratios = {way: times[PLAIN]["median"] / times[way]["median"] for way in steps}
    return {"microseconds": times, "times plain": ratios}


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = {}
    for network, (name, width) in NETWORKS.items():
        for recipe in RECIPES.values():
            table[f"{network}, batch {recipe.batch_size}"] = result = bench(name, width, recipe.batch_size)
            print(network, recipe.batch_size, result, flush=True)
    write("training_step", {"repeats": REPEATS, "calls": CALLS, "table": table})
