"""The kernels of a model's Conv2d layers, which some methods change before they fine-tune."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from amun_ext.saliency import trainable
from amun_ext.training import RunOptions
from amun_ext.validation import require


def conv_weights(model: nn.Module, *, square: bool = False) -> dict[str, nn.Parameter]:
    """The trainable kernels [out, in, height, width] by name, or those as high as wide and larger than 1x1 alone.

    InputError if there are none.
    """
    own = {id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d)}
    found = {name: weight for name, weight in trainable(model).items() if id(weight) in own}
    if square:
        found = {name: weight for name, weight in found.items() if weight.shape[2] == weight.shape[3] > 1}
    expected = "one with a trainable Conv2d" + " whose kernel is square and larger than 1x1" * square
    require(bool(found), "model", expected, type(model).__name__)
    return found


@torch.no_grad()
def set_weights(weights: Mapping[str, nn.Parameter], new: Mapping[str, Tensor], run: RunOptions) -> RunOptions:
    """Put `new` into the weights in place, where the mask of `run`, if there is one, is True. Returns `run` with its
    mask made."""
    mask = run.made_mask()
    for name, weight in weights.items():
        value = new[name].to(weight)
        weight.copy_(value if mask is None else torch.where(mask[name].to(weight.device), value, weight))
    return replace(run, mask=mask)
