"""Fine-tuning (FT): go on training on the retain set, and let the rest fade (Warnecke et al. 2021)."""

from typing import Any

from torch import nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit

RECIPE = Recipe(epochs=10, lr=0.01)


def finetune(
    model: nn.Module, forget: TensorDataset, retain: Dataset[Any] | None, run: RunOptions, *, recipe: Recipe = RECIPE
) -> None:
    """Minimise the cross-entropy on D_R. The forget set is not looked at."""
    assert retain is not None
    fit(model, [Pass([DataPart(retain)])], recipe, run, description="FT")
