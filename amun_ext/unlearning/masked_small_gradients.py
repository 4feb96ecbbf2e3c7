"""Masked small gradients (MSG): redraw the kernels' weights that tell D_R and D_F least apart (Cadet et al. 2024)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.sharded import check_not_sharded
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.training.parts import random_part
from amun_ext.unlearning.convolutions import conv_weights, set_weights
from amun_ext.unlearning.gradients import sum_over_batches
from amun_ext.validation import is_number, require

# The benchmark's code (xcadet/deepunlearn, kgltop2.py), of the entry that was second in the NeurIPS 2023 competition.
# There the learning rate rises for three of the epochs and falls for two, here it falls.
RECIPE = Recipe(epochs=5, lr=0.001, schedule="cosine", batch_size=64)
OTHERS = 0.1  # what the gradient of the weights that are not redrawn is multiplied by


def masked_small_gradients(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    reset_fraction: float = 0.3,
    recipe: Recipe = RECIPE,
) -> None:
    """Redraw in every Conv2d the weights with the smallest |gradient|, then minimise the cross-entropy on D_R, with the
    gradient of the layer's other weights times 0.1.

    The gradient is that of the mean cross-entropy of a random part of D_R, as large as D_F, less that of D_F, in eval
    mode. New weights have He et al.'s normal distribution by the fan-out. arXiv 2410.01276; its code draws the biases
    of these layers anew as well, which a ResNet does not have, and here stay.

    Args:
        reset_fraction: of the weights of each layer, in (0, 1].
        recipe: the factor 0.1 slows SGD; a step of AdamW does not depend on the scale of a gradient.
    """
    assert retain is not None
    fits = is_number(reset_fraction) and 0 < reset_fraction <= 1
    require(fits, "reset_fraction", "in (0, 1]", repr(reset_fraction))
    check_not_sharded(model)
    weights = conv_weights(model)
    part = random_part(retain, min(len(forget), len(retain)), run.seed)  # type: ignore[arg-type]
    both = [_gradient(model, weights, data, recipe, run) for data in (part, forget)]
    reset = {
        name: _smallest((of_retain - of_forget).abs(), reset_fraction)
        for name, of_retain, of_forget in zip(weights, *both, strict=True)
    }
    generator = torch.Generator().manual_seed((run.seed + 1) * 1_000_003)  # not that of the shuffling
    drawn = {name: _draw(weight, generator) for name, weight in weights.items()}
    new = {name: torch.where(reset[name], drawn[name], weight.detach()) for name, weight in weights.items()}
    run = set_weights(weights, new, run)
    hooks = []
    for name, weight in weights.items():
        factor = torch.where(reset[name], 1.0, OTHERS).to(weight)
        hooks.append(weight.register_hook(partial(torch.mul, factor)))
    try:
        fit(model, [Pass([DataPart(retain)])], recipe, run, settings=reset_fraction, description="MSG")
    finally:
        for hook in hooks:
            hook.remove()


def _gradient(
    model: nn.Module, weights: dict[str, nn.Parameter], data: Dataset[Any], recipe: Recipe, run: RunOptions
) -> list[Tensor]:
    """Of the mean cross-entropy, by each of the weights."""
    sums, _ = sum_over_batches(model, weights, data, recipe.batch_size, run, "MSG", lambda grad, size: grad)
    return [total / len(data) for total in sums]  # type: ignore[arg-type]


def _smallest(scores: Tensor, fraction: float) -> Tensor:
    """True for this fraction of the elements, the smallest; among equal ones for the first."""
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    chosen[scores.flatten().argsort(stable=True)[: round(fraction * scores.numel())]] = True
    return chosen.view(scores.shape)


def _draw(weight: Tensor, generator: torch.Generator) -> Tensor:
    """As many new weights, the same on every device."""
    new = torch.empty(weight.shape, device="cpu")
    nn.init.kaiming_normal_(new, mode="fan_out", nonlinearity="relu", generator=generator)
    return new.to(weight)
