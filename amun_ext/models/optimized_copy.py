"""A faster copy of a classifier, for the many gradients with respect to its input that a search takes."""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from amun_ext.models.state import eval_mode, logits_of

# By these a tensor's values become Python's, on which another input may take another way through the model.
BY_VALUE = {
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "item",
    "tolist",
    "numpy",
    "__array__",
    "equal",
    "allclose",
}
FUSE: dict[tuple[type, type], Callable[[Any, Any], Any]] = {
    (nn.Conv1d, nn.BatchNorm1d): fuse_conv_bn_eval,
    (nn.Conv2d, nn.BatchNorm2d): fuse_conv_bn_eval,
    (nn.Conv3d, nn.BatchNorm3d): fuse_conv_bn_eval,
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn_eval,
}


def optimized_copy(model: nn.Module, probe: Tensor) -> nn.Module:
    """A copy of `model` in eval mode with the same logits up to rounding at less cost; `model` where there is none.

    A deep copy without weight gradients that runs the model's own forward, with every BatchNorm folded into the layer
    before it where that is sound, and on a CPU with convolutions in channels_last order: their input may come in any,
    and its gradient may come back in either. It is returned only if its logits of `probe` are the model's; otherwise a
    copy with fewer changes is tried, and in the end the model itself is returned. That happens at once for a model of
    more than modules with float32 weights: hooks, a compiled, scripted or data parallel part, a __call__ of its own,
    another floating-point type.

    `probe` [n, ...] are a few inputs, two or more, in the model's dtype and on its device. The model is run on them and
    left as it was; what becomes of its weights later does not reach the copy. Not for two threads with one model.
    """
    # The code that runs in here is the user's and may raise anything: the model itself is always a right answer.
    with suppress(Exception), torch.inference_mode(False), eval_mode(model):
        if len(probe) == 0 or not _ordinary(model):
            return model
        expected = _answers(model, probe)
        frozen = copy.deepcopy(model)
        if _tensors(frozen) & _tensors(model):  # left to share by a __deepcopy__ of their own
            return model
        frozen.requires_grad_(False)
        order = (_channels_last,) if probe.device.type == "cpu" else ()  # on a GPU it has not been measured
        for changes in ((_fold, *order), (_fold,), order, ()):
            with suppress(Exception):
                candidate = copy.deepcopy(frozen)
                for change in changes:
                    change(candidate, probe)
                if _alike(_answers(candidate, probe), expected):
                    return candidate
    return model


def _ordinary(model: nn.Module) -> bool:
    """Whether a deep copy and hooks see all there is. A hook may be bound to anything, which would be copied too."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    wrappers = (torch.jit.ScriptModule, nn.DataParallel, nn.parallel.DistributedDataParallel)
    for module in model.modules():
        own = vars(module)
        if any(own[name] for name in hooks) or own.get("_compiled_call_impl") is not None or "forward" in own:
            return False
        if isinstance(module, wrappers) or type(module).__call__ is not nn.Module.__call__:
            return False
    tensors = chain(model.parameters(), model.buffers())
    return all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point())


def _tensors(model: nn.Module) -> set[int]:
    return {id(tensor) for tensor in chain(model.parameters(), model.buffers())}


def _answers(model: nn.Module, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, K], and the gradient [n, ...] of a mixture of them, from the same random state for every model."""
    # Without the caller's autocast: bfloat16 moves gradients by tenths, and a wrong copy would pass for a rounded one.
    with eval_mode(model), torch.enable_grad(), torch.autocast(probe.device.type, enabled=False):
        x = probe.detach().clone().requires_grad_()
        logits = logits_of(model, x.clone())  # cloned: it may change its input in place
        mixture = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)
        (gradient,) = torch.autograd.grad(logits, x, mixture.expand_as(logits))
    return logits.detach(), gradient


def _alike(candidate: tuple[Tensor, Tensor], model: tuple[Tensor, Tensor]) -> bool:
    """Whether two `_answers` differ by rounding only; with NaN or infinity in either, no."""
    (logits, gradient), (expected, expected_gradient) = candidate, model
    # ResNet-18 and VGG-19 differ by 3 float32 roundings of the spread of a row's logits. GPUs convolve in TF32.
    rounding = max(torch.finfo(logits.dtype).eps, 2**-10 if logits.is_cuda else 2**-23)
    spread = expected.amax(1, keepdim=True) - expected.amin(1, keepdim=True)
    same = (logits - expected).abs() <= 64 * rounding * spread
    # Lax: a ReLU on the brink that flips by rounding moves a gradient by thousandths, in TF32 by tenths.
    near = (gradient - expected_gradient).norm() <= 0.5 * expected_gradient.norm()
    return bool(same.all() and near)


def _channels_last(candidate: nn.Module, _probe: Tensor) -> None:
    # Convolutions answer in the order of their weights, so the input need not be converted.
    nn.utils.convert_conv2d_weight_memory_format(candidate, torch.channels_last)


def _fold(candidate: nn.Module, probe: Tensor) -> None:
    """Put each BatchNorm into the convolution or linear layer before it, if it alone uses what that layer returns."""
    modules = dict(candidate.named_modules())
    for name, before in _pairs(candidate, probe):
        layer, norm = modules[before], modules[name]
        with suppress(Exception):  # it raises for what it cannot fold, such as a norm without statistics
            fused = FUSE[type(layer), type(norm)](layer, norm)
            layer.weight, layer.bias = fused.weight, fused.bias
            candidate.set_submodule(name, nn.Identity().eval())


def _pairs(candidate: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """Names of the norms that can be folded, each with the layer before it, as one forward pass shows them.

    What that pass does is seen by hooks on a copy and by a mode of this thread: torch.fx would patch nn.Module for the
    whole process while it traces, and other threads' models with it.
    """
    seen = _Uses()
    watched = copy.deepcopy(candidate)  # a forward may leave things behind, such as the hooks' tensors
    for name, module in watched.named_modules():
        if any(type(module) in pair for pair in FUSE):
            module.register_forward_pre_hook(partial(seen.enter, name))
            module.register_forward_hook(partial(seen.leave, name))
    with torch.no_grad(), seen:
        watched(probe.clone())
    if seen.by_value:
        return []
    kinds = {name: type(module) for name, module in watched.named_modules()}
    return [
        (norm, layer)
        for norm, (layer, uses) in seen.feeds.items()
        if uses == [norm] and (kinds[layer], kinds[norm]) in FUSE and seen.calls[layer] == seen.calls[norm] == 1
    ]


class _Uses(TorchFunctionMode):
    """Which function or watched module is given what another watched module has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.by_value = False
        self.inside: list[str] = []  # the watched modules that run
        self.made: dict[int, tuple[Tensor, str, list[object]]] = {}  # what each returned, and who was given it
        self.feeds: dict[str, tuple[str, list[object]]] = {}

    def enter(self, name: str, _module: nn.Module, inputs: tuple[object, ...]) -> None:
        self.calls[name] += 1
        made = self.made.get(id(inputs[0])) if len(inputs) == 1 else None
        if made is not None:
            made[2].append(name)
            self.feeds[name] = made[1:]
        self.inside.append(name)

    def leave(self, name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        self.inside.remove(name)
        if isinstance(output, Tensor):
            self.made[id(output)] = (output, name, [])  # held, or its id might be another's next

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:  # what a watched module does with its input is its own
            self.by_value |= getattr(function, "__name__", "") in BY_VALUE
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and id(value) in self.made:
                    self.made[id(value)][2].append(function)
        return function(*args, **(kwargs or {}))
