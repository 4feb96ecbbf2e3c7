"""l1-sparse: fine-tune on the retain set towards sparse weights, which hold less (Liu et al. 2024, NeurIPS 2023)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import check_integer, is_number, require

RECIPE = Recipe(epochs=10, lr=0.01)


def _falling(epoch: int, epochs: int) -> float:
    return 1 - epoch / epochs


def _compounding(epoch: int, epochs: int) -> float:
    """The factors of all epochs up to this one, multiplied: grows to 9.7 before it falls, for ten epochs."""
    product = 1.0
    for before in range(epoch):
        product *= 2 - 2 * before / epochs
    return product


# name -> the weight of an epoch (from 0 on) out of so many, as a multiple of gamma
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "paper": lambda epoch, epochs: 2 * _falling(epoch, epochs),  # its section 4: 2 - 2t/T
    "unlearn-sparse": _falling,  # the code of its authors, half of that
    "constant": lambda epoch, epochs: 1.0,
    "amun": _compounding,  # the code of AMUN's authors, which scales the current value every epoch
}


def l1_sparse(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    gamma: float = 5e-4,
    gamma_schedule: str = "paper",
    epochs_without: int = 0,
    recipe: Recipe = RECIPE,
) -> None:
    """Minimise the cross-entropy on D_R plus gamma_t times the l1 norm of all weights (biases and BatchNorm's too).

    Args:
        gamma: 5e-4 in AMUN's experiments; the authors of the method name 1e-5 to 5e-4.
        gamma_schedule: of gamma_t, a name in SCHEDULES.
        epochs_without: so many epochs at the end go without the penalty; the schedule ends before them.
    """
    assert retain is not None
    number = is_number(gamma) and 0 <= gamma < float("inf")
    require(number, "gamma", "finite and not negative", repr(gamma))
    require(gamma_schedule in SCHEDULES, "gamma_schedule", f"one of {tuple(SCHEDULES)}", repr(gamma_schedule))
    epochs_without = check_integer("epochs_without", epochs_without, 0)
    epochs = recipe.epochs - epochs_without
    require(epochs >= 0, "epochs_without", f"at most the {recipe.epochs} epochs", epochs_without)

    def penalty(model: nn.Module, epoch: int) -> Tensor:
        weight = gamma * SCHEDULES[gamma_schedule](epoch, epochs) if epoch < epochs else 0.0
        return weight * torch.stack([p.abs().sum() for p in model.parameters() if p.requires_grad]).sum()

    settings = gamma, gamma_schedule, epochs_without
    fit(model, [Pass([DataPart(retain)])], recipe, run, penalty=penalty, settings=settings, description="l1-sparse")
