"""Rebuild a trained model with new initial weights."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from amun_ext.digest import digest
from amun_ext.random_state import cuda_devices, own_random_state
from amun_ext.sharded import check_not_sharded
from amun_ext.validation import InputError, listed, require

# A function that builds the model, the state dict that its training began with, or None for `reset_parameters`.
Init: TypeAlias = Callable[[], nn.Module] | Mapping[str, Tensor] | None

WAYS = (
    "made of modules whose reset_parameters() draws all weights anew, or else given init, a function that builds it or "
    "the state dict that training began with (on the command line --arch module:function, or --init)"
)


def untrained(model: nn.Module, init: Init = None, probe: Tensor | None = None) -> nn.Module:
    """A copy of `model` with weights and buffers from before training.

    They come from `init`, which draws from the global random state. A function must return the whole model as before
    training, buffers included; frozen parameters are kept if it has others. `probe` [n, ...] are inputs for a forward
    in training mode, which shows the buffers that training changes.

    InputError for another architecture and for the trained weights; without `init`, as `reinitialised`.
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
    """A deep copy, in which tensors with a graph, such as the weight of the older weight_norm, are detached.

    InputError for a sharded model, which has no copy.
    """
    check_not_sharded(model)
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(each): each.detach().clone() for each in kept if not each.is_leaf})


def check_init(model: nn.Module, init: Init) -> None:
    """InputError as `untrained`; the random state is left as it was."""
    with own_random_state(cuda_devices(model)):
        untrained(model, init)


def describe_init(init: Init) -> str | None:
    """An identity of `init` for files: the function's name and arguments, or a hash of the weights."""
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
    """A copy with new weights from every module's `reset_parameters`, drawn from the global random state.

    Untrained tensors are kept: frozen parameters, the buffers of modules with only such parameters (a pre-trained
    backbone), and floating-point buffers that training does not change (such as the mean of a normalisation), which a
    forward in training mode on `probe` [n, ...] shows, if it is given.

    InputError names the parameters and trained buffers that no module resets: they would keep what the model has
    learned, as under weight_norm, whose module resets only the product.
    """
    fresh = deep_copy(model)
    frozen = _frozen(fresh)
    learned = [(name, each) for name, each in [*fresh.named_parameters(), *fresh.named_buffers()] if name not in frozen]
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
            if name in frozen:
                tensor.copy_(frozen[name])
            elif name in constants:
                tensor.copy_(before[name])
    kept = [name for name, tensor in learned if name not in constants and tensor.isnan().any()]
    if constants and probe is not None and not kept:
        kept = _changed(fresh, constants, probe)
    require(not kept, "model", WAYS, f"old {listed(kept)}")
    return fresh


def _rebuild(fresh: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Load the model that the function builds into `fresh`, the trained model, except for other frozen parameters."""
    require(callable(build) and not isinstance(build, nn.Module), "init", "a function or a state dict", type(build))
    try:
        built = build()
    except Exception as error:  # user code may raise anything
        actual = f"{type(error).__name__}: {error}"
        raise InputError(f"init must be a function that builds the model without arguments, got {actual}") from error
    require(isinstance(built, nn.Module), "what init returns", "an nn.Module", type(built).__name__)
    frozen = _frozen(fresh)
    _load(fresh, built.state_dict())
    buffers, parameters = dict(built.named_buffers()), dict(fresh.named_parameters())
    # a function that loads the frozen weights also loads their statistics from before training
    loads_frozen = all(torch.equal(parameters[name], value) for name, value in frozen.items() if name in parameters)
    with torch.no_grad():
        for name, buffer in fresh.named_buffers():  # a state dict may lack some
            buffer.copy_(buffers[name])
        for name, tensor in [*parameters.items(), *fresh.named_buffers()]:
            if name in frozen and not loads_frozen:
                tensor.copy_(frozen[name])


def _load(model: nn.Module, state: Mapping[str, Any]) -> None:
    states = model.state_dict(), state
    own, given = ({name: getattr(value, "shape", None) for name, value in each.items()} for each in states)
    others = sorted(name for name in own.keys() | given.keys() if own.get(name, "") != given.get(name, ""))
    require(not others, "init", "of the model's architecture", f"something else at {listed(others)}")
    model.load_state_dict(state)


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
    """The buffers among `names` that a forward in training mode changes."""
    trained = deep_copy(model).train()
    before = {name: each.clone() for name, each in trained.named_buffers()}
    with torch.no_grad(), own_random_state(cuda_devices(trained)):
        trained(probe)
    after = dict(trained.named_buffers())
    return [name for name in names if not torch.equal(before[name], after[name])]
