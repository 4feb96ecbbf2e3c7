"""The training loop: its arithmetic against torch.optim by hand, its schedules, and what it leaves behind."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import training_tools
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from training_tools import TRAININGS, Noisy

from amun_ext import InputError
from amun_ext.models.reinitialise import reinitialised
from amun_ext.training import DataPart, Epoch, Pass, Recipe, RunOptions, crop_and_flip, fit
from amun_ext.unlearning import unlearn

# Python 3.12 and later warn where a process with threads makes another, as DataLoader does
FORKS = "ignore:.*multi-threaded, use of fork:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(FORKS)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def part(count: int = 20, **options: bool) -> DataPart:
    return DataPart(TensorDataset(torch.rand(count, 1, 3, 4), torch.randint(0, 3, (count,))), **options)


def conv_net(norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    layers = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), *layers, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * 36, 3)
    )


def pictures(count: int = 20, shift: float = 0.0) -> TensorDataset:
    return TensorDataset(torch.rand(count, 2, 8, 8) + shift, torch.randint(0, 3, (count,)))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Items(Dataset):
    """A dataset that is read item by item."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        return image, int(label)


class TestRecipe:
    def test_schedules(self) -> None:
        factors = {
            name: [Recipe(4, 1.0, name).lr_factor(epoch) for epoch in range(4)] for name in ("constant", "cosine")
        }
        assert factors["constant"] == [1, 1, 1, 1]
        assert factors["cosine"] == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
        assert [Recipe(6, 1.0, "step:2").lr_factor(epoch) for epoch in range(6)] == pytest.approx(
            [1, 1, 0.1, 0.1, 0.01, 0.01]
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"epochs": 0},
            {"epochs": 1.5},
            {"lr": -1.0},
            {"lr": float("nan")},
            {"batch_size": 0},
            {"momentum": -0.1},
            {"weight_decay": float("inf")},
            {"schedule": "step:0"},
            {"schedule": "linear"},
            {"schedule": "step:"},
            {"lr": "0.1"},
            {"momentum": 1.0},
            {"batch_norm": "off"},
            {"precision": "half"},
            {"precision": []},
            {"accumulation_steps": 0},
            {"augment": "no"},
            {"channels_last": 1},
        ],
    )
    def test_bad_settings(self, change: dict) -> None:
        with pytest.raises(InputError, match=f"^{next(iter(change))} must be"):
            Recipe(**{"epochs": 1, "lr": 0.1} | change)


