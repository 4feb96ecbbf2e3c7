"""Gradient ascent (GA): climb the loss of the forget set (Thudi et al. 2022)."""

from typing import Any

from torch import nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit

# Unlearn-Sparse's authors name 5 epochs and 5e-4 to 1e-3 for random forget sets; a few times that destroys a model.
RECIPE = Recipe(epochs=5, lr=5e-4)


def gradient_ascent(
    model: nn.Module, forget: TensorDataset, retain: Dataset[Any] | None, run: RunOptions, *, recipe: Recipe = RECIPE
) -> None:
    """In every epoch descend the cross-entropy on D_R, if it is there, then climb it on D_F with its true labels."""
    passes = [] if retain is None else [Pass([DataPart(retain)])]
    fit(model, [*passes, Pass([DataPart(forget)], ascend=True)], recipe, run, description="GA")
