"""fit in a process group: the ranks share each batch, and all have the weights of one process."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import rank_tools
import torch
from rank_tools import run_ranks
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import distributed
from amun_ext.training import DataPart, Epoch, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning import unlearn

RECIPE = Recipe(epochs=3, lr=0.1, batch_size=8, augment=True, weight_decay=1e-3)


class Net(nn.Module):
    """With a layer that only some batches reach: a rank may have no gradient of it, or all of them none."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv, self.head, self.rare = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3), nn.Linear(4 * 36, 3)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(x)).relu().flatten(1)
        logits = self.head(features)
        bright = x.flatten(1).mean(1) > 0.55
        return logits + bright[:, None] * self.rare(features) if bright.any() else logits


def problem(norm: bool = False) -> tuple[Net, TensorDataset]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(norm).double().to(rank_tools.place)
        images = torch.rand(25, 1, 8, 8).double()  # in batches of 8, 8 and 9
        return model, TensorDataset(images, torch.randint(0, 3, (25,)))


def trained(recipe: Recipe = RECIPE, norm: bool = False, **options: object) -> tuple[dict[str, Tensor], list[Epoch]]:
    model, data = problem(norm)
    soft = torch.full((9, 3), 1 / 3).double()
    parts = [
        DataPart(TensorDataset(*data[:9]), targets=soft, augment=False),
        DataPart(TensorDataset(*data[9:])),
    ]
    history = fit(model, [Pass(parts)], recipe, RunOptions(seed=3, **options))
    return {name: value.cpu() for name, value in model.state_dict().items()}, history


def train_in_many_ways(folder: Path) -> dict[str, object]:
    results: dict[str, object] = {"plain": trained(), "norm": trained(norm=True)}
    results["accumulated"] = trained(replace(RECIPE, accumulation_steps=2))
    results["tiny"] = trained(replace(RECIPE, batch_size=1))  # fewer samples than ranks
    model, data = problem()
    forgotten = unlearn(model, TensorDataset(*data[:5]), TensorDataset(*data[5:]), method="amun", recipe=RECIPE)
    results["amun"] = forgotten.cpu().state_dict()
    try:
        trained(replace(RECIPE, lr=0.1 + 0.1 * distributed.rank()))
    except ValueError as error:
        results["other"] = str(error)
    return {"rank": distributed.rank(), **results}


def check_equal(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_ranks_have_the_weights_and_losses_of_one_process(ranks: int, device: str, tmp_path: Path) -> None:
    outcomes = run_ranks(train_in_many_ways, ranks, tmp_path, device)
    model, data = problem()
    alone = {
        "plain": trained(),
        "accumulated": trained(replace(RECIPE, accumulation_steps=2)),
        "tiny": trained(replace(RECIPE, batch_size=1)),
        "amun": unlearn(model, TensorDataset(*data[:5]), TensorDataset(*data[5:]), method="amun", recipe=RECIPE),
    }
    for outcome in outcomes:
        assert not isinstance(outcome, str), outcome
        for name in ("plain", "accumulated", "tiny"):
            (weights, history), (expected, epochs) = outcome[name], alone[name]
            check_equal(weights, expected)
            assert [epoch.loss for epoch in history] == pytest.approx([epoch.loss for epoch in epochs], rel=1e-6)
        check_equal(outcome["amun"], alone["amun"].state_dict())
        for name, value in outcomes[0]["norm"][0].items():  # of other statistics than one process has, but all the same
            assert torch.equal(outcome["norm"][0][name], value)
        assert "training must be the same on every rank" in outcome["other"]


def killed_in_the_second_epoch(folder: Path) -> None:
    def end(epoch: Epoch) -> None:
        if epoch.number == 2 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trained(norm=True, checkpoint=folder / "checkpoint", on_epoch=end)


def resumed(folder: Path) -> tuple[dict[str, Tensor], int]:
    weights, history = trained(norm=True, checkpoint=folder / "checkpoint")
    return weights, len(history)


def whole(folder: Path) -> dict[str, Tensor]:
    return trained(norm=True)[0]


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_training_resumes(tmp_path: Path) -> None:
    first, second = run_ranks(killed_in_the_second_epoch, 2, tmp_path)
    assert "RankError: another rank has ended or does not answer" in first
    assert second == -signal.SIGKILL
    by_another_number = trained(norm=True, checkpoint=Path(shutil.copy(tmp_path / "checkpoint", tmp_path / "copy")))
    assert len(by_another_number[1]) == RECIPE.epochs
    expected = run_ranks(whole, 2, tmp_path)[0]
    for weights, epochs in run_ranks(resumed, 2, tmp_path):
        assert epochs == RECIPE.epochs
        for name, value in expected.items():
            assert torch.equal(weights[name], value)
