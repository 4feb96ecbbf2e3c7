"""Retraining from scratch without the forget set: what every other method is measured against."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.models.reinitialise import Init, deep_copy, untrained
from amun_ext.models.state import placement
from amun_ext.random_state import cuda_devices, own_random_state
from amun_ext.training import PAPER_TRAINING, DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import require


def retrain(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    recipe: Recipe = PAPER_TRAINING,
    init: Init = None,
) -> None:
    """Reinitialise `model` in place and train it on `retain` alone with `recipe`, that of the original.

    init: a function without arguments that builds the model, called under the seed; or the initial state dict of a
    fine-tuned model. None draws weights by every module's `reset_parameters()`. Frozen parameters keep their values,
    and so do constant buffers without `init`.
    InputError for a mask, and without `init` for trainable weights that no `reset_parameters()` draws.
    """
    assert retain is not None
    require(run.mask is None, "mask", "left out: retraining changes all weights", "one")
    _retrain_in_place(model, retain, run, recipe, init)


def train_from_scratch(model: nn.Module, data: Dataset[Any], recipe: Recipe, seed: int, init: Init = None) -> nn.Module:
    """A copy of `model`, untrained (see `retrain`), and then trained on `data`."""
    fresh = deep_copy(model)
    _retrain_in_place(fresh, data, RunOptions(seed=seed), recipe, init)
    return fresh


def untrained_copy(model: nn.Module, data: Dataset[Any], seed: int, init: Init = None) -> nn.Module:
    """A copy of `model` as it was before it was trained on inputs like those of `data`; see `retrain`."""
    with own_random_state(cuda_devices(model)):
        probe = _probe(model, data)  # before the seed: an item may be drawn by a transform
        torch.manual_seed(seed)
        return untrained(model, init, probe)


def _retrain_in_place(model: nn.Module, data: Dataset[Any], run: RunOptions, recipe: Recipe, init: Init) -> None:
    fresh = untrained_copy(model, data, run.seed, init)
    model.load_state_dict(fresh.state_dict())
    buffers = dict(fresh.named_buffers())  # among them some that are in no state dict, and have learned all the same
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    fit(model, [Pass([DataPart(data)])], recipe, run, description="retrain")


def _probe(model: nn.Module, data: Dataset[Any]) -> Tensor:
    """Two of the inputs, where there are two, as the model wants them: BatchNorm has no variance of one."""
    count = min(2, len(data))  # type: ignore[arg-type]
    inputs = torch.stack([data[row][0] for row in range(count)])
    device, dtype = placement(model, inputs)
    return inputs.to(device, dtype, copy=True)
