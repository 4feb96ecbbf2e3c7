"""TRADES: the worst neighbour where it is known, the loss by hand, and networks that are harder to fool."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import data, models
from amun_ext.recipe import TRADES, Trades
from amun_ext.training import DataPart, Pass, Recipe, fit
from amun_ext.training.trades import robust_loss, worst_neighbour
from amun_ext.validation import InputError


def line() -> nn.Module:
    """Two classes, of which the second gains along (3, -4)."""
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, -4.0]]))
    return model


@pytest.mark.parametrize(
    ("norm", "direction"), [("l2", torch.tensor([0.6, -0.8])), ("linf", torch.tensor([1.0, -1.0]))]
)
@pytest.mark.same_inputs
def test_the_worst_neighbour_of_a_linear_model(norm: str, direction: torch.Tensor) -> None:
    x = torch.full((6, 2), 0.5, dtype=torch.float64) + 0.01 * torch.rand(6, 2, dtype=torch.float64)
    model, how = line(), Trades(norm, eps=0.1, step=0.05, steps=20)
    moved = worst_neighbour(model, x, model(x).detach(), how) - x
    ends = 0.1 * direction.double()
    distance = torch.stack([(moved - sign * ends).norm(dim=1) for sign in (1, -1)]).amin(0)
    assert (distance < 1e-4).all()


@pytest.mark.parametrize("name", TRADES)
def test_neighbours_are_in_the_ball_and_in_the_box(name: str) -> None:
    how, x = TRADES[name], torch.rand(8, 1, 4, 4).round()  # at the edges of the box
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    found = worst_neighbour(model, x, model(x).detach(), how)
    order = 2 if how.norm == "l2" else torch.inf
    assert (torch.linalg.vector_norm(found - x, order, dim=(1, 2, 3)) <= how.eps * (1 + 1e-5)).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.equal(found, x)


def test_the_loss_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    model, x, how = line(), torch.rand(5, 2, dtype=torch.float64), TRADES["trades-l2"]
    with torch.random.fork_rng():
        loss = robust_loss(model, x, model(x), how)
    neighbour = worst_neighbour(model, x, model(x).detach(), how)
    own, other = model(x).softmax(1), model(neighbour).softmax(1)
    by_hand = how.beta * (own * (own / other).log()).sum()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-5, atol=1e-7)
    assert loss.requires_grad


@pytest.mark.same_inputs
def test_a_robust_training_keeps_the_answers_of_neighbours_together() -> None:
    name = "trades-l2"
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (100,), generator=random)
    images = (0.3 * torch.rand(100, 1, 4, 4, generator=random) + 0.3 * labels[:, None, None, None]).clamp(0, 1)
    apart = []
    for robust in (None, name):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        nn.init.zeros_(model[1].weight)
        fit(model, [Pass([DataPart(TensorDataset(images, labels))])], Recipe(20, 0.1, batch_size=20, robust=robust))
        assert (model(images).argmax(1) == labels).double().mean() > 0.9
        apart.append(robust_loss(model, images, model(images).detach(), TRADES[name]).item())
    assert apart[1] < apart[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attack"), [("trades-linf", "PGD"), ("trades-l2", "PGDL2")])
def test_a_robust_network_withstands_the_pgd_of_another_package(name: str, attack: str) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    splits, how, robust = data.load("fashion-mnist-mini"), TRADES[name], {}
    images, labels = splits.test[:300]
    for training in (None, name):
        torch.manual_seed(0)
        model = models.build("small-cnn", num_classes=10, in_channels=1)
        recipe = Recipe(4, 0.05, schedule="cosine", batch_size=64, robust=training)
        fit(model, [Pass([DataPart(splits.train)])], recipe)
        torch.manual_seed(0)
        attacked = getattr(torchattacks, attack)(model.eval(), eps=how.eps, alpha=how.eps / 4, steps=20)(images, labels)
        robust[training] = models.accuracy(models.predict(model, attacked), labels)
    assert robust[name] > robust[None] + 10


def test_bad_settings_are_refused() -> None:
    for argument, value in (("robust", "pgd"), ("spectral_norm", 0.0)):
        with pytest.raises(InputError, match=f"{argument} must be"):
            Recipe(1, 0.1, **{argument: value})
