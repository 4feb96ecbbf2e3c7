"""What a recipe can ask of the training: schedules, BatchNorm, precision, memory layout and accumulation."""

import copy
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import pairs
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training_tools import conv_net, linear_net, part, pictures, positive

from amun_ext import InputError
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit


def shrink(model: nn.Module, epoch: int) -> Tensor:
    return 0.1 * sum(each.abs().sum() for each in model.parameters())


class TestRecipe:
    def test_schedules(self) -> None:
        factors = {
            name: [Recipe(4, 1.0, name).lr_factor(epoch) for epoch in range(4)]
            for name in ("constant", "cosine", "step:2")
        }
        assert factors["constant"] == [1, 1, 1, 1]
        assert factors["cosine"] == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
        assert factors["step:2"] == pytest.approx([1, 1, 0.1, 0.1])

    @pytest.mark.parametrize(
        ("name", "values"),
        {
            "epochs": [0, 1.5, 3.0, True],
            "lr": [-1.0, math.nan, "0.1", True],
            "batch_size": [0],
            "momentum": [-0.1, 1.0],
            "weight_decay": [math.inf],
            "schedule": ["step:0", "linear", "step:", "step:" + 5000 * "9"],
            "batch_norm": ["off"],
            "precision": ["half", []],
            "accumulation_steps": [0],
            "augment": ["no"],
            "channels_last": [1],
            "optimizer": ["adam", None],
            "warmup_epochs": [-1, 2],
        }.items(),
    )
    def test_bad_settings(self, name: str, values: list[object]) -> None:
        for value in values:
            with pytest.raises(InputError, match=f"^{name} must be"):
                Recipe(**{"epochs": 1, "lr": 0.1} | {name: value})

    def test_takes_numpys_numbers(self) -> None:
        recipe = Recipe(epochs=np.int64(3), lr=np.float32(0.5), batch_size=np.uint8(4))
        assert json.loads(json.dumps(asdict(recipe)))["lr"] == 0.5


