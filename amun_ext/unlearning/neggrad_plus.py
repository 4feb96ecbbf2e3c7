"""NegGrad+: descend the loss of D_R and climb that of D_F in the same steps (Kurmanji et al. 2023)."""

from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.models.state import count_classes
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, Teacher, fit
from amun_ext.validation import is_number, require

# Its authors' code for their small sets (meghdadk/SCRUB, small_scale_unlearning.ipynb): plain SGD.
RECIPE = Recipe(epochs=10, lr=0.01, momentum=0.0, weight_decay=0.0)


def neggrad_plus(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    beta: float = 0.95,
    recipe: Recipe = RECIPE,
) -> None:
    """Minimise beta * (mean cross-entropy on D_R) - (1 - beta) * (mean cross-entropy on D_F).

    arXiv 2302.09880. Both sets are shuffled together, each sample with the weight that makes the mean over
    an epoch this sum; the authors' code goes through D_F many times instead, a batch of it beside every batch of D_R.

    Args:
        beta: 0.95 for the authors' small sets, 0.9999 for their large ones; 1 is fine-tuning on D_R.
    """
    assert retain is not None
    require(is_number(beta) and 0 <= beta <= 1, "beta", "in [0, 1]", repr(beta))
    classes = count_classes(model, forget[:2][0])
    sizes = len(forget), len(retain)  # type: ignore[arg-type]

    def weighted(share: float, size: int) -> Teacher:
        return lambda x, labels: share * sum(sizes) / size * F.one_hot(labels, classes).double()

    parts = [
        DataPart(forget, targets=weighted(beta - 1, sizes[0])),
        DataPart(retain, targets=weighted(beta, sizes[1])),
    ]
    fit(model, [Pass(parts)], recipe, run, settings=beta, description="NegGrad+")
