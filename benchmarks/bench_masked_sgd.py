"""A step of MaskedSGD on a CPU against torch.optim.SGD with what it takes to keep weights frozen: gradients times the
mask before the step, and frozen weights put back after it. Momentum 0.9, weight decay 5e-4.

The parameters of a ResNet-18 and a VGG-19 for CIFAR-10. Every rival multiplies and puts back in the fastest way that
was found: by float masks, and by `lerp` with weights of 0 and 1. "none" is without a mask, a plain step of each. They
are checked to give the same weights first. One thread in CPU time, two in wall time.
"""

import time
from collections.abc import Callable

import torch
from common import microseconds, write
from torch import Tensor, nn

from amun_ext import MaskedSGD
from amun_ext.models import build

MODELS, DENSITIES, REPEATS, CALLS = ("resnet18", "vgg19"), (0.1, 0.5, 0.9, None), 15, 3
OPTIONS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
RIVALS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def parameters(start: list[Tensor], grads: list[Tensor]) -> list[nn.Parameter]:
    params = [nn.Parameter(tensor) for tensor in copies(start)]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    return params


def rival(params: list[nn.Parameter], masks: list[Tensor] | None, kind: dict[str, bool]) -> Callable[[], None]:
    """A step of torch.optim.SGD that leaves the frozen weights as they are now."""
    optimizer = torch.optim.SGD(params, **OPTIONS, **kind)
    if masks is None:
        return optimizer.step
    grads, frozen = [param.grad for param in params], copies(params)
    chosen, others = [mask.float() for mask in masks], [(~mask).float() for mask in masks]

    @torch.no_grad()
    def step() -> None:
        if kind.get("foreach") is False:
            for grad, mask in zip(grads, chosen, strict=True):
                grad.mul_(mask)
            optimizer.step()
            for param, own, mask in zip(params, frozen, others, strict=True):
                param.lerp_(own, mask)
        else:
            torch._foreach_mul_(grads, chosen)
            optimizer.step()
            torch._foreach_lerp_(params, frozen, others)

    return step


def bench(model: str, density: float | None, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    named = dict(build(model, num_classes=10, in_channels=3).named_parameters())
    grads = [0.01 * torch.randn_like(weight) for weight in named.values()]
    start = copies(list(named.values()))
    masks = None if density is None else {name: torch.rand(weight.shape) < density for name, weight in named.items()}

    own = parameters(start, grads)
    works = {"MaskedSGD": MaskedSGD(zip(named, own, strict=True), **OPTIONS, masks=masks).step}
    weights = {"MaskedSGD": own}
    for name, kind in RIVALS.items():
        weights[name] = parameters(start, grads)
        works[name] = rival(weights[name], list(masks.values()) if masks else None, kind)
    for _ in range(3):
        for work in works.values():
            work()
    for name in RIVALS:
        torch.testing.assert_close(weights[name], own, rtol=1e-5, atol=1e-6)

    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    times = microseconds(works, REPEATS, CALLS, clock)
    ratios = {name: times[name]["median"] / times["MaskedSGD"]["median"] for name in RIVALS}
    return {"microseconds": times, "times MaskedSGD": ratios}


if __name__ == "__main__":
    torch.manual_seed(0)
    table = {}
    for model in MODELS:
        for threads in (1, 2):
            for density in DENSITIES:
                row = f"{model}, {threads} thread{'s' * (threads > 1)}, {density or 'none'}"
                table[row] = bench(model, density, threads)
                print(f"{row}: {table[row]}")
    write("masked_sgd", {"options": OPTIONS, "repeats": REPEATS, "calls": CALLS, "table": table})
