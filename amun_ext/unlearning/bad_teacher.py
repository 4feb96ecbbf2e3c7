"""Bad teacher: learn D_F from an untrained model and D_R from the original (Chundawat et al. 2023)."""

from typing import Any

from torch import nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.models.reinitialise import Init, describe_init
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.training.parts import random_part
from amun_ext.unlearning.retrain import untrained_copy
from amun_ext.unlearning.teachers import soft_labels_of
from amun_ext.validation import is_number, require

# Its authors' code (vikram2000b/bad-teaching-unlearning): Adam, one epoch.
RECIPE = Recipe(epochs=1, lr=1e-4, batch_size=256, optimizer="adamw", weight_decay=0.0)


def bad_teacher(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    retain_fraction: float = 0.3,
    init: Init = None,
    recipe: Recipe = RECIPE,
) -> None:
    """Minimise KL(untrained || model) on D_F and KL(original || model) on D_R, if it is there, shuffled together.

    arXiv 2205.08096, at its temperature of 1.

    Args:
        retain_fraction: of D_R, a random part that is trained on in every epoch; 0.3 in the authors' code.
        init: where the untrained model comes from, see `amun_ext.unlearning.retrain.retrain`.
    """
    fraction = is_number(retain_fraction) and 0 < retain_fraction <= 1
    require(fraction, "retain_fraction", "in (0, 1]", repr(retain_fraction))
    incompetent = untrained_copy(model, forget, run.seed, init)
    parts = [DataPart(forget, targets=soft_labels_of(incompetent))]
    if retain is not None:
        count = max(1, int(retain_fraction * len(retain)))  # type: ignore[arg-type]
        parts.append(DataPart(random_part(retain, count, run.seed), targets=soft_labels_of(model)))
    fit(model, [Pass(parts)], recipe, run, settings=(retain_fraction, describe_init(init)), description="bad teacher")
