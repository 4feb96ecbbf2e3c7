"""Use a model without changing it."""

import contextlib
import copy
import types
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from amun_ext.random_state import same_random_state
from amun_ext.validation import InputError, require

FILLABLE = (dict, list, deque)
HOLDING = (list, tuple, deque)
MODULES_OWN = frozenset(vars(nn.Module()))  # parameters, submodules, hooks


def placement(model: nn.Module, like: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where and in which floating-point type `model` wants its inputs; those of `like` when it has no weights."""
    weights = chain(model.parameters(), model.buffers())
    weight = next((tensor for tensor in weights if tensor.is_floating_point()), like)
    return weight.device, weight.dtype


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """What `model` answers to `x`; of an object with logits beside other things, as transformers return, the logits."""
    answer = model(x)
    logits: Tensor = getattr(answer, "logits", answer)
    return logits


@torch.no_grad()
def count_classes(model: nn.Module, inputs: Tensor) -> int:
    """K, from the logits [n, K] of the first two of `inputs` [N, ...], in eval mode. InputError for other answers."""
    device, dtype = placement(model, inputs)
    require(device.type != "meta", "model", "of weights with values", "tensors on the device meta")
    probe = inputs[:2].to(device, dtype, copy=True)
    with eval_mode(model):
        try:
            logits = logits_of(model, probe)
        except (Exception, SystemExit) as error:  # it is the user's, and may raise anything
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

    Among them those that are no buffers and that a forward makes anew, such as features that are kept, be it in lists
    or mappings, and the weight of the older weight_norm: they would keep a graph, and with it the module from being
    copied.

    Not for two threads with one model: the mode is the model's.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    filled = [(held, copy.copy(held)) for _, before in attributes for held in _fillable(before)]
    devices = {tensor.device.index for tensor in chain(model.parameters(), model.buffers()) if tensor.is_cuda}
    try:
        with same_random_state(sorted(devices)):
            _to_eval(model)
            yield
    finally:
        if modes:
            with contextlib.suppress(NotImplementedError):  # _to_eval has said so
                model.train(modes[0][1])  # through a train() of the model's own, if it has one
        for module, training in modes:
            module.training = training
        for held, contents in filled:
            _put_back_contents(held, contents)
        for module, before in attributes:
            _put_back_tensors(vars(module), before)
        for module, name, buffer, values in buffers:
            setattr(module, name, buffer)  # a forward may have put another in its place
            if not torch.equal(buffer, values):  # a needless write would break graphs that hold the buffer
                with torch.no_grad():
                    buffer.copy_(values)


def _to_eval(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:
        expected = "a module with train() and eval(), such as that which was exported"
        raise InputError(f"model must be {expected}, got {type(model).__name__}: {error}") from error


def _put_back_tensors(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name, value in attributes.items() if value is not before.get(name) and _holds_tensor(value)]:
        if name in before:
            attributes[name] = before[name]
        else:
            del attributes[name]


def _fillable(attributes: dict[str, Any]) -> list[Any]:
    """The containers among a module's own attributes that a forward can put tensors into."""
    return [value for name, value in attributes.items() if name not in MODULES_OWN and isinstance(value, FILLABLE)]


def _put_back_contents(held: Any, contents: Any) -> None:
    now, before = _parts(held), _parts(contents)
    same = len(now) == len(before) and all(one is other for one, other in zip(now, before, strict=True))
    if not same and _holds_tensor(held):
        held.clear()
        (held.update if isinstance(held, dict) else held.extend)(contents)


def _parts(value: Any) -> list[Any]:
    """What a container or a simple namespace holds; nothing of any other value."""
    if isinstance(value, types.SimpleNamespace):
        value = vars(value)
    return [*value.values()] if isinstance(value, dict) else [*value] if isinstance(value, HOLDING) else []


def _holds_tensor(value: object) -> bool:
    seen: set[int] = set()
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            return True
        if id(value) not in seen:  # a container may hold itself
            seen.add(id(value))
            left += _parts(value)
    return False