class TestFit:
    def test_one_full_batch_is_one_step_of_sgd(self) -> None:
        model, data = net(), part()
        expected = net()
        expected.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(expected.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
        for lr in (0.3, 0.03):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            images, labels = data.data.tensors
            nn.functional.cross_entropy(expected(images), labels).backward()
            optimizer.step()
        fit(model, [Pass([data])], Recipe(2, 0.3, "step:1", batch_size=20))
        torch.testing.assert_close(model.state_dict(), expected.state_dict())

    def test_lr_zero_changes_no_weight(self) -> None:
        model = net()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fit(model, [Pass([part()])], Recipe(3, 0.0))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    def test_seed_decides_and_the_random_state_is_put_back(self) -> None:
        data, start = part(50), net()
        results = []
        for seed in (0, 0, 1):
            model = nn.Sequential(nn.Dropout(0.5), net()).eval()
            model[1].load_state_dict(start.state_dict())
            state = torch.get_rng_state()
            fit(model, [Pass([data])], Recipe(2, 0.1, batch_size=16), RunOptions(seed=seed))
            assert torch.equal(state, torch.get_rng_state())
            assert not model.training
            results.append(model[1][1].weight)
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_parts_are_shuffled_together_and_every_sample_is_seen_once_an_epoch(self) -> None:
        class Recording(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.seen = nn.Linear(12, 3), []

            def forward(self, x):
                self.seen.append(x[:, 0, 0, 0].tolist())
                return self.linear(x.flatten(1))

        model, labels = Recording(), torch.zeros(33, dtype=torch.long)
        values = torch.arange(66.0).view(66, 1, 1, 1).expand(66, 1, 3, 4) / 66
        parts = [DataPart(TensorDataset(some, labels)) for some in (values[:33], values[33:])]
        fit(model, [Pass(parts)], Recipe(1, 0.1, batch_size=13))
        assert [len(batch) for batch in model.seen] == [13, 13, 13, 13, 14]  # no batch of one: BatchNorm
        assert sorted(value for batch in model.seen for value in batch) == values[:, 0, 0, 0].tolist()
        assert any(min(batch) < 0.5 < max(batch) for batch in model.seen)

    def test_divergence_is_an_error(self) -> None:
        with pytest.raises(FloatingPointError, match=r"train: the (loss is|weights are) .*; lower lr \(now 1e\+30\)"):
            fit(net(), [Pass([part()])], Recipe(30, 1e30))

    def test_the_last_step_may_not_diverge_either(self) -> None:
        """The loss is that before a step; of a single one it says nothing about what has become of the weights."""
        with pytest.raises(FloatingPointError, match="train: the weights are no longer finite; lower lr"):
            fit(
                net(), [Pass([DataPart(TensorDataset(100 * torch.ones(3, 1, 3, 4), torch.arange(3)))])], Recipe(1, 3e38)
            )

    def test_adversarial_parts_are_not_augmented(self) -> None:
        class Recording(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.seen = nn.Linear(64, 2), []

            def forward(self, x):
                self.seen.append(x.clone())
                return self.linear(x.flatten(1))

        model, labels = Recording(), torch.zeros(40, dtype=torch.long)
        plain, moved = torch.rand(40, 1, 8, 8) + 1, torch.rand(40, 1, 8, 8) + 3
        fit(
            model,
            [Pass([DataPart(TensorDataset(plain, labels), augment=False), DataPart(TensorDataset(moved, labels))])],
            Recipe(1, 0.1, batch_size=80, augment=True),
        )
        (seen,) = model.seen
        kept = seen[[bool(((image >= 1) & (image < 2)).all()) for image in seen]]
        assert {tuple(image.flatten().tolist()) for image in kept} == {
            tuple(image.flatten().tolist()) for image in plain
        }
        originals = {tuple(image.flatten().tolist()) for image in moved}
        others = [tuple(image.flatten().tolist()) for image in seen if image.max() >= 3 or image.min() == 0]
        assert sum(image in originals for image in others) < 10

    @pytest.mark.parametrize("accumulation_steps", [1, 2])
    def test_one_sample_is_enough_where_batchnorm_does_not_ask_for_two(self, accumulation_steps: int) -> None:
        one, norm = [Pass([part(1)])], nn.Sequential(nn.BatchNorm2d(1), net())
        fit(net(), one, Recipe(2, 0.1, accumulation_steps=accumulation_steps))
        for mode in ("frozen", "eval"):
            fit(norm, one, Recipe(2, 0.1, batch_norm=mode))
        with pytest.raises(InputError, match=r"^parts must be at least two samples: BatchNorm .*, got 1"):
            fit(norm, one, Recipe(2, 0.1))

    def test_an_empty_part_adds_nothing(self) -> None:
        data, empty = part(), TensorDataset(torch.rand(0, 1, 3, 4), torch.zeros(0, dtype=torch.long))
        first, second = net(), net()
        second.load_state_dict(first.state_dict())
        fit(first, [Pass([data])], Recipe(2, 0.1, batch_size=8))
        told = DataPart(empty, labels=lambda epoch: torch.zeros(0, dtype=torch.long))
        fit(second, [Pass([told, DataPart(Items(empty)), data])], Recipe(2, 0.1, batch_size=8))
        assert torch.equal(first[1].weight, second[1].weight)
        with pytest.raises(InputError, match=r"^parts must be at least one sample, got 0"):
            fit(net(), [Pass([data]), Pass([DataPart(empty)])], Recipe(1, 0.1))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_soft_labels_against_a_plain_loop(self, dtype: torch.dtype) -> None:
        """A full batch of samples with labels (weight 1) and of samples with targets, whose rows sum to 2."""
        model, hard, soft = net().to(dtype), part(12), part(8)
        expected = copy.deepcopy(model)
        optimizer = torch.optim.SGD(expected.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
        targets = 2 * torch.linspace(-1, 1, 24).view(8, 3).softmax(1)
        images, labels = (torch.cat(pair) for pair in zip(hard.data.tensors, soft.data.tensors, strict=True))
        for _ in range(2):
            optimizer.zero_grad()
            logits = expected(images.to(dtype))
            loss = nn.functional.cross_entropy(logits[:12], labels[:12], reduction="sum")
            loss = loss - (targets * logits[12:].log_softmax(1)).sum()
            (loss / 20).backward()
            optimizer.step()
        fit(model, [Pass([hard, DataPart(soft.data, targets=targets)])], Recipe(2, 0.3, batch_size=20))
        torch.testing.assert_close(model.state_dict(), expected.state_dict())

    @pytest.mark.parametrize("kind", [lambda data: data, Items])
    def test_soft_labels_of_one_class_are_labels(self, kind) -> None:
        first, second, hard, soft = net(), net(), part(12), part(8)
        second.load_state_dict(first.state_dict())
        one_hot = nn.functional.one_hot(soft.data.tensors[1], 3).float()
        recipe = Recipe(2, 0.1, batch_size=8)
        fit(first, [Pass([hard, soft])], recipe)
        fit(second, [Pass([hard, DataPart(kind(soft.data), targets=one_hot)])], recipe)
        torch.testing.assert_close(second.state_dict(), first.state_dict())

    def test_bad_targets(self) -> None:
        data, labels = part(4).data, torch.zeros(4, dtype=torch.long)
        for targets in (
            torch.ones(3, 3),
            torch.ones(4),
            labels,
            [[1.0]] * 4,
            torch.full((4, 3), torch.nan),
            torch.ones(4, 2),
        ):
            with pytest.raises(InputError, match=r"^targets must be"):
                fit(net(), [Pass([DataPart(data, targets=targets)])], Recipe(1, 0.1))
        both = DataPart(data, labels=lambda epoch: labels, targets=torch.ones(4, 3))
        with pytest.raises(InputError, match=r"^targets must be None"):
            fit(net(), [Pass([both])], Recipe(1, 0.1))

    def test_bad_parts(self) -> None:
        images, labels = part(4).data.tensors
        for data, message in (
            (TensorDataset(images), "^parts must be of inputs and labels, got 1 tensors"),
            (TensorDataset(images, labels.float()), r"^labels must be integers, got torch\.float32"),
            (TensorDataset(images, -1 - labels), "^labels must be not negative"),
            (
                TensorDataset(images[:, :, :2], labels),
                r"^parts must be of inputs of one shape, got \[\(1, 2, 4\), \(1, 3, 4\)\]",
            ),
        ):
            with pytest.raises(InputError, match=message):
                fit(net(), [Pass([part(4)]), Pass([DataPart(data)])], Recipe(1, 0.1))
        for labels in (torch.zeros(3, dtype=torch.long), torch.zeros(4), [0, 1, 2, 0]):
            with pytest.raises(InputError, match=r"^labels must be"):
                fit(net(), [Pass([DataPart(part(4).data, labels=lambda epoch: labels)])], Recipe(1, 0.1))  # noqa: B023
        flat = DataPart(TensorDataset(torch.rand(4, 12), torch.zeros(4, dtype=torch.long)))
        with pytest.raises(InputError, match="parts must be at least one"):
            fit(net(), [], Recipe(1, 0.1))
        with pytest.raises(InputError, match="augment must be off"):
            fit(net(), [Pass([flat])], Recipe(1, 0.1, augment=True))


class TestBatchNorm:
    """The three ways to treat it, on a model that was put into an odd mode."""

    def trained(self, mode: str, seed: int = 0) -> tuple[nn.Sequential, nn.Sequential]:
        torch.manual_seed(1)
        before, data = conv_net(dropout=0.5).eval(), pictures(shift=1)
        before[4].train()
        after = copy.deepcopy(before)
        fit(after, [Pass([DataPart(data)])], Recipe(2, 0.1, batch_size=8, batch_norm=mode), RunOptions(seed=seed))
        assert [module.training for module in after.modules()] == [module.training for module in before.modules()]
        return before, after

    def test_train_moves_statistics_and_frozen_and_eval_do_not(self) -> None:
        for mode, moves in (("train", True), ("frozen", False), ("eval", False)):
            before, after = self.trained(mode)
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                assert torch.equal(getattr(before[1], name), getattr(after[1], name)) != moves
            assert not torch.equal(before[1].weight, after[1].weight)  # the affine weights learn in all of them
            assert not torch.equal(before[1].bias, after[1].bias)

    def test_dropout_is_off_in_eval_alone(self, monkeypatch) -> None:
        forward = nn.Dropout.forward
        for mode, dropped in (("train", True), ("frozen", True), ("eval", False)):
            zeros = []

            def count(module: nn.Module, x: Tensor, zeros: list[float] = zeros) -> Tensor:
                kept = forward(module, torch.ones_like(x))
                zeros.append((kept == 0).float().mean().item())
                return forward(module, x)

            monkeypatch.setattr(nn.Dropout, "forward", count)
            self.trained(mode)
            assert all((0.3 < share < 0.7) == dropped for share in zeros)
            assert all(share == 0 or dropped for share in zeros)

    def test_frozen_uses_the_running_statistics(self) -> None:
        before, _ = self.trained("frozen")
        data = pictures(8)
        expected = copy.deepcopy(before).eval()
        optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        nn.functional.cross_entropy(expected(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
        for mode in ("frozen", "eval"):
            model = copy.deepcopy(before)
            model[4].p = 0.0
            fit(model, [Pass([DataPart(data)])], Recipe(1, 0.1, batch_size=8, batch_norm=mode))
            torch.testing.assert_close(model.state_dict(), expected.state_dict())


class TestPrecision:
    class Watched(nn.Linear):
        """Remembers in which type its answers were, and spoils the gradients of some of its forwards."""

        spoiled = ()

        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x.flatten(1))
            if self.training:
                self.seen = [*getattr(self, "seen", []), logits.dtype]
                if len(self.seen) in self.spoiled:
                    logits.register_hook(lambda grad: grad * math.inf)
            return logits

    @pytest.mark.parametrize(
        ("precision", "dtype"), [(None, torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
    )
    def test_is_that_of_autocast(self, precision: str | None, dtype: torch.dtype) -> None:
        data, exact = part(), self.Watched(12, 3)
        model = copy.deepcopy(exact)
        fit(exact, [Pass([data])], Recipe(3, 0.1, batch_size=8))
        fit(model, [Pass([data])], Recipe(3, 0.1, batch_size=8, precision=precision))
        assert set(model.seen) == {dtype}
        assert model.weight.dtype == torch.float32
        torch.testing.assert_close(model.weight, exact.weight, rtol=0.02, atol=0.02)
        assert torch.equal(model.weight, exact.weight) == (precision is None)

    @pytest.mark.parametrize("masked", [False, True])
    def test_float16_leaves_out_a_step_with_infinite_gradients(self, masked: bool) -> None:
        data, clean = part(), self.Watched(12, 3)
        spoiled = copy.deepcopy(clean)
        spoiled.spoiled = (1, 3)
        run = RunOptions(mask={name: weight > 0 for name, weight in clean.named_parameters()} if masked else None)
        fit(clean, [Pass([data])], Recipe(2, 0.1, batch_size=20, precision="float16"), run)
        fit(spoiled, [Pass([data])], Recipe(4, 0.1, batch_size=20, precision="float16"), run)
        torch.testing.assert_close(spoiled.weight, clean.weight, rtol=1e-2, atol=1e-3)
        spoiled.spoiled, spoiled.seen = (1,), []
        with pytest.raises(FloatingPointError, match="the weights are no longer finite"):
            fit(spoiled, [Pass([data])], Recipe(1, 0.1, batch_size=20))

    def test_small_gradients_survive_float16(self) -> None:
        """Unscaled they would be nothing: the smallest number of half precision is 6e-8."""

        class Small(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.flatten(1)) * 1e-7

        model = Small(12, 3)
        before = model.weight.detach().clone()
        settings = {"batch_size": 20, "momentum": 0.0, "weight_decay": 0.0}
        fit(model, [Pass([part()])], Recipe(1, 1e6, precision="float16", **settings))
        assert (model.weight - before).abs().max() > 1e-3

    def test_a_penalty_is_scaled_like_the_loss(self) -> None:
        data, exact = part(), net()
        model = copy.deepcopy(exact)
        settings = {"penalty": lambda model, epoch: 0.5 * sum(each.abs().sum() for each in model.parameters())}
        fit(exact, [Pass([data])], Recipe(3, 0.05, batch_size=8), **settings)
        fit(model, [Pass([data])], Recipe(3, 0.05, batch_size=8, precision="float16"), **settings)
        torch.testing.assert_close(model[1].weight, exact[1].weight, rtol=0.02, atol=0.02)

    def test_a_half_model_cannot_have_its_gradients_scaled(self) -> None:
        with pytest.raises(InputError, match=r"^precision must be None or bfloat16 for a model of float16"):
            fit(net().half(), [Pass([part()])], Recipe(1, 0.1, precision="float16"))

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_models_of_other_types(self, dtype: torch.dtype, masked: bool) -> None:
        model, data = net(), part()
        other = copy.deepcopy(model).to(dtype)
        run = RunOptions(mask={name: weight > 0 for name, weight in model.named_parameters()} if masked else None)
        histories = [fit(each, [Pass([data])], Recipe(3, 0.1, batch_size=8), run) for each in (model, other)]
        assert other[1].weight.dtype == dtype
        torch.testing.assert_close(other[1].weight.float(), model[1].weight, rtol=0.03, atol=0.03)
        assert histories[0][-1].loss == pytest.approx(histories[1][-1].loss, rel=0.03)

    def test_losses_of_half_models_do_not_overflow(self) -> None:
        """The sum of two hundred losses of a thousand is beyond the largest number of half precision, 65504."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).half()
        with torch.no_grad():
            model[1].weight.fill_(0)
            model[1].bias.copy_(torch.tensor([1000.0, 0, 0]))
        data = TensorDataset(torch.rand(200, 1, 3, 4), torch.ones(200, dtype=torch.long))
        (epoch,) = fit(model, [Pass([DataPart(data)])], Recipe(1, 0.0, batch_size=200))
        assert epoch.loss == pytest.approx(1000)


class TestChannelsLast:
    @pytest.mark.parametrize("masked", [False, True])
    def test_changes_nothing_but_the_layout_while_it_trains(self, masked: bool) -> None:
        model, data = conv_net(), pictures()
        other = copy.deepcopy(model)
        layouts = []

        class Looking(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                layouts.append((x.stride()[1], other[0].weight.stride()[1]))
                return x

        run = RunOptions(mask={name: each > 0 for name, each in model.named_parameters()} if masked else None)
        recipe = {"epochs": 2, "lr": 0.1, "batch_size": 8, "augment": True}
        fit(model, [Pass([DataPart(data)])], Recipe(**recipe), run)
        other[2] = nn.Sequential(nn.ReLU(), Looking())
        fit(other, [Pass([DataPart(data)])], Recipe(**recipe, channels_last=True), run)
        assert set(layouts) == {(1, 1)}
        other[2] = nn.ReLU()
        torch.testing.assert_close(other.state_dict(), model.state_dict())
        assert [each.stride() for each in other.parameters()] == [each.stride() for each in model.parameters()]

    def test_every_weight_gets_its_own_layout_back(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 3))
        model[1].to(memory_format=torch.channels_last)
        strides = [each.stride() for each in model.parameters()]
        weights, data = list(model.parameters()), [Pass([DataPart(pictures())])]
        recipe = Recipe(2, 0.1, batch_size=8, channels_last=True)
        fit(model, data, recipe)
        assert [each.stride() for each in model.parameters()] == strides
        assert strides[0] != strides[2]
        (tmp_path / "other").write_bytes(b"not ours")
        for run in (RunOptions(mask={}), RunOptions(checkpoint=tmp_path / "other")):
            with pytest.raises(InputError):
                fit(model, data, recipe, run)
            assert [each.stride() for each in model.parameters()] == strides
        assert all(one is other for one, other in zip(weights, model.parameters(), strict=True))

    def test_leaves_other_inputs_alone(self) -> None:
        model, data = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3)), torch.rand(9, 1, 2, 2, 2)
        fit(model, [Pass([DataPart(TensorDataset(data, torch.arange(9) % 3))])], Recipe(2, 0.1, channels_last=True))


class TestAccumulate:
    @pytest.mark.parametrize("accumulation_steps", [2, 3, 4, 100])
    @pytest.mark.parametrize("ascend", [False, True])
    @pytest.mark.parametrize("penalised", [False, True])
    def test_is_the_whole_batch_without_batchnorm(self, accumulation_steps: int, ascend: bool, penalised: bool) -> None:
        model, data = conv_net(norm=False).double(), pictures(23)  # batches of 9, 9 and 5
        other = copy.deepcopy(model)
        options = {}
        if penalised:
            options["penalty"] = lambda model, epoch: 0.01 * sum(each.abs().sum() for each in model.parameters())
        recipe = {"epochs": 2, "lr": 0.05, "batch_size": 9, "augment": True}
        first = fit(model, [Pass([DataPart(data)], ascend)], Recipe(**recipe), **options)
        second = fit(
            other, [Pass([DataPart(data)], ascend)], Recipe(**recipe, accumulation_steps=accumulation_steps), **options
        )
        torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=1e-9, atol=1e-12)
        assert [each.loss for each in second] == pytest.approx([each.loss for each in first])

    def test_pieces(self) -> None:
        """A last one of one joins its neighbour: BatchNorm has no variance of one."""
        sizes = []

        class Looking(nn.BatchNorm1d):
            def forward(self, x: Tensor) -> Tensor:
                sizes.append(len(x))
                return super().forward(x)

        model = nn.Sequential(nn.Flatten(), Looking(12), nn.Linear(12, 3))
        fit(model, [Pass([part(26)])], Recipe(1, 0.1, batch_size=13, accumulation_steps=4))
        assert sizes == [4, 4, 5] * 2
        sizes.clear()
        fit(model, [Pass([part(20)])], Recipe(1, 0.1, batch_size=9, accumulation_steps=2))
        assert sizes == [5, 4, 5, 4, 2]
        sizes.clear()
        fit(model, [Pass([part(19)])], Recipe(1, 0.1, batch_size=9))
        assert sizes == [9, 10]
        sizes.clear()
        fit(model, [Pass([part(5)])], Recipe(1, 0.1, batch_size=9))
        assert sizes == [5]


class TestDatasets:
    """What is read item by item."""

    RECIPE = Recipe(2, 0.1, batch_size=8, augment=True)

    @pytest.fixture
    def parts(self) -> list[TensorDataset]:
        return [pictures(11), pictures(13, shift=2)]

    @pytest.mark.parametrize("num_workers", [0, 2])
    @pytest.mark.parametrize("read", [(True, True), (True, False), (False, True)])
    def test_are_as_good_as_tensors(
        self, parts: list[TensorDataset], num_workers: int, read: tuple[bool, bool]
    ) -> None:
        model = conv_net(dropout=0.5)
        other, told = copy.deepcopy(model), lambda epoch: parts[1].tensors[1].add(epoch) % 3
        fit(model, [Pass([DataPart(parts[0], augment=False), DataPart(parts[1], labels=told)])], self.RECIPE)
        first, second = (Items(data) if item else data for data, item in zip(parts, read, strict=True))
        passes = [Pass([DataPart(first, augment=False), DataPart(second, labels=told)])]
        before = torch.get_rng_state()
        fit(other, passes, self.RECIPE, RunOptions(num_workers=num_workers))
        assert equal(state(other), state(model))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_random_transforms_follow_from_the_seed(self, parts: list[TensorDataset], num_workers: int) -> None:
        model, results, states = conv_net(), [], []
        for seed in (1, 1, 2):
            other = copy.deepcopy(model)
            torch.rand(len(results))  # the caller's state is another each time
            states.append(torch.get_rng_state())
            fit(
                other,
                [Pass([DataPart(Noisy(*parts[0].tensors))])],
                self.RECIPE,
                RunOptions(seed=seed, num_workers=num_workers),
            )
            assert torch.equal(torch.get_rng_state(), states[-1])
            results.append(state(other))
        assert equal(results[0], results[1])
        assert not equal(results[0], results[2])
        assert not torch.equal(states[1], states[2])

    def test_transforms_are_drawn_anew_in_every_epoch(self) -> None:
        for num_workers in (0, 2):
            seen = []
            model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
            model[1].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].clone()))
            data = Noisy(torch.ones(6, 1, 2, 2), torch.arange(6) % 2)
            fit(model, [Pass([DataPart(data)])], Recipe(2, 0.1), RunOptions(num_workers=num_workers))
            assert len({tuple(image.tolist()) for batch in seen for image in batch}) == 12

    def test_parts_of_several_types_meet_in_a_batch(self) -> None:
        """Each item is cast for itself, not to the type of the first of its batch, which may be shorter."""
        images = torch.rand(12, 1, 3, 4, dtype=torch.float64)
        labels = torch.randint(0, 3, (12,))
        model = net().double()
        other = copy.deepcopy(model)
        halves = TensorDataset(images[:6].half(), labels[:6]), TensorDataset(images[6:], labels[6:].to(torch.uint8))
        fit(model, [Pass([DataPart(each) for each in halves])], Recipe(2, 0.1, batch_size=5))
        for num_workers in (0, 2):
            again = copy.deepcopy(other)
            passes = [Pass([DataPart(Items(halves[0])), DataPart(halves[1])])]
            fit(again, passes, Recipe(2, 0.1, batch_size=5), RunOptions(num_workers=num_workers))
            assert equal(state(again), state(model))

    def test_a_class_of_tensors_may_have_items_of_its_own(self) -> None:
        class Brighter(TensorDataset):
            def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
                image, label = super().__getitem__(index)
                return image + 5, label

        smallest = []
        model = net()
        model.register_forward_pre_hook(lambda _, args: smallest.append(args[0].min().item()))
        fit(model, [Pass([DataPart(Brighter(*part().data.tensors))])], Recipe(1, 0.1))
        assert min(smallest) >= 5

    def test_errors_of_the_dataset_come_through(self) -> None:
        class Broken(Items):
            def __getitem__(self, index: int) -> tuple[Tensor, int]:
                if index == 7:
                    raise OSError("image 7 cannot be read")
                return super().__getitem__(index)

        model = net()
        with pytest.raises(OSError, match="image 7 cannot be read"):
            fit(model, [Pass([DataPart(Broken(part().data))])], Recipe(1, 0.1))
        assert all(each.grad is None for each in model.parameters())


@pytest.fixture(scope="module")
def killed(once) -> Path:
    """The files of trainings whose processes were killed in the middle of an epoch."""

    def kill(folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-W", "ignore", training_tools.__file__, str(folder)]
        subprocess.run(command, check=True, env=environment, timeout=300)

    return once("killed-trainings", kill)


class TestCheckpoint:
    """A training that was stopped goes on as if it had not been."""

    @pytest.mark.slow
    @pytest.mark.parametrize("name", TRAININGS)
    def test_a_killed_one_goes_on_bit_for_bit(self, killed: Path, name: str) -> None:
        training = TRAININGS[name]
        epochs: list[Epoch] = []
        whole = training.run(None, on_epoch=epochs.append)
        assert [each.number for each in epochs] == [1, 2, 3, 4]
        epochs.clear()
        resumed = training.run(killed / name, on_epoch=epochs.append)
        assert [each.number for each in epochs] == [3, 4]
        assert whole.forwards == 28
        assert resumed.forwards == 14
        assert equal(state(resumed), state(whole))

    def test_a_finished_one_is_read(self, tmp_path: Path) -> None:
        model, data, path = net(), [Pass([part()])], tmp_path / "new" / "folder" / "checkpoint"
        again, recipe = copy.deepcopy(model), Recipe(3, 0.1, schedule="step:1", batch_size=8)
        history = fit(model, data, recipe, RunOptions(checkpoint=path))
        before = path.read_bytes()
        assert fit(again, data, recipe, RunOptions(checkpoint=path)) == history
        assert [each.lr for each in history] == pytest.approx([0.1, 0.01, 0.001])
        assert equal(state(again), state(model))
        assert path.read_bytes() == before
        assert [each.name for each in path.parent.iterdir()] == ["checkpoint"]

    def test_of_another_training_is_refused(self, tmp_path: Path) -> None:
        path, first, second = tmp_path / "checkpoint", part(), part()
        model, told = net(), lambda epoch: torch.zeros(20, dtype=torch.long)
        start, recipe = state(model), Recipe(2, 0.1, batch_size=8)
        mask = {name: each > 0 for name, each in model.named_parameters()}
        passes = [Pass([first]), Pass([second], ascend=True)]
        fit(model, passes, recipe, RunOptions(checkpoint=path, mask=mask), settings=1, description="this")

        def refused(passes: list[Pass] = passes, recipe: Recipe = recipe, own: int = 1, name: str = "this", **run):
            model.load_state_dict(start)
            settings = {"checkpoint": path, "mask": mask} | run
            with pytest.raises(
                InputError, match=r"^checkpoint must be a new file or one of this training .*, got another"
            ):
                fit(model, passes, recipe, RunOptions(**settings), settings=own, description=name)
            assert equal(state(model), start)

        refused(recipe=Recipe(3, 0.1, batch_size=8))
        refused(seed=1)
        refused(mask=None)
        refused(mask={name: ~each for name, each in mask.items()})
        refused(mask_gradient_only=True)
        refused(own=2)
        refused(name="that")
        refused(passes=[Pass([first, second])])
        refused(passes=passes[::-1])
        refused(passes=[Pass([first]), Pass([second])])
        refused(passes=[Pass([first]), Pass([DataPart(second.data, augment=False)], ascend=True)])
        refused(passes=[Pass([first]), Pass([DataPart(second.data, labels=told)], ascend=True)])
        refused(passes=[Pass([first]), Pass([DataPart(second.data, targets=torch.ones(20, 3))], ascend=True)])
        refused(passes=[Pass([first]), Pass([part()], ascend=True)])
        refused(passes=[Pass([first]), Pass([DataPart(Items(second.data))], ascend=True)])
        start = state(net())
        refused()

    def test_of_other_trainable_weights_is_refused(self, tmp_path: Path) -> None:
        model, data, run = net(), [Pass([part()])], RunOptions(checkpoint=tmp_path / "checkpoint")
        other = copy.deepcopy(model)
        fit(model, data, Recipe(1, 0.1), run)
        other[1].bias.requires_grad_(False)
        with pytest.raises(InputError, match=r"^checkpoint must be a new file"):
            fit(other, data, Recipe(1, 0.1), run)

    @pytest.mark.parametrize("damage", ["shorter", "other", "empty", "flipped", "folder"])
    def test_damaged_is_refused(self, tmp_path: Path, damage: str) -> None:
        model, data, path = net(), [Pass([part()])], tmp_path / "checkpoint"
        start = state(model)
        fit(model, data, Recipe(2, 0.1), RunOptions(checkpoint=path))
        whole = path.read_bytes()
        if damage == "folder":
            path.unlink()
            path.mkdir()
        else:
            changed = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
            path.write_bytes({"shorter": whole[:-40], "other": b"{}" * 400, "empty": b"", "flipped": changed}[damage])
        model.load_state_dict(start)
        with pytest.raises(InputError, match=r"^checkpoint must be .*, got .*checkpoint"):
            fit(model, data, Recipe(2, 0.1), RunOptions(checkpoint=path))
        assert equal(state(model), start)

    def test_a_full_disk_leaves_the_former_one(self, tmp_path: Path, monkeypatch) -> None:
        model, data, path = net(), [Pass([part()])], tmp_path / "checkpoint"
        again, recipe = copy.deepcopy(model), Recipe(3, 0.1, batch_size=8)
        former = []

        def full(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
            if path.exists():
                former.append(path.read_bytes())
                file.write_bytes(b"half of it")
                raise OSError(28, "No space left on device")
            save_file(tensors, file, metadata)

        with monkeypatch.context() as patch:
            patch.setattr("amun_ext.files.save_file", full)
            with pytest.raises(OSError, match="No space left"):
                fit(model, data, recipe, RunOptions(checkpoint=path))
        assert all(each.grad is None for each in model.parameters())
        assert path.read_bytes() == former[0]
        assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]
        epochs: list[Epoch] = []
        model = copy.deepcopy(again)
        fit(model, data, recipe, RunOptions(checkpoint=path, on_epoch=epochs.append))
        fit(again, data, recipe)
        assert [each.number for each in epochs] == [2, 3]
        assert equal(state(model), state(again))

    def test_has_a_place_before_anything_is_trained(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        model = net()
        start = state(model)
        for path in (tmp_path, tmp_path / "file" / "checkpoint", tmp_path / "file" / "folder" / "checkpoint"):
            with pytest.raises(
                InputError, match=r"^checkpoint must be a file in a folder that can be written to, got "
            ):
                fit(model, [Pass([part()])], Recipe(1, 0.1), RunOptions(checkpoint=path))
        assert equal(state(model), start)

    def test_the_scale_of_the_loss_goes_on(self, tmp_path: Path) -> None:
        """A new one would be too large at first, as it was at the start, and leave steps out."""

        class Narrow(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x.flatten(1))
                if logits.requires_grad:
                    logits.register_hook(lambda grad: torch.where(grad.abs() > 900, math.inf, grad))
                return logits

        start, data, path = Narrow(12, 3), [Pass([part()])], tmp_path / "checkpoint"
        whole, stopped, resumed = (copy.deepcopy(start) for _ in range(3))
        recipe = Recipe(2, 0.1, batch_size=2, precision="float16")
        fit(whole, data, recipe)
        with pytest.raises(KeyboardInterrupt):
            fit(stopped, data, recipe, RunOptions(checkpoint=path, on_epoch=interrupt))
        fit(resumed, data, recipe, RunOptions(checkpoint=path))
        assert torch.equal(resumed.weight, whole.weight)
        assert not torch.equal(resumed.weight, stopped.weight)

    def test_tied_weights(self, tmp_path: Path) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
                self.second.weight = self.first.weight

            def forward(self, x: Tensor) -> Tensor:
                return self.second(self.first(x.flatten(1)).relu())[:, :3]

        start, data, path = Tied(), [Pass([part()])], tmp_path / "checkpoint"
        mask = {name: torch.rand(each.shape) < 0.5 for name, each in start.named_parameters()}
        for run in ({}, {"mask": mask}):
            whole, stopped, resumed = (copy.deepcopy(start) for _ in range(3))
            fit(whole, data, Recipe(3, 0.1, batch_size=8), RunOptions(**run))
            with pytest.raises(KeyboardInterrupt):
                fit(stopped, data, Recipe(3, 0.1, batch_size=8), RunOptions(**run, checkpoint=path, on_epoch=interrupt))
            fit(resumed, data, Recipe(3, 0.1, batch_size=8), RunOptions(**run, checkpoint=path))
            assert resumed.first.weight is resumed.second.weight
            assert equal(state(resumed), state(whole))
            frozen = ~run.get("mask", {"first.weight": torch.ones(12, 12, dtype=torch.bool)})["first.weight"]
            assert torch.equal(resumed.first.weight[frozen], start.first.weight[frozen])
            path.unlink()


def interrupt(epoch: Epoch) -> None:
    raise KeyboardInterrupt


class TestWatching:
    def test_history(self) -> None:
        model, data = net(), part(30)
        shown = []
        eval_sets = {"own": data.data, "loss": part(7).data}  # a name that the bar has, too

        def look(epoch: Epoch) -> None:
            rates = {name: (model(each.tensors[0]).argmax(1) == each.tensors[1]) for name, each in eval_sets.items()}
            shown.append((epoch, {name: 100 * float(right.double().mean()) for name, right in rates.items()}))

        run = RunOptions(eval_sets=eval_sets, on_epoch=look, progress=True)
        history = fit(model, [Pass([data])], Recipe(3, 0.2, schedule="step:2", batch_size=30), run)
        assert [epoch for epoch, _ in shown] == history
        assert [each.number for each in history] == [1, 2, 3]
        assert [each.lr for each in history] == pytest.approx([0.2, 0.2, 0.02])
        assert [dict(each.accuracy) for each in history] == [accuracy for _, accuracy in shown]
        assert all(each.seconds > 0 for each in history)

    def test_the_loss_is_the_mean_over_all_samples_and_passes(self) -> None:
        model, parts = net(), [part(7), part(12)]
        losses = [
            nn.functional.cross_entropy(model(images), labels, reduction="sum")
            for images, labels in (each.data.tensors for each in parts)
        ]
        passes = [Pass([each], ascend=bool(number)) for number, each in enumerate(parts)]
        (epoch,) = fit(model, passes, Recipe(1, 0.0, batch_size=5, accumulation_steps=2))
        assert epoch.loss == pytest.approx(float(sum(losses).detach()) / 19)

    def test_changes_nothing(self) -> None:
        """Accuracies are those of the model in eval mode; what on_epoch draws and sets stays out of the training."""
        model, data = conv_net(dropout=0.5), pictures()
        other = copy.deepcopy(model)

        def meddle(epoch: Epoch) -> None:
            torch.rand(3)
            other.eval()

        recipe = Recipe(3, 0.1, batch_size=8)
        fit(model, [Pass([DataPart(data)])], recipe)
        (*_, last) = fit(other, [Pass([DataPart(data)])], recipe, RunOptions(eval_sets={"own": data}, on_epoch=meddle))
        assert equal(state(other), state(model))
        assert other.training
        right = (other.eval()(data.tensors[0]).argmax(1) == data.tensors[1]).double().mean()
        assert last.accuracy["own"] == pytest.approx(100 * float(right))

    def test_what_it_cannot_watch(self) -> None:
        images, labels = part(4).data.tensors
        for data, message in (
            (TensorDataset(images[:0], labels[:0]), "non-empty"),
            (TensorDataset(images), "a TensorDataset of images and labels"),
            (Items(part(4).data), "a TensorDataset of images and labels, got Items"),
            (TensorDataset(images * torch.nan, labels), "free of NaN"),
        ):
            with pytest.raises(InputError, match=rf"^eval_sets\['test'\] must be {message}"):
                RunOptions(eval_sets={"test": data})
        with pytest.raises(InputError, match=r"^eval_sets\['test'\] labels must be integers"):
            RunOptions(eval_sets={"test": TensorDataset(images, labels.float())})


class TestRun:
    @pytest.mark.parametrize("name", ["seed", "num_workers"])
    def test_whole_numbers(self, name: str) -> None:
        for value in (-1, 2**40, 1.5, "1", None):
            with pytest.raises(InputError, match=f"^{name} must be a whole number from 0 on(, below 2[*][*]31)?, got "):
                RunOptions(**{name: value})

    def test_others(self) -> None:
        with pytest.raises(InputError, match=r"^mask_gradient_only must be False without a mask"):
            RunOptions(mask_gradient_only=True)
        with pytest.raises(InputError, match=r"^on_epoch must be a function"):
            RunOptions(on_epoch=3)
        for recipe in ({"epochs": 1, "lr": 0.1}, None):
            with pytest.raises(InputError, match=r"^recipe must be a Recipe"):
                fit(net(), [Pass([part()])], recipe)


class TestInterrupted:
    @pytest.mark.parametrize("masked", [False, True])
    def test_leaves_no_gradients_and_the_modes(self, masked: bool) -> None:
        class Interrupted(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x.flatten(1))
                if self.weight.grad is not None:  # in the second piece of a batch
                    raise KeyboardInterrupt
                return logits

        model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(), Interrupted(12, 3)).eval()
        model[1].train()
        data = [Pass([part()])]
        before, random = [each.training for each in model.modules()], torch.get_rng_state()
        mask = {name: each > 0 for name, each in model.named_parameters()} if masked else None
        with pytest.raises(KeyboardInterrupt):
            fit(model, data, Recipe(1, 0.1, accumulation_steps=2, channels_last=True), RunOptions(mask=mask))
        assert all(each.grad is None for each in model.parameters())
        assert [each.training for each in model.modules()] == before
        assert torch.equal(torch.get_rng_state(), random)


class TestFrozen:
    def test_weights_that_ask_for_no_gradient_stay(self) -> None:
        for masked in (False, True):
            model = conv_net()
            model[0].weight.requires_grad_(False)
            model[1].bias.requires_grad_(False)
            before = state(model)
            trainable = {name for name, each in model.named_parameters() if each.requires_grad}
            mask = {name: torch.ones_like(each, dtype=torch.bool) for name, each in model.named_parameters()}
            run = RunOptions(mask={name: mask[name] for name in trainable} if masked else None)
            fit(model, [Pass([DataPart(pictures())])], Recipe(3, 0.1, weight_decay=0.1), run)
            for name, value in model.named_parameters():
                assert torch.equal(value, before[name]) == (name not in trainable)
                assert value.requires_grad == (name in trainable)

    def test_weights_that_no_loss_depends_on_stay(self) -> None:
        class Idle(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.idle = net(), nn.Linear(3, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x)

        for masked in (False, True):
            model = Idle()
            before = model.idle.weight.detach().clone()
            mask = {name: torch.ones_like(each, dtype=torch.bool) for name, each in model.named_parameters()}
            fit(model, [Pass([part()])], Recipe(2, 0.1, weight_decay=0.1), RunOptions(mask=mask if masked else None))
            assert torch.equal(model.idle.weight, before)

    def test_a_mask_without_any_weight(self) -> None:
        model = conv_net()
        before = state(model)
        mask = {name: torch.zeros_like(each, dtype=torch.bool) for name, each in model.named_parameters()}
        fit(model, [Pass([DataPart(pictures())])], Recipe(3, 0.1, weight_decay=0.1), RunOptions(mask=mask))
        assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])  # statistics are no weights

    def test_a_mask_is_made_when_the_training_begins(self) -> None:
        model, data = net(), [Pass([part()])]
        other, asked = copy.deepcopy(model), []
        mask = {name: each > 0 for name, each in model.named_parameters()}

        def make() -> dict[str, Tensor]:
            asked.append(1)
            return mask

        with pytest.raises(InputError, match=r"^augment must be off"):
            fit(
                other,
                [Pass([DataPart(TensorDataset(torch.rand(4, 12), torch.arange(4) % 3))])],
                Recipe(1, 0.1, augment=True),
                RunOptions(mask=make),
            )
        assert not asked
        fit(model, data, Recipe(2, 0.1), RunOptions(mask=mask))
        fit(other, data, Recipe(2, 0.1), RunOptions(mask=make))
        assert asked == [1]
        assert equal(state(other), state(model))

    def test_masks_that_do_not_fit(self) -> None:
        model = net()
        mask = {name: each > 0 for name, each in model.named_parameters()}
        for wrong in ({}, mask | {"other": mask["1.bias"]}, mask | {"1.bias": mask["1.bias"].float()}):
            with pytest.raises(InputError, match=r"^masks"):
                fit(model, [Pass([part()])], Recipe(1, 0.1), RunOptions(mask=wrong))


def test_crop_and_flip_moves_by_at_most_four_and_pads_with_zeros() -> None:
    image = torch.arange(1.0, 101.0).view(1, 1, 10, 10)
    seen = crop_and_flip(image.expand(500, -1, -1, -1), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))[0, 0]
    possible = {}
    for top in range(9):
        for left in range(9):
            crop = padded[top : top + 10, left : left + 10]
            possible |= {
                tuple(view.flatten().tolist()): (top, left, flip) for flip, view in enumerate((crop, crop.flip(1)))
            }
    places = {possible[tuple(view.flatten().tolist())] for view in seen}
    assert {top for top, _, _ in places} == set(range(9))
    assert {left for _, left, _ in places} == set(range(9))
    assert {flip for _, _, flip in places} == {0, 1}


def test_reinitialised_gives_fresh_weights_and_keeps_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].running_mean.fill_(7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fresh = reinitialised(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not torch.equal(fresh[0].weight, model[0].weight)
    assert (fresh[1].running_mean == 0).all()


def test_reinitialised_refuses_what_it_cannot_draw_again() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(InputError, match=r"\(\) draws all weights anew, or else given init.*, got old 1.scale"):
        reinitialised(nn.Sequential(nn.Linear(2, 3), Own()))


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


def test_reinitialised_keeps_constants_and_refuses_what_training_changes() -> None:
    fresh = reinitialised(model := Normalising(), torch.rand(2, 4))
    assert fresh.mean == model.mean
    assert not torch.equal(fresh.linear.weight, model.linear.weight)
    with pytest.raises(InputError, match="got old mean"):
        reinitialised(Normalising(counts=True), torch.rand(2, 4))


def test_a_frozen_backbone_is_retrained_with() -> None:
    """Its weights and statistics stay, bit by bit; the head is drawn anew."""
    backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    backbone[1].running_mean.fill_(7)
    model = nn.Sequential(backbone.requires_grad_(False), nn.Linear(8, 2))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    fresh = reinitialised(model)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("0.")
    assert not any(each.requires_grad for each in fresh[0].parameters())
    data = TensorDataset(torch.rand(6, 1, 4, 4), torch.tensor([0, 1] * 3))
    rows = [TensorDataset(*data[:2]), TensorDataset(*data[2:])]
    made = unlearn(model, *rows, method="retrain", recipe=Recipe(1, 0.1, batch_norm="frozen"))
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("0.")


def test_reinitialised_refuses_weights_behind_a_parametrisation() -> None:
    """The reset of such a module writes the product, and would leave what was learned where it is."""
    for wrap in (nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm):
        with pytest.raises(InputError, match="draws all weights anew"):
            reinitialised(nn.Sequential(wrap(nn.Linear(4, 3))))


def test_a_single_sample_is_retrained_on() -> None:
    data = [TensorDataset(torch.rand(1, 4), torch.tensor([number])) for number in (0, 1)]
    made = unlearn(Normalising(), *data, method="retrain", recipe=Recipe(1, 0.1))
    assert all(each.isfinite().all() for each in made.parameters())


def test_recipes_take_numpys_numbers() -> None:
    recipe = Recipe(epochs=np.int64(3), lr=np.float32(0.5), batch_size=np.uint8(4))
    assert json.loads(json.dumps(asdict(recipe)))["lr"] == 0.5
    for wrong in ({"epochs": True}, {"epochs": 3.0}, {"lr": True}, {"lr": "0.1"}):
        with pytest.raises(InputError, match="must be"):
            Recipe(**{"epochs": 1, "lr": 0.1, **wrong})


def test_augmented_images_suit_models_that_view_them() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 2)

        def forward(self, x):
            return self.linear(self.conv(x).view(len(x), -1))

    data = TensorDataset(torch.rand(6, 3, 8, 8), torch.randint(0, 2, (6,)))
    (epoch,) = fit(Viewing(), [Pass([DataPart(data)])], Recipe(1, 0.1, augment=True))
    assert epoch.loss > 0
