"""The CUDA kernels against the least time that moving their bytes takes: python benchmarks/bench_gpu_ops.py

The floor is what an op must read and write, at the bandwidth of a large copy that is measured in the same run. Inputs
are larger than the second-level cache, and two sets of them take turns. Times are medians between CUDA events of calls
that stand in a queue, so that the host's part is not among them. What each op gives is compared with the CPU's answer
first. MaskedSGD is also timed against torch.optim.SGD(fused=True), which multiplies gradients by masks before its step
and puts frozen weights back after it.

    python benchmarks/bench_gpu_ops.py --device cpu --small      a rehearsal: does it run? Writes nothing
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench_masked_sgd import OPTIONS, copies, parameters, rival
from bench_rmia import MARGIN, ORDER, TEMPERATURE
from bench_search_step import BOUNDS, PGD
from common import gpu_benchmark, write_gpu
from torch import Tensor

from amun_ext import MaskedSGD, ops
from amun_ext.models import build

Work = Callable[[], Any]
SETS, REPEATS, DENSITY = 2, 30, 0.5
# op and size -> the share of the copy's bandwidth that is wanted
TARGETS = {
    "search_step 3x32x32 x 65,536": 0.85,
    "search_step 3x224x224 x 1,024": 0.60,
    "masked_sgd 100M": 0.85,
    "sm_taylor 128 x 60,000 x 10": 0.80,
    "sm_taylor 16 x 60,000 x 200": 0.80,
    "attack_loss 65,536 x 1,000": 0.80,
}


def seconds(works: list[Work], device: str, repeats: int = REPEATS) -> float:
    """Median of a call; works take turns."""
    for work in works:
        work()
    if device == "cpu":
        taken = []
        for turn in range(repeats):
            start = time.perf_counter()
            works[turn % len(works)]()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda._sleep(50_000_000)  # the host gets ahead of the device
    events[0].record()
    for turn in range(repeats):
        works[turn % len(works)]()
        events[turn + 1].record()
    events[-1].synchronize()
    return statistics.median(a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(events))


def copy_bandwidth(device: str, small: bool) -> float:
    """Bytes a second of a copy, counting those read and those written."""
    count = 2**20 if small else 2**30
    pairs = [[torch.rand(count, device=device) for _ in range(2)] for _ in range(SETS)]
    taken = seconds([lambda a=a, b=b: a.copy_(b) for a, b in pairs], device)
    return 2 * 4 * count / taken


# A case is the bytes that its op must move, and the works of every set. It has compared them with the CPU by then.
Case = tuple[int, list[Work]]


def search_step(shape: tuple[int, ...], batch: int, device: str) -> Case:
    """Rule "pgd", every slot on its way: three rows are read, one is written."""

    def draw(rows: int, place: str) -> tuple[list[Tensor], ...]:
        inputs = torch.rand(rows, *shape, device=place)
        x = (inputs + 0.3 * torch.randn_like(inputs) / inputs[0].numel() ** 0.5).clamp_(*BOUNDS)
        column = torch.zeros(rows, dtype=torch.int64, device=place)
        order, made, eps = torch.arange(rows, device=place), column.int() + 1, torch.full((rows,), 0.5, device=place)
        batch = [x, order, column.clone()]
        table = [inputs, column, x.clone(), column.clone(), eps, eps + math.inf, made, made.clone(), column.char()]
        queue, queue_position = column[:0], column[:1].clone()
        feedback = [torch.randn_like(inputs), column.bool(), column + 1, torch.full((rows,), 0.5, device=place)]
        return batch, feedback, table, [queue, queue_position]

    def step(batch: list[Tensor], feedback: list[Tensor], table: list[Tensor], queue: list[Tensor]) -> None:
        lists = ops.SlotBatch(*batch), ops.Feedback(*feedback), ops.SampleTable(*table)
        ops.search_step_(*lists, *queue, PGD, BOUNDS)

    there = draw(min(batch, 64), "cpu")
    here = tuple([tensor.to(device, copy=True) for tensor in part] for part in there)
    step(*there)
    step(*here)
    for expected, result in zip(there, here, strict=True):
        torch.testing.assert_close([tensor.cpu() for tensor in result], expected, rtol=1e-5, atol=1e-6)
    works: list[Work] = [partial(step, *draw(batch, device)) for _ in range(SETS)]
    return 4 * batch * math.prod(shape) * 4, works


def sm_taylor(models: int, samples: int, classes: int, device: str) -> Case:
    def op(logits: Tensor, labels: Tensor) -> Tensor:
        return ops.sm_taylor_softmax(logits, labels, ORDER, MARGIN, TEMPERATURE)

    sets = [
        (torch.randn(models, samples, classes, device=device), torch.randint(classes, (samples,), device=device))
        for _ in range(SETS)
    ]
    for logits, labels in sets:
        torch.testing.assert_close(op(logits, labels)[:2].cpu(), op(logits[:2].cpu(), labels.cpu()))
    rows = models * samples
    return rows * (classes + 1) * 4 + samples * 8, [lambda each=each: op(*each) for each in sets]


def attack_loss(rows: int, classes: int, device: str) -> Case:
    def op(logits: Tensor, labels: Tensor) -> ops.AttackLoss:
        return ops.attack_loss(logits, labels, "cross_entropy")

    sets = [
        (3 * torch.randn(rows, classes, device=device), torch.randint(classes, (rows,), device=device))
        for _ in range(SETS)
    ]
    for logits, labels in sets:
        result, expected = op(logits, labels), op(logits[:512].cpu(), labels[:512].cpu())
        torch.testing.assert_close([column[:512].cpu() for column in result], list(expected), rtol=1e-5, atol=1e-6)
    return rows * (2 * classes * 4 + 8 + 1 + 8 + 4), [lambda each=each: op(*each) for each in sets]


def masked_sgd(width: int, device: str) -> tuple[int, dict[str, list[Work]]]:
    """The parameters of a ResNet-18 of this width; at 192 there are 100 million. Of each, a float that is read and
    written, its gradient that is read, its momentum that is read and written, and a byte of mask."""
    works: dict[str, list[Work]] = {"MaskedSGD": [], "fused SGD, masked": [], "fused SGD, no mask": []}
    for turn in range(SETS):
        named = dict(build("resnet18", num_classes=10, in_channels=3, width=width).to(device).named_parameters())
        start = copies(list(named.values()))
        grads = [0.01 * torch.randn_like(weight) for weight in start]
        masks = {name: torch.rand_like(weight) < DENSITY for name, weight in named.items()}
        own, theirs, free = (parameters(start, grads) for _ in range(3))
        works["MaskedSGD"].append(MaskedSGD(zip(named, own, strict=True), **OPTIONS, masks=masks).step)
        works["fused SGD, masked"].append(rival(theirs, list(masks.values()), {"fused": True}))
        works["fused SGD, no mask"].append(rival(free, None, {"fused": True}))
        there = [weight.cpu().requires_grad_() for weight in copies(start)]
        for weight, grad in zip(there, grads, strict=True):
            weight.grad = grad.cpu()
        cpu_masks = {name: mask.cpu() for name, mask in masks.items()}
        reference = MaskedSGD(zip(named, there, strict=True), **OPTIONS, masks=cpu_masks).step
        for _ in range(3):
            works["MaskedSGD"][turn]()
            works["fused SGD, masked"][turn]()
            reference()
        for rivals in (there, theirs):
            for weight, expected in zip(own, rivals, strict=True):
                torch.testing.assert_close(weight.to(expected.device), expected, rtol=1e-5, atol=1e-6)
    return 21 * sum(weight.numel() for weight in start), works


def measure(device: str, small: bool) -> dict[str, Any]:
    bandwidth = copy_bandwidth(device, small)
    part = 512 if small else 1  # of every size
    makers: dict[str, Callable[[], Case]] = {
        "search_step 3x32x32 x 65,536": lambda: search_step((3, 32, 32), 65_536 // part, device),
        "search_step 3x224x224 x 1,024": lambda: search_step((3, 224, 224), 1024 // part, device),
        "sm_taylor 128 x 60,000 x 10": lambda: sm_taylor(128, 60_000 // part, 10, device),
        "sm_taylor 16 x 60,000 x 200": lambda: sm_taylor(16, 60_000 // part, 200, device),
        "attack_loss 65,536 x 1,000": lambda: attack_loss(65_536 // part, 1000, device),
    }
    table = {}

    def row(name: str, bytes_moved: int, taken: float) -> None:
        floor = bytes_moved / bandwidth
        share, target = floor / taken, TARGETS[name]
        table[name] = {"bytes": bytes_moved, "floor": floor, "seconds": taken, "share": share, "target": target}
        print(f"{name:30} {taken * 1e6:10.1f} us, floor {floor * 1e6:10.1f} us, {share:.0%} of the copy", flush=True)

    repeats = 2 if small else REPEATS
    for name, make in makers.items():
        bytes_moved, works = make()
        row(name, bytes_moved, seconds(works, device, repeats))
        del works
    bytes_moved, rivals = masked_sgd(8 if small else 192, device)
    optimizers = {name: seconds(works, device, repeats) for name, works in rivals.items()}
    row("masked_sgd 100M", bytes_moved, optimizers["MaskedSGD"])
    print({name: f"{taken * 1e6:.1f} us" for name, taken in optimizers.items()})
    return {"copy": bandwidth, "repeats": repeats, "table": table, "optimizers": optimizers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = gpu_benchmark(parser)
    torch.manual_seed(0)
    result = measure(options.device, options.small)
    write_gpu("ops", result, options)


if __name__ == "__main__":
    main()
