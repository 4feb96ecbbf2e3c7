"""Use a model without changing it."""

import contextlib
import copy
import dataclasses
import types
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from amun_ext.random_state import cuda_devices, same_random_state
from amun_ext.sharded import reshard
from amun_ext.validation import InputError, require

FILLABLE = (dict, list, deque)
SEQUENCES = (list, tuple, set, deque)
OWN_ATTRIBUTES = frozenset(vars(nn.Module()))  # of every module: parameters, submodules, hooks


def placement(model: nn.Module, like: Tensor) -> tuple[torch.device, torch.dtype]:
    """The device and floating-point type of the weights; those of `like` for a model without weights."""
    weights = chain(model.parameters(), model.buffers())
    weight = next((tensor for tensor in weights if tensor.is_floating_point()), like)
    return weight.device, weight.dtype


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The output of `model` for `x`, or its attribute `logits`, as transformers return it."""
    output = model(x)
    logits: Tensor = getattr(output, "logits", output)
    return logits


@torch.no_grad()
def count_classes(model: nn.Module, inputs: Tensor) -> int:
    """K, from the logits [n, K] of the first two of `inputs` [N, ...], in eval mode. InputError for other outputs."""
    device, dtype = placement(model, inputs)
    require(device.type != "meta", "model", "of weights with values", "tensors on the device meta")
    inference = any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers()))
    require(not inference, "model", "one that was made outside torch.inference_mode", "inference tensors")
    probe = inputs[:2].to(device, dtype, copy=True)
    with eval_mode(model):
        try:
            logits = logits_of(model, probe)
        except (Exception, SystemExit) as error:  # user code may raise anything
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"model must take inputs of shape {tuple(probe.shape)}, got {reason}") from error
    is_logits = isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(probe) and logits.shape[1] >= 2
    actual = (
        f"shape {tuple(logits.shape)} for {len(probe)} inputs" if isinstance(logits, Tensor) else type(logits).__name__
    )
    require(is_logits, "model", "a map to logits [N, K] of at least two classes", actual)
    require(logits.is_floating_point(), "model", "a map to floating-point logits [N, K]", logits.dtype)
    return int(logits.shape[1])


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module's training flag, its tensors and the random state are as before.

    That includes tensors in plain attributes, lists and mappings, such as kept features and the weight of the older
    weight_norm: they would keep a graph, with which a module cannot be copied. Not for two threads with one model.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    containers = [(each, copy.copy(each)) for _, before in attributes for each in _fillable(before)]
    try:
        with same_random_state(cuda_devices(model)):
            _to_eval(model)
            yield
    finally:
        reshard(model)
        if modes:
            with contextlib.suppress(NotImplementedError):  # _to_eval has raised
                model.train(modes[0][1])  # a model may have its own train()
        for module, training in modes:
            module.training = training
        for container, contents in containers:
            _restore_contents(container, contents)
        for module, before in attributes:
            _restore_tensors(vars(module), before)
        for module, name, buffer, values in buffers:
            setattr(module, name, buffer)  # a forward may have replaced it
            if not torch.equal(buffer, values):  # a write would invalidate graphs that use the buffer
                with torch.no_grad():
                    buffer.copy_(values)


def _to_eval(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:
        expected = "a module with train() and eval(), such as that which was exported"
        raise InputError(f"model must be {expected}, got {type(model).__name__}: {error}") from error


def _restore_tensors(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name, value in attributes.items() if value is not before.get(name) and _has_tensor(value)]:
        if name in before:
            attributes[name] = before[name]
        else:
            del attributes[name]


def _fillable(attributes: dict[str, Any]) -> list[Any]:
    """The containers among a module's attributes that a forward can put tensors into."""
    return [value for name, value in attributes.items() if name not in OWN_ATTRIBUTES and isinstance(value, FILLABLE)]


def _restore_contents(container: Any, contents: Any) -> None:
    now, before = _items(container), _items(contents)
    same = len(now) == len(before) and all(one is other for one, other in zip(now, before, strict=True))
    if not same and _has_tensor(container):
        container.clear()
        (container.update if isinstance(container, dict) else container.extend)(contents)


def _items(value: Any) -> list[Any]:
    """The values in a container, simple namespace or dataclass; none for any other value."""
    if isinstance(value, types.SimpleNamespace) or dataclasses.is_dataclass(value):
        value = getattr(value, "__dict__", {})
    return [*value.values()] if isinstance(value, dict) else [*value] if isinstance(value, SEQUENCES) else []


def _has_tensor(value: object) -> bool:
    visited: set[int] = set()
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            return True
        if id(value) not in visited:  # a container may contain itself
            visited.add(id(value))
            left += _items(value)
    return False
