"""Selective synaptic dampening (SSD): shrink what matters more for D_F than for all data (Foster et al. 2024).

There is no training: two passes over the data and one change of the weights.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.models.state import placement
from amun_ext.progress import progress_bar
from amun_ext.random_state import own_random_state
from amun_ext.saliency import batch_gradients, check_finite, trainable, zeros_for
from amun_ext.training import DataPart, Recipe, RunOptions
from amun_ext.training.parts import BatchLoader, split_sizes
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
    device, dtype = placement(model, forget.tensors[0])
    with own_random_state([device] if device.type == "cuda" else []):
        torch.manual_seed(run.seed)  # of transforms that draw
        feeds = [BatchLoader([DataPart(data)], device, dtype, run.num_workers) for data in (forget, retain)]
        (of_forget, count), (of_retain, others) = (_squares(model, weights, feed, recipe, run) for feed in feeds)
    mask = run.mask() if callable(run.mask) else run.mask
    with torch.no_grad():
        for number, (name, weight) in enumerate(weights.items()):
            own = of_forget[number] / count
            overall = (of_forget[number] + of_retain[number]) / (count + others)
            chosen = own > selection * overall
            if mask is not None:
                chosen &= mask[name].to(weight.device)
            factor = (dampening * overall / own).clamp(max=1)
            weight.copy_(torch.where(chosen, weight * factor, weight))


def _squares(
    model: nn.Module, weights: dict[str, nn.Parameter], feed: BatchLoader, recipe: Recipe, run: RunOptions
) -> tuple[list[Tensor], int]:
    """The squared derivatives of the mean cross-entropy of each batch, summed over the batches, and their number."""
    sizes = split_sizes(len(feed), recipe.batch_size)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(run.seed)
        read = feed.batches(0, recipe.batch_size, order)
        for x, labels, _ in progress_bar(run.progress, read, "SSD", unit="batch", total=len(sizes)):
            yield x, labels

    sums = zeros_for(weights.values())
    for size, grads in zip(sizes, batch_gradients(model, [*weights.values()], batches()), strict=True):
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += (grad.to(total.dtype) / size).square()
    check_finite("SSD", dict(zip(weights, sums, strict=True)))
    return sums, len(sizes)