class TestBatchNorm:
    """The three ways to treat it, on a model that was put into an odd mode."""

    def trained(self, mode: str) -> tuple[nn.Sequential, nn.Sequential]:
        torch.manual_seed(1)
        before, data = conv_net(dropout=0.5).eval(), pictures(shift=1)
        before[4].train()
        after = copy.deepcopy(before)
        fit(after, [Pass([DataPart(data)])], Recipe(2, 0.1, batch_size=8, batch_norm=mode))
        assert [module.training for module in after.modules()] == [module.training for module in before.modules()]
        return before, after

    @pytest.mark.parametrize(("mode", "moves", "dropped"), [("train", 1, 1), ("frozen", 0, 1), ("eval", 0, 0)])
    def test_statistics_and_dropout(self, monkeypatch, mode: str, moves: bool, dropped: bool) -> None:
        forward, zeros = nn.Dropout.forward, []

        def count(module: nn.Module, x: Tensor) -> Tensor:
            zeros.append((forward(module, torch.ones_like(x)) == 0).float().mean().item())
            return forward(module, x)

        monkeypatch.setattr(nn.Dropout, "forward", count)
        before, after = self.trained(mode)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(before[1], name), getattr(after[1], name)) != moves
        assert not torch.equal(before[1].weight, after[1].weight)  # the affine weights learn in all of them
        assert not torch.equal(before[1].bias, after[1].bias)
        assert zeros
        assert all(0.3 < share < 0.7 if dropped else share == 0 for share in zeros)

    @pytest.mark.parametrize("mode", ["frozen", "eval"])
    def test_frozen_uses_the_running_statistics(self, mode: str) -> None:
        before, _ = self.trained("frozen")
        before[4].p = 0.0
        data, expected, model = pictures(8), copy.deepcopy(before).eval(), copy.deepcopy(before)
        optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        nn.functional.cross_entropy(expected(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
        fit(model, [Pass([DataPart(data)])], Recipe(1, 0.1, batch_size=8, batch_norm=mode))
        torch.testing.assert_close(model.state_dict(), expected.state_dict())


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


class TestPrecision:
    @pytest.mark.parametrize(
        ("precision", "dtype"), [(None, torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
    )
    @pytest.mark.same_inputs
    def test_is_that_of_autocast(self, precision: str | None, dtype: torch.dtype) -> None:
        data, exact = part(), Watched(12, 3)
        model = copy.deepcopy(exact)
        for each, own in ((exact, None), (model, precision)):
            fit(each, [Pass([data])], Recipe(3, 0.1, batch_size=8, precision=own), penalty=shrink)
        assert set(model.seen) == {dtype}
        assert model.weight.dtype == torch.float32
        torch.testing.assert_close(model.weight, exact.weight, rtol=0.02, atol=0.02)
        assert torch.equal(model.weight, exact.weight) == (precision is None)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.same_inputs
    def test_float16_leaves_out_a_step_with_infinite_gradients(self, masked: bool) -> None:
        data, clean = part(), Watched(12, 3)
        spoiled = copy.deepcopy(clean)
        spoiled.spoiled = (1, 3)
        run = RunOptions(mask=positive(clean) if masked else None)
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
        recipe = Recipe(1, 1e6, batch_size=20, momentum=0.0, weight_decay=0.0, precision="float16")
        fit(model, [Pass([part()])], recipe)
        assert (model.weight - before).abs().max() > 1e-3

    def test_a_half_model_cannot_have_its_gradients_scaled(self) -> None:
        with pytest.raises(InputError, match=r"^precision must be None or bfloat16 for a model of float16"):
            fit(linear_net().half(), [Pass([part()])], Recipe(1, 0.1, precision="float16"))

    @pytest.mark.parametrize(("dtype", "masked"), pairs([torch.float16, torch.bfloat16, torch.float64], [False, True]))
    @pytest.mark.same_inputs
    def test_models_of_other_types(self, dtype: torch.dtype, masked: bool) -> None:
        model, data = linear_net(), part()
        other = copy.deepcopy(model).to(dtype)
        run = RunOptions(mask=positive(model) if masked else None)
        histories = [fit(each, [Pass([data])], Recipe(3, 0.1, batch_size=8), run) for each in (model, other)]
        assert other[1].weight.dtype == dtype
        torch.testing.assert_close(other[1].weight.float(), model[1].weight, rtol=0.03, atol=0.03)
        assert histories[0][-1].loss == pytest.approx(histories[1][-1].loss, rel=0.03)

    def test_losses_of_half_models_do_not_overflow(self) -> None:
        """The sum of two hundred losses of a thousand is beyond the largest number of half precision, 65504."""
        model = linear_net().half()
        with torch.no_grad():
            model[1].weight.fill_(0)
            model[1].bias.copy_(torch.tensor([1000.0, 0, 0]))
        data = TensorDataset(torch.rand(200, 1, 3, 4), torch.ones(200, dtype=torch.long))
        (epoch,) = fit(model, [Pass([DataPart(data)])], Recipe(1, 0.0, batch_size=200))
        assert epoch.loss == pytest.approx(1000)


class TestChannelsLast:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.same_inputs
    def test_changes_only_the_layout(self, masked: bool) -> None:
        model, data, layouts = conv_net(), pictures(), []
        other, run = copy.deepcopy(model), RunOptions(mask=positive(model) if masked else None)
        recipe = {"epochs": 2, "lr": 0.1, "batch_size": 8, "augment": True}
        fit(model, [Pass([DataPart(data)])], Recipe(**recipe), run)
        look = other[2].register_forward_pre_hook(
            lambda _, args: layouts.append((args[0].stride()[1], other[0].weight.stride()[1]))
        )
        fit(other, [Pass([DataPart(data)])], Recipe(**recipe, channels_last=True), run)
        look.remove()
        assert set(layouts) == {(1, 1)}
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

    @pytest.mark.parametrize(("channels", "expected"), [(15, False), (16, True)])
    def test_is_left_out_on_a_cpu_where_torch_would_crash(self, channels: int, expected: bool) -> None:
        narrow, seen = nn.Conv2d(channels, 4, 1, stride=2), []
        model = nn.Sequential(nn.Conv2d(2, channels, 3), narrow, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        narrow.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
        fit(model, [Pass([DataPart(pictures())])], Recipe(1, 0.1, channels_last=True))
        assert set(seen) == {expected}

    def test_leaves_other_inputs_alone(self) -> None:
        model, data = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3)), torch.rand(9, 1, 2, 2, 2)
        fit(model, [Pass([DataPart(TensorDataset(data, torch.arange(9) % 3))])], Recipe(2, 0.1, channels_last=True))


class TestAccumulation:
    @pytest.mark.parametrize(("steps", "ascend", "penalised"), pairs([2, 3, 4, 100], [False, True], [False, True]))
    def test_is_the_whole_batch_without_batchnorm(self, steps: int, ascend: bool, penalised: bool) -> None:
        model, data = conv_net(norm=False).double(), pictures(23)  # batches of 9, 9 and 5
        other = copy.deepcopy(model)
        recipe, passes = Recipe(2, 0.05, batch_size=9, augment=True), [Pass([DataPart(data)], ascend)]
        penalty = shrink if penalised else None
        first = fit(model, passes, recipe, penalty=penalty)
        second = fit(other, passes, replace(recipe, accumulation_steps=steps), penalty=penalty)
        torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=1e-9, atol=1e-12)
        assert [each.loss for each in second] == pytest.approx([each.loss for each in first])

    @pytest.mark.parametrize(
        ("count", "batch_size", "steps", "expected"),
        [
            (26, 13, 4, [4, 3, 3, 3] * 2),
            (7, 9, 4, [3, 2, 2]),
            (20, 9, 2, [5, 4, 5, 4, 2]),
            (19, 9, 1, [9, 10]),
            (5, 9, 1, [5]),
        ],
    )
    def test_pieces(self, count: int, batch_size: int, steps: int, expected: list[int]) -> None:
        """Of two samples at least: BatchNorm has no variance of one."""
        model, sizes = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)), []
        model[1].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        fit(model, [Pass([part(count)])], Recipe(1, 0.1, batch_size=batch_size, accumulation_steps=steps))
        assert sizes == expected
