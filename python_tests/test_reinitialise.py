"""Fresh weights: what is drawn anew, what stays, and what is refused since it cannot be drawn."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from training_tools import equal, state

from amun_ext import InputError
from amun_ext.models.reinitialise import reinitialised
from amun_ext.training import Recipe
from amun_ext.unlearning import unlearn


class Normalising(nn.Module):
    """As the README has it: the constants of a normalisation inside, and a counter of what it has seen, if wanted."""

    def __init__(self, counts: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.3))
        self.counts, self.linear = counts, nn.Linear(4, 2)

    def forward(self, x):
        if self.counts and self.training:
            self.mean += 0.1 * (x.mean() - self.mean)
        return self.linear(x - self.mean)


def backbone() -> nn.Sequential:
    made = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    made[1].running_mean.fill_(7)
    return made


def test_weights_are_new_and_the_model_is_unchanged() -> None:
    model = nn.Sequential(*backbone(), nn.Linear(2, 2))
    before = state(model)
    fresh = reinitialised(model)
    assert equal(model, before)
    assert not torch.equal(fresh[0].weight, model[0].weight)
    assert (fresh[1].running_mean == 0).all()


def test_constants_are_kept() -> None:
    model = Normalising()
    fresh = reinitialised(model, torch.rand(2, 4))
    assert fresh.mean == model.mean
    assert not torch.equal(fresh.linear.weight, model.linear.weight)


def test_a_buffer_that_training_changes_is_refused() -> None:
    with pytest.raises(InputError, match="got old mean"):
        reinitialised(Normalising(counts=True), torch.rand(2, 4))


def test_a_frozen_backbone_is_retrained_with() -> None:
    """Its weights and statistics stay, bit by bit; the head is drawn anew."""
    model = nn.Sequential(backbone().requires_grad_(False), nn.Linear(8, 2))
    before, data = state(model), TensorDataset(torch.rand(6, 1, 4, 4), torch.tensor([0, 1] * 3))
    rows = [TensorDataset(*data[:2]), TensorDataset(*data[2:])]
    fresh = reinitialised(model)
    assert not any(each.requires_grad for each in fresh[0].parameters())
    for made in (fresh, unlearn(model, *rows, method="retrain", recipe=Recipe(1, 0.1, batch_norm="frozen"))):
        for name, tensor in made.state_dict().items():
            assert torch.equal(tensor, before[name]) == name.startswith("0.")


def test_a_single_sample_is_retrained_on() -> None:
    data = [TensorDataset(torch.rand(1, 4), torch.tensor([number])) for number in (0, 1)]
    made = unlearn(Normalising(), *data, method="retrain", recipe=Recipe(1, 0.1))
    assert all(each.isfinite().all() for each in made.parameters())
