"""Operator norms of convolutions and dense layers, and training under a limit on them (paper, section 6.2.2).

The norm of a convolution is that of its whole linear map, zero padding and stride included, for images of a given
size, not that of the reshaped kernel. A layer above the limit is divided down to it, so that in a network of such
layers, without BatchNorm, no two inputs are farther apart in logits than in pixels times the product of the norms.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amun_ext.models.state import eval_mode
from amun_ext.validation import check_integer, is_number, require

SETTLED = 50  # power iterations that a new vector gets; each later step adds one
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def operator_norm(layer: nn.Module, shape: tuple[int, ...], iterations: int = 200) -> float:
    """The largest factor by which a layer stretches an input [...] of this `shape`, in L2; its bias does not matter.

    By power iteration from a fixed start, from below: it is never above the norm but for rounding.

    Raises:
        InputError: another kind of layer than a convolution with zero padding or a dense one.

    Examples:
        >>> import torch
        >>> from amun_ext.lipschitz import operator_norm
        >>> layer = torch.nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        >>> round(operator_norm(layer, (2,)), 4)
        3.0
    """
    _check(layer)
    iterations = check_integer("iterations", iterations, 1)
    return float(_power(layer, _start(layer, shape), iterations)[0])


def layer_shapes(model: nn.Module, like: Tensor) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the input [...] of each convolution and dense layer, for an input [...] like this one."""
    shapes: dict[str, tuple[int, ...]] = {}
    layers = {name: each for name, each in model.named_modules() if isinstance(each, LAYERS)}

    def seen(name: str, inputs: tuple[Tensor, ...]) -> None:
        shapes[name] = tuple(inputs[0].shape[1:])

    hooks = [each.register_forward_pre_hook(lambda _, x, name=name: seen(name, x)) for name, each in layers.items()]
    try:
        with torch.no_grad(), eval_mode(model):
            model(like[None])
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def operator_norms(model: nn.Module, like: Tensor, iterations: int = 200) -> dict[str, float]:
    """Name -> `operator_norm` of each convolution and dense layer of a model, for inputs [...] like this one.

    InputError for a convolution with another padding than zeros.

    Examples:
        >>> import torch
        >>> from amun_ext.lipschitz import operator_norms
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> [*operator_norms(model, torch.zeros(1, 2, 2))]
        ['1']
    """
    return {
        name: operator_norm(model.get_submodule(name), shape, iterations)
        for name, shape in layer_shapes(model, like).items()
    }


def without_batch_norm(model: nn.Module) -> nn.Module:
    """The model with the identity in place of every BatchNorm, changed in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.modules.batchnorm._NormBase):
                setattr(module, name, nn.Identity())
    return model


@dataclass
class NormClipper:
    """Keeps the operator norms of a model at most at `limit`, for inputs [...] like this one."""

    model: nn.Module
    like: Tensor
    limit: float
    _shapes: dict[str, tuple[int, ...]] = field(init=False)
    _vectors: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(is_number(self.limit) and self.limit > 0, "limit", "positive", self.limit)
        self._shapes = layer_shapes(self.model, self.like)
        for name in self._shapes:
            _check(self.model.get_submodule(name))

    def restart(self) -> None:
        """Clip from fixed vectors, so that what follows does not depend on what was before."""
        self._vectors = {name: _start(self.model.get_submodule(name), shape) for name, shape in self._shapes.items()}
        self.clip(SETTLED)

    def clip(self, iterations: int = 1) -> None:
        """Divide the weights of each layer above the limit, after so many power iterations from the last vector."""
        for name in self._shapes:
            layer = self.model.get_submodule(name)
            norm, self._vectors[name] = _power(layer, self._vectors[name], iterations)
            with torch.no_grad():
                layer.weight.div_((norm / self.limit).clamp(min=1.0))  # type: ignore[operator]


def _check(layer: nn.Module) -> None:
    padded = getattr(layer, "padding_mode", "zeros") == "zeros"
    require(isinstance(layer, LAYERS) and padded, "layer", "a convolution with zero padding or a dense layer", layer)


def _start(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    vector = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return vector.to(weight.device, weight.dtype)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer without its bias."""
    weight = layer.weight.detach()  # type: ignore[operator]
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.dim()]
    how = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return convolve(x, weight, **how)


def _power(layer: nn.Module, vector: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The norm, and a unit vector [1, ...] near the one that is stretched most."""
    with torch.enable_grad():
        for _ in range(iterations):
            x = (vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)).requires_grad_()
            y = _linear(layer, x)
            (vector,) = torch.autograd.grad(y, x, y.detach())  # the transpose of the layer, applied to y
    return y.detach().norm(), x.detach() if not vector.any() else vector
