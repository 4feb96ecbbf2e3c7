"""Out-of-fold distillation: teach the forget set what models say of it that were never trained on it."""

import math
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.models.state import count_classes
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import is_number, require

RECIPE = Recipe(epochs=20, lr=0.05, schedule="cosine")


def distill(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    targets: Tensor,
    weight: float = 2.0,
    temperature: float = 1.0,
    recipe: Recipe = RECIPE,
) -> None:
    """Minimise the cross-entropy on D_F with soft labels, and on D_R with its own labels, if it is there.

    A retrained model has never seen D_F; what it would say of a sample is estimated by a model that was trained on
    other samples. The estimate can be prepared before any request: see `amun_ext.unlearning.prepare`.

    Args:
        targets: logits [N, classes] of the forget samples, row by row, of models that were not trained on them. The
            soft labels are softmax(targets / temperature).
        weight: of a forget sample in the loss, where a retain sample has the weight 1; without D_R all have 1.
    """
    for name, value in (("weight", weight), ("temperature", temperature)):
        require(is_number(value) and 0 < value < math.inf, name, "a positive, finite number", repr(value))
    expected = (len(forget), count_classes(model, forget[:2][0]))
    actual = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
    require(actual == expected, "targets", f"logits {expected} of the forget samples", actual)
    require(bool(targets.isfinite().all()), "targets", "finite", "NaN or infinite logits")
    soft_labels = (targets.double() / temperature).softmax(1)
    if retain is None:
        parts = [DataPart(forget, targets=soft_labels)]
    else:
        parts = [DataPart(forget, targets=weight * soft_labels), DataPart(retain)]
    fit(model, [Pass(parts)], recipe, run, description="distill")
