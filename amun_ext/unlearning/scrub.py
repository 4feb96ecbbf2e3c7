"""SCRUB: move away from the original on D_F and stay with it on D_R (Kurmanji et al. 2023)."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning.teachers import soft_labels_of
from amun_ext.validation import check_integer, is_number, require

# Its authors' code for their large sets (meghdadk/SCRUB, large_scale_unlearning.ipynb).
RECIPE = Recipe(epochs=3, lr=5e-4)


def scrub(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    kl_weight: float = 0.001,
    label_weight: float = 0.99,
    ascent_epochs: int = 2,
    recipe: Recipe = RECIPE,
) -> None:
    """In every epoch minimise KL(original || model) and the cross-entropy on D_R; in the first ones climb
    KL(original || model) on D_F before that.

    arXiv 2302.09880, whose formulas have no temperature. The authors' code divides logits by 2 or 4, and has batches of
    another size on D_F.

    Args:
        kl_weight: alpha, of KL(original || model) on D_R.
        label_weight: gamma, of the cross-entropy on D_R.
        ascent_epochs: so many epochs at the beginning have the pass over D_F.
    """
    assert retain is not None
    for name, value in (("kl_weight", kl_weight), ("label_weight", label_weight)):
        require(is_number(value) and 0 <= value < math.inf, name, "finite and not negative", repr(value))
    ascent_epochs = check_integer("ascent_epochs", ascent_epochs, 0)
    original = soft_labels_of(model)

    def both(x: Tensor, labels: Tensor) -> Tensor:
        soft = original(x, labels)
        return kl_weight * soft + label_weight * F.one_hot(labels, soft.shape[1]).to(soft.dtype)

    passes = [
        Pass([DataPart(forget, targets=original)], ascend=True, epochs=ascent_epochs),
        Pass([DataPart(retain, targets=both)]),
    ]
    fit(model, passes, recipe, run, settings=(kl_weight, label_weight), description="SCRUB")
