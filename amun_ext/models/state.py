"""Using a model without leaving a trace in it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def placement(model: nn.Module, like: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where and in which floating-point type `model` wants its inputs; those of `like` when it has no weights."""
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), like)
    return weight.device, weight.dtype


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module's training flag, the buffers and the random state are as before."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {parameter.device.index for parameter in model.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(sorted(devices)):
            model.eval()
            yield
    finally:
        for module, flag in training:
            module.training = flag
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
