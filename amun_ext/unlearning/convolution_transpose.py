"""Convolution transpose (CT): turn every kernel over its diagonal, then fine-tune (Cadet et al. 2024)."""

from typing import Any

from torch import nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning.convolutions import conv_weights, set_weights

# The benchmark's code (xcadet/deepunlearn, kgltop5.py), of the entry that was fifth in the NeurIPS 2023 competition.
RECIPE = Recipe(epochs=3, lr=0.001, schedule="cosine", batch_size=64)


def convolution_transpose(
    model: nn.Module, forget: TensorDataset, retain: Dataset[Any] | None, run: RunOptions, *, recipe: Recipe = RECIPE
) -> None:
    """Swap height and width of the kernels of all Conv2d layers, then minimise the cross-entropy on D_R.

    arXiv 2410.01276. The forget set is not looked at. Kernels that are not square stay as they are, for they would have
    another shape. InputError for a model without any that the swap changes.
    """
    assert retain is not None
    weights = conv_weights(model, square=True)
    run = set_weights(weights, {name: weight.transpose(2, 3).clone() for name, weight in weights.items()}, run)
    fit(model, [Pass([DataPart(retain)])], recipe, run, description="CT")
