"""Fresh weights for an architecture that is there only as a trained model."""

import copy

import torch
from torch import Tensor, nn

from amun_ext.checks import require


def reinitialised(model: nn.Module, probe: Tensor | None = None) -> nn.Module:
    """A copy with fresh weights from every module's `reset_parameters`, drawn from the global random state.

    What was not trained stays as it is: parameters without requires_grad, with the buffers of modules that have no
    others (a pre-trained backbone), and floating-point buffers that training does not change (constants such as the
    mean of a normalisation). For the latter a forward in training mode is made on `probe` [n, ...], where it is given.

    InputError names the parameters that no module draws anew, and the buffers that training changes: they would carry
    over what the model has learned, as under weight_norm, whose module resets only the product.
    """
    fresh = copy.deepcopy(model)
    stays = _untrained(fresh)
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
    require(not kept, "model", "made of modules whose reset_parameters() draws all weights anew", f"old {kept[:5]}")
    return fresh


def _untrained(model: nn.Module) -> dict[str, Tensor]:
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
    tried = copy.deepcopy(model).train()
    before = {name: each.clone() for name, each in tried.named_buffers()}
    devices = {each.device.index for each in [*tried.parameters(), *tried.buffers()] if each.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(sorted(devices)):
        tried(probe)
    after = dict(tried.named_buffers())
    return [name for name in names if not torch.equal(before[name], after[name])]
