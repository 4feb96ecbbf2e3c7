"""Retraining from scratch without the forget set: what every other method is measured against."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext.checks import require
from amun_ext.training import PAPER_TRAINING, Part, Recipe, fit, reinitialised


def retrain(
    model: nn.Module,
    forget: TensorDataset,
    retain: TensorDataset | None,
    *,
    recipe: Recipe = PAPER_TRAINING,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Give `model` fresh weights, in place, and train it on `retain` alone with `recipe`, the original's.

    Fresh weights come from every module's `reset_parameters()`; InputError for a module that has none.
    """
    require(retain is not None, "retain", "given: retraining needs the retain set", "None")
    assert retain is not None
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        fresh = reinitialised(model)
    model.load_state_dict(fresh.state_dict())
    images, labels = retain.tensors
    fit(model, [Part(images, labels)], recipe, seed=seed, progress=progress, description="retrain")
