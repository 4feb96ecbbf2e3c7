"""Rebuild a trained model with new initial weights."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from amun_ext.digest import digest
from amun_ext.random_state import own_random_state
from amun_ext.validation import InputError, listed, require

# A function that builds the model anew, the state dict that its training began with, or None: `reset_parameters`.
Init: TypeAlias = Callable[[], nn.Module] | Mapping[str, Tensor] | None

WAYS = (
    "made of modules whose reset_parameters() draws all weights anew, or else given init, a function that builds it or "
    "the state dict that training began with (on the command line --arch module:function, or --init)"
)


def untrained(model: nn.Module, init: Init = None, probe: Tensor | None = None) -> nn.Module:
    """A copy of `model` with the weights and buffers of one that has not been trained.

    They come from `init`, which draws from the global random state. A function must give all that the model had before
    training, buffers included; only frozen parameters stay where it has others. `probe` [n, ...] are inputs, for a
    forward in training mode that shows which buffers training changes.

    InputError for what is not of the model's architecture, or has its trained weights; without `init`, as
    `reinitialised`.
    """
    if init is None:
        return reinitialised(model, probe)
    fresh = deep_copy(model)
    if isinstance(init, Mapping):
        _load(fresh, init)
        unsaved = [name for name, _ in fresh.named_buffers() if name not in fresh.state_dict()]
        learned = [] if probe is None else _changed(fresh, unsaved, probe)
        expected = "a function for a model with buffers that training changes and no state dict has"
        require(not learned, "init", expected, f"a state dict without {listed(learned)}")
    else:
        _rebuild(fresh, init)
    pairs = zip(fresh.parameters(), model.parameters(), strict=True)
    trained = all(torch.equal(new, old) for new, old in pairs if old.requires_grad)
    require(not trained, "init", "of the model before training", "its trained weights")
    return fresh


def deep_copy(model: nn.Module) -> nn.Module:
    """A deep copy. What a forward has left behind with its graph, as the older weight_norm does, comes without it."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(each): each.detach().clone() for each in kept if not each.is_leaf})


def check_init(model: nn.Module, init: Init) -> None:
    """InputError as `untrained`, with no trace in the random state."""
    devices = {tensor.device.index for tensor in model.state_dict().values() if on_gpu(tensor)}
    with own_random_state(sorted(devices)):
        untrained(model, init)


def describe_init(init: Init) -> str | None:
    """What tells one `init` from another, in files: the function's name and arguments, or a hash of the weights."""
    if init is None:
        return None
    if isinstance(init, Mapping):
        return f"weights {digest({name: init[name] for name in sorted(init)})}"
    function, arguments = init, ""
    if isinstance(init, partial):
        function = init.func
        arguments = ", ".join([*map(repr, init.args), *(f"{name}={value!r}" for name, value in init.keywords.items())])
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}:{name}({arguments})"


def reinitialised(model: nn.Module, probe: Tensor | None = None) -> nn.Module:
    """A copy with fresh weights from every module's `reset_parameters`, drawn from the global random state.

    What was not trained stays as it is: parameters without requires_grad, with the buffers of modules that have no
    others (a pre-trained backbone), and floating-point buffers that training does not change (constants such as the
    mean of a normalisation). For the latter a forward in training mode is made on `probe` [n, ...], where it is given.

    InputError names the parameters that no module draws anew, and the buffers that training changes: they would carry
    over what the model has learned, as under weight_norm, whose module resets only the product.
    """
    fresh = deep_copy(model)
    stays = _frozen(fresh)
    learned = [(name, each) for name, each in [*fresh.named_parameters(), *fresh.named_buffers()] if name not in stays]
    with torch.no_grad():
        for _, tensor in learned:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        buffers, before = dict(fresh.named_buffers()), dict(model.named_buffers())
        constants = [name for name, tensor in learned if name in buffers and tensor.isnan().any()]
        for name, tensor in [*fresh.named_parameters(), *fresh.named_buffers()]:
            if name in stays:
                tensor.copy_(stays[name])
            elif name in constants:
                tensor.copy_(before[name])
    kept = [name for name, tensor in learned if name not in constants and tensor.isnan().any()]
    if constants and probe is not None and not kept:
        kept = _changed(fresh, constants, probe)
    require(not kept, "model", WAYS, f"old {listed(kept)}")
    return fresh


def _rebuild(fresh: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Put what the function builds into `fresh`, the trained model, but for frozen parameters that are others."""
    require(callable(build) and not isinstance(build, nn.Module), "init", "a function or a state dict", type(build))
    try:
        built = build()
    except Exception as error:  # it is the user's, and may raise anything
        actual = f"{type(error).__name__}: {error}"
        raise InputError(f"init must be a function that builds the model without arguments, got {actual}") from error
    require(isinstance(built, nn.Module), "what init returns", "an nn.Module", type(built).__name__)
    stays = _frozen(fresh)
    _load(fresh, built.state_dict())
    theirs, own = dict(built.named_buffers()), dict(fresh.named_parameters())
    # One that knows the frozen weights has their statistics from before training, too.
    known = all(torch.equal(own[name], value) for name, value in stays.items() if name in own)
    with torch.no_grad():
        for name, buffer in fresh.named_buffers():  # among them some that are in no state dict, and learn all the same
            buffer.copy_(theirs[name])
        for name, tensor in [*own.items(), *fresh.named_buffers()]:
            if name in stays and not known:
                tensor.copy_(stays[name])


def _load(model: nn.Module, state: Mapping[str, Any]) -> None:
    expected = model.state_dict()
    others = sorted(expected.keys() ^ state.keys())
    others += [name for name in expected.keys() & state.keys() if _shape(expected[name]) != _shape(state[name])]
    require(not others, "init", "of the model's architecture", f"something else at {listed(others)}")
    model.load_state_dict(state)


def _shape(value: object) -> object:
    return value.shape if isinstance(value, Tensor) else None


def on_gpu(value: object) -> bool:
    """Also of what is no tensor: the extra state of a module, or packed weights."""
    return isinstance(value, Tensor) and value.is_cuda


def _frozen(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the frozen parameters, and of the buffers of modules whose parameters are all frozen, by name."""
    found = {name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad}
    for prefix, module in model.named_modules():
        own = [*module.parameters(recurse=False)]
        if own and not any(each.requires_grad for each in own):
            buffers = module.named_buffers(prefix, recurse=False)
            found |= {name: each.detach().clone() for name, each in buffers}
    return found


def _changed(model: nn.Module, names: list[str], probe: Tensor) -> list[str]:
    """Those of the buffers that a forward in training mode changes."""
    tried = deep_copy(model).train()
    before = {name: each.clone() for name, each in tried.named_buffers()}
    devices = {each.device.index for each in [*tried.parameters(), *tried.buffers()] if each.is_cuda}
    with torch.no_grad(), own_random_state(sorted(devices)):
        tried(probe)
    after = dict(tried.named_buffers())
    return [name for name in names if not torch.equal(before[name], after[name])]
