"""Using a model without leaving a trace in it."""

import contextlib
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from amun_ext.checks import InputError, require


def placement(model: nn.Module, like: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where and in which floating-point type `model` wants its inputs; those of `like` when it has no weights."""
    weights = chain(model.parameters(), model.buffers())
    weight = next((tensor for tensor in weights if tensor.is_floating_point()), like)
    return weight.device, weight.dtype


@torch.no_grad()
def count_classes(model: nn.Module, inputs: Tensor) -> int:
    """K, from the logits [n, K] of the first two of `inputs` [N, ...], in eval mode. InputError for other answers."""
    device, dtype = placement(model, inputs)
    require(device.type != "meta", "model", "of weights with values", "tensors on the device meta")
    probe = inputs[:2].to(device, dtype, copy=True)
    try:
        with evaluating(model):
            logits = model(probe)
    except Exception as error:  # it is the user's, and may raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"model must take inputs of shape {tuple(probe.shape)}, got {reason}") from error
    is_logits = isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(probe) and logits.shape[1] >= 2
    got = (
        f"shape {tuple(logits.shape)} for {len(probe)} inputs" if isinstance(logits, Tensor) else type(logits).__name__
    )
    require(is_logits, "model", "a map to logits [N, K] of at least two classes", got)
    require(logits.is_floating_point(), "model", "a map to floating-point logits [N, K]", logits.dtype)
    return int(logits.shape[1])


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module's training flag, the buffers and the random state are as before.

    Not for two threads with one model: the mode is the model's, and the random state the process's.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {tensor.device.index for tensor in chain(model.parameters(), model.buffers()) if tensor.is_cuda}
    try:
        with torch.random.fork_rng(sorted(devices)):
            model.eval()
            yield
    finally:
        if modes:
            model.train(modes[0][1])  # through a train() of the model's own, if it has one
        for module, training in modes:
            module.training = training
        for module, name, buffer, before in buffers:
            setattr(module, name, buffer)  # a forward may have put another in its place
            if not torch.equal(buffer, before):  # a needless write would break graphs that hold the buffer
                with torch.no_grad():
                    buffer.copy_(before)
