"""A faster copy of a classifier, for the many input gradients of a search."""

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

# These read values of a tensor into Python, so that control flow may depend on the input.
READS = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "__array__", "equal", "allclose")
FUSE: dict[tuple[type, type], Callable[[Any, Any], Any]] = {
    (nn.Conv1d, nn.BatchNorm1d): fuse_conv_bn_eval,
    (nn.Conv2d, nn.BatchNorm2d): fuse_conv_bn_eval,
    (nn.Conv3d, nn.BatchNorm3d): fuse_conv_bn_eval,
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn_eval,
}


def optimized_copy(model: nn.Module, probe: Tensor) -> nn.Module:
    """A faster copy of `model` in eval mode with equal logits up to rounding, or `model` itself.

    A deep copy without weight gradients that runs the model's own forward, with every BatchNorm folded into the layer
    before it if that is sound, and on a CPU with convolutions in channels_last order. It is returned only if its logits
    of `probe` are the model's; otherwise copies with fewer changes are tried. A model with hooks, with a compiled,
    scripted or data parallel part, with its own __call__, or with other types than float32 is returned itself.

    `probe` [n, ...] are two or more inputs in the model's dtype and on its device. The model is run on them and left as
    it was. The copy does not follow later changes of its weights. Not for two threads with one model.
    """
    # user code may raise anything in here, and the model itself is always a correct result
    with suppress(Exception), torch.inference_mode(False), eval_mode(model):
        if len(probe) == 0 or not _can_be_copied(model):
            return model
        expected = _outputs(model, probe)
        frozen = copy.deepcopy(model)
        if _tensors(frozen) & _tensors(model):  # shared by a __deepcopy__ of the user's
            return model
        frozen.requires_grad_(False)
        order = (_channels_last,) if probe.device.type == "cpu" else ()  # not measured on GPUs
        for changes in ((_fold, *order), (_fold,), order, ()):
            with suppress(Exception):
                candidate = copy.deepcopy(frozen)
                for change in changes:
                    change(candidate, probe)
                if _nearly_equal(_outputs(candidate, probe), expected):
                    return candidate
    return model


def _can_be_copied(model: nn.Module) -> bool:
    """Whether a deep copy is complete and our hooks see every call; the target of a user's hook would be copied too."""
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


def _outputs(model: nn.Module, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, K], and the gradient [n, ...] of a mixture of them, from the same random state for every model."""
    # without the caller's autocast: the rounding of bfloat16 would hide a wrong copy
    with eval_mode(model), torch.enable_grad(), torch.autocast(probe.device.type, enabled=False):
        x = probe.detach().clone().requires_grad_()
        logits = logits_of(model, x.clone())  # a model may change its input in place
        mixture = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)
        (gradient,) = torch.autograd.grad(logits, x, mixture.expand_as(logits))
    return logits.detach(), gradient


def _nearly_equal(candidate: tuple[Tensor, Tensor], model: tuple[Tensor, Tensor]) -> bool:
    """Whether two `_outputs` differ by rounding only; False for NaN or infinity."""
    (logits, gradient), (expected, expected_gradient) = candidate, model
    # ResNet-18 and VGG-19 differ by 3 float32 roundings of the range of a row's logits; GPUs convolve in TF32
    rounding = max(torch.finfo(logits.dtype).eps, 2**-10 if logits.is_cuda else 2**-23)
    spread = expected.amax(1, keepdim=True) - expected.amin(1, keepdim=True)
    same = (logits - expected).abs() <= 64 * rounding * spread
    # a ReLU that flips by rounding moves a gradient by thousandths, in TF32 by tenths
    near = (gradient - expected_gradient).norm() <= 0.5 * expected_gradient.norm()
    return bool(same.all() and near)


def _channels_last(candidate: nn.Module, _probe: Tensor) -> None:
    # the output has the layout of the weights, so the input need not be converted
    nn.utils.convert_conv2d_weight_memory_format(candidate, torch.channels_last)


def _fold(candidate: nn.Module, probe: Tensor) -> None:
    """Fold each BatchNorm into the convolution or linear layer before it, if nothing else uses that layer's output."""
    modules = dict(candidate.named_modules())
    for name, before in _pairs(candidate, probe):
        layer, norm = modules[before], modules[name]
        with suppress(Exception):  # such as for a norm without statistics
            fused = FUSE[type(layer), type(norm)](layer, norm)
            layer.weight, layer.bias = fused.weight, fused.bias
            candidate.set_submodule(name, nn.Identity().eval())


def _pairs(candidate: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """Names of the norms that can be folded, each with the layer before it, as one forward pass shows.

    The pass is observed by hooks on a copy and by a mode of this thread: a trace by torch.fx would patch nn.Module for
    all threads.
    """
    uses = _Uses()
    traced = copy.deepcopy(candidate)  # a forward may keep tensors
    for name, module in traced.named_modules():
        if any(type(module) in pair for pair in FUSE):
            module.register_forward_pre_hook(partial(uses.enter, name))
            module.register_forward_hook(partial(uses.leave, name))
    with torch.no_grad(), uses:
        traced(probe.clone())
    if uses.read_values:
        return []
    kinds = {name: type(module) for name, module in traced.named_modules()}
    return [
        (norm, layer)
        for norm, (layer, users) in uses.sources.items()
        if users == [norm] and (kinds[layer], kinds[norm]) in FUSE and uses.calls[layer] == uses.calls[norm] == 1
    ]


class _Uses(TorchFunctionMode):
    """Which functions and traced modules use the outputs of traced modules."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.read_values = False  # whether READS were called
        self.running: list[str] = []  # traced modules
        self.outputs: dict[int, tuple[Tensor, str, list[object]]] = {}  # by id: the tensor, its module, its users
        self.sources: dict[str, tuple[str, list[object]]] = {}  # of a module's input: the module before, its users

    def enter(self, name: str, _module: nn.Module, inputs: tuple[object, ...]) -> None:
        self.calls[name] += 1
        source = self.outputs.get(id(inputs[0])) if len(inputs) == 1 else None
        if source is not None:
            source[2].append(name)
            self.sources[name] = source[1:]
        self.running.append(name)

    def leave(self, name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        self.running.remove(name)
        if isinstance(output, Tensor):
            self.outputs[id(output)] = (output, name, [])  # the tensor too, so that its id is not reused

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.running:  # not inside a traced module
            self.read_values |= getattr(function, "__name__", "") in READS
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and id(value) in self.outputs:
                    self.outputs[id(value)][2].append(function)
        return function(*args, **(kwargs or {}))
