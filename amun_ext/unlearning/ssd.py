"""Selective synaptic dampening (SSD): shrink what matters more for D_F than for all data (Foster et al. 2024).

There is no training: two passes over the data and one change of the weights.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.saliency import trainable
from amun_ext.sharded import shard_like
from amun_ext.training import Recipe, RunOptions
from amun_ext.unlearning.gradients import sum_over_batches
from amun_ext.validation import is_number, require

# The diagonal of the Fisher information is a mean over samples; see `recipe` below.
RECIPE = Recipe(epochs=1, lr=0.0, batch_size=1)


def ssd(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    selection: float = 10.0,
    dampening: float = 1.0,
    recipe: Recipe = RECIPE,
) -> None:
    """Multiply the weights where I(D_F) > selection * I(D) by min(dampening * I(D) / I(D_F), 1).

    The importance I of a weight is the diagonal of the Fisher information, the mean over samples of the squared
    derivative of their cross-entropy, in eval mode; D is D_R and D_F. arXiv 2308.07707; the defaults are its authors'
    (if-loops/selective-synaptic-dampening), which they found for ResNet-18.

    Args:
        selection: alpha, how much more a weight must matter for D_F than for D.
        dampening: lambda.
        recipe: its `batch_size` alone counts. Larger ones take the squared derivative of the mean of a batch, as the
            authors' code does, which is faster and no longer the Fisher information.
    """
    assert retain is not None
    for name, value in (("selection", selection), ("dampening", dampening)):
        require(is_number(value) and 0 < value < math.inf, name, "a positive, finite number", repr(value))
    weights = trainable(model)

    def squares(data: Dataset[Any]) -> tuple[list[Tensor], int]:
        """Of the mean gradients of the batches."""

        def square(grad: Tensor, size: int) -> Tensor:
            return (grad / size).square()

        return sum_over_batches(model, weights, data, recipe.batch_size, run, "SSD", square)

    (of_forget, count), (of_retain, others) = squares(forget), squares(retain)
    mask = run.made_mask()
    with torch.no_grad():
        for number, (name, weight) in enumerate(weights.items()):
            own = of_forget[number] / count
            overall = (of_forget[number] + of_retain[number]) / (count + others)
            chosen = own > selection * overall
            if mask is not None:
                chosen &= shard_like(mask[name], weight).to(weight.device)
            factor = (dampening * overall / own).clamp(max=1)
            weight.copy_(torch.where(chosen, weight * factor, weight))
