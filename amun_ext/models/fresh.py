"""Fresh weights for an architecture that is there only as a trained model."""

import copy

import torch
from torch import nn

from amun_ext.checks import require


def reinitialised(model: nn.Module) -> nn.Module:
    """A copy with fresh weights from every module's `reset_parameters`, drawn from the global random state.

    InputError names the parameters and floating-point buffers that no module draws anew: they would carry over what
    the model has learned, as under weight_norm, whose module resets only the product.
    """
    fresh = copy.deepcopy(model)
    learned = [*fresh.named_parameters(), *fresh.named_buffers()]
    with torch.no_grad():
        for _, tensor in learned:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    kept = [name for name, tensor in learned if tensor.isnan().any()]
    require(not kept, "model", "made of modules whose reset_parameters() draws all weights anew", f"old {kept[:5]}")
    return fresh
