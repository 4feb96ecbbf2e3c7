"""amun plan: what is measured, the arithmetic, and the command."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import cli
from amun_ext.deletion import estimate
from amun_ext.deletion.estimate import Cost, Costs
from amun_ext.deletion.plan import Sizes, plan, summary
from amun_ext.recipe import Recipe
from amun_ext.unlearning.config import resolve_config

COSTS = Costs(
    search=Cost(1.0, 0.5),
    gradients=12.0,
    search_batch=32,
    tuning=Cost(0.0, 0.1),
    retraining=Cost(0.0, 0.1),
    alone=Cost(0.0, 0.1),
    prediction=Cost(0.0, 0.01),
    weights=4000,
    trained=4000,
    activations=1000,
    largest=500,
    image=400,
    stored=100,
    classes=10,
)
SIZES = Sizes(forget=100, retain=900, test=200, references=8, devices=1, bandwidth=1e9)
CONFIG = resolve_config("amun", default={"include_forget": False, "recipe": Recipe(epochs=2, lr=0.1, batch_size=100)})
ORIGINAL = Recipe(epochs=10, lr=0.1, batch_size=100)


def stages(costs: Costs = COSTS, **sizes: float):
    return {each.name: each for each in plan(costs, SIZES._replace(**sizes), CONFIG, ORIGINAL)}


class TestArithmetic:
    def test_of_one_device(self) -> None:
        made = stages()
        seconds = {"search": 1 + 100 * 0.5, "unlearning": 2 * 1000 * 0.1, "retraining": 10 * 900 * 0.1}
        seconds |= {"8 references": 8 * (10 * 600 * 0.1 + 1200 * 0.01), "evaluation": 3 * 1200 * 0.01}
        assert {name: each.seconds for name, each in made.items()} == pytest.approx(seconds)
        assert all(each.sent_bytes == each.messages == each.network_seconds == 0 for each in made.values())
        assert "8 references takes 80 %" in summary([*made.values()])

    def test_of_four_devices(self) -> None:
        made = stages(devices=4)
        assert made["search"].seconds == pytest.approx(1 + 25 * 0.5, rel=1e-3)
        assert made["unlearning"].seconds == pytest.approx(2 * 1000 * 0.1 / 4, rel=1e-3)
        assert made["unlearning"].messages == 20
        assert made["unlearning"].sent_bytes == 20 * 2 * 3 / 4 * 4000
        assert made["8 references"].seconds == stages()["8 references"].seconds / 4
        assert made["evaluation"] == stages()["evaluation"]._replace(limit="one process")

    def test_names_what_limits(self) -> None:
        limits = {name: each.limit for name, each in stages(devices=64, bandwidth=1.0).items()}
        assert limits["search"] == limits["unlearning"] == "network"
        assert limits["8 references"] == "whole models, 8 for 64 devices"
        slow = stages(COSTS._replace(tuning=Cost(0.0, 0.5)), devices=50)
        assert slow["unlearning"].limit == "small parts of a batch, 2 of 100"

    def test_memory_does_not_grow_with_images_that_are_read_when_used(self) -> None:
        lazy = COSTS._replace(stored=0)
        assert stages(lazy)["unlearning"].memory_bytes == stages(lazy, retain=10**6)["unlearning"].memory_bytes
        assert stages()["unlearning"].memory_bytes == stages(lazy)["unlearning"].memory_bytes + 100 * (2 * 1000 + 200)


class TestMeasure:
    def test_cost_is_what_comes_once_and_what_each_repetition_takes(self) -> None:
        now = 0.0

        def work(count: int) -> None:
            nonlocal now
            now += 2 + 3 * count

        assert estimate._cost(work, lambda: now) == Cost(2, 3)

    def test_of_a_small_network(self) -> None:
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        before = [weight.clone() for weight in model.parameters()]
        images = torch.rand(5, 4)
        costs = estimate.measure(model, TensorDataset(images, model(images).argmax(1)), CONFIG, ORIGINAL, devices=4)
        assert costs.weights == costs.trained == 4 * (5 * 8 + 9 * 3)
        assert 4 * (4 + 8) <= costs.activations <= 4 * (4 + 8 + 3) + 16
        assert (costs.largest, costs.image, costs.stored, costs.classes) == (32, 16, 16, 3)
        assert 1 <= costs.gradients <= 26
        assert costs.retraining == costs.tuning != costs.alone
        assert all(map(torch.equal, model.parameters(), before))


class TestCommand:
    def test_prints_a_table_or_json(self, digits_checkpoint: Path, capsys) -> None:
        command = ["plan", "--model", str(digits_checkpoint), "--data", "digits", "--device", "cpu", "--forget", "50"]
        assert cli.main([*command, "--devices", "4", "--train", "10000"]) == 0
        assert "unlearning" in capsys.readouterr().out
        assert cli.main([*command, "--references", "6", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [each["name"] for each in told["stages"]][3] == "6 references"

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (["--forget", "99999"], "--forget"),
            (["--forget", "5", "--bandwidth", "0"], "--bandwidth"),
            (["--forget", "5", "--method", "ft"], "--method"),
        ],
    )
    def test_names_a_bad_option(self, digits_checkpoint: Path, capsys, options: list[str], reason: str) -> None:
        command = ["plan", "--model", str(digits_checkpoint), "--data", "digits", "--device", "cpu"]
        assert cli.main([*command, *options]) == 2
        assert reason in capsys.readouterr().err
