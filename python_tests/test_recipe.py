"""AdamW and warm-up: as a loop in plain torch has them, under masks, after a stop, and in files."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR, StepLR
from torch.utils.data import TensorDataset
from training_tools import Training, equal, state

from amun_ext import InputError, cli, models, unlearn
from amun_ext.data.vision import import_torchvision
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning.config import load_tuned_options, save_tuned_options

ADAMW = Recipe(6, 0.01, "cosine", batch_size=20, weight_decay=0.1, optimizer="adamw", warmup_epochs=2)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(torch.rand(20, 1, 4, 4), torch.arange(20) % 3)


class TestWarmUp:
    @pytest.mark.parametrize("schedule", ["constant", "cosine", "step:2"])
    def test_is_that_of_torchs_schedulers(self, schedule: str) -> None:
        """One step an epoch, so that both count alike."""
        recipe = Recipe(10, 0.5, schedule, warmup_epochs=4)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5)
        after = {
            "constant": LambdaLR(optimizer, lambda epoch: 1.0),
            "cosine": CosineAnnealingLR(optimizer, 6),
            "step:2": StepLR(optimizer, 2),
        }[schedule]
        theirs = SequentialLR(optimizer, [LinearLR(optimizer, 1 / 4, total_iters=3), after], [4])
        rates = []
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        assert [0.5 * recipe.lr_factor(epoch) for epoch in range(10)] == pytest.approx(rates)

    def test_rises_step_by_step(self, data: TensorDataset) -> None:
        """Twenty samples in batches of 8, in two passes: six steps an epoch."""
        rates = []

        class Spy(torch.optim.SGD):
            def step(self, closure=None):
                rates.append(self.param_groups[0]["lr"])
                return super().step(closure)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim, "SGD", Spy)
            history = fit(net(), [Pass([DataPart(data)])] * 2, Recipe(3, 0.6, batch_size=8, warmup_epochs=2))
        assert rates == pytest.approx([0.05 * step for step in range(1, 13)] + [0.6] * 6)
        assert [epoch.lr for epoch in history] == pytest.approx([0.3, 0.6, 0.6])


class TestAdamW:
    def test_is_a_loop_in_plain_torch(self, data: TensorDataset) -> None:
        """Step by step: the weights after every epoch of one step.

        In float64: AdamW divides a small gradient by itself, which in float32 leaves little but its rounding.
        """
        model, seen = net().double(), []
        expected = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(expected.parameters(), 0.01, (0.8, 0.999), weight_decay=0.1)
        schedule = SequentialLR(
            optimizer, [LinearLR(optimizer, 0.5, total_iters=1), CosineAnnealingLR(optimizer, 4)], [2]
        )
        recipe = replace(ADAMW, momentum=0.8)

        fit(model, [Pass([DataPart(data)])], recipe, RunOptions(on_epoch=lambda _: seen.append(state(model))))
        for after in seen:
            optimizer.zero_grad()
            nn.functional.cross_entropy(expected(data.tensors[0].double()), data.tensors[1]).backward()
            optimizer.step()
            schedule.step()
            torch.testing.assert_close(after, expected.state_dict())
        assert len(seen) == 6

    @pytest.mark.same_inputs
    def test_a_small_vision_transformer_learns(self) -> None:
        """Which bright quarter an image has, with warm-up."""
        labels = torch.arange(64) % 4
        images = 0.1 * torch.rand(64, 3, 8, 8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 0.8
        how = {"image_size": 8, "patch_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
        model = import_torchvision().models.VisionTransformer(**how, num_classes=4)
        recipe = Recipe(15, 0.01, "cosine", batch_size=16, optimizer="adamw", warmup_epochs=3)
        history = fit(model, [Pass([DataPart(TensorDataset(images, labels))])], recipe)
        assert history[-1].loss < 0.5 < 1 < history[0].loss

    def test_resumes_bit_by_bit(self, data: TensorDataset, tmp_path: Path) -> None:
        training = Training(replace(ADAMW, batch_size=6), masked=True)

        def stop(forward: int) -> None:
            if forward == 25:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            training.run(tmp_path / "c", stop)
        made, expected = training.run(tmp_path / "c"), training.run(None)
        assert made.forwards < expected.forwards
        assert equal(made, expected)


class TestMask:
    @pytest.fixture
    def masks(self) -> dict[str, Tensor]:
        drawn = {name: torch.rand(each.shape) < 0.5 for name, each in net().named_parameters()}
        for mask in drawn.values():
            mask.view(-1)[:2] = torch.tensor([True, False])  # of each kind one
        return drawn

    @pytest.mark.parametrize("precision", [None, "float16"])
    def test_frozen_weights_are_bit_equal(self, data: TensorDataset, masks: dict, precision: str | None) -> None:
        model = net()
        before = state(model)
        fit(model, [Pass([DataPart(data)])], replace(ADAMW, precision=precision), RunOptions(mask=masks))
        for name, value in model.state_dict().items():
            assert torch.equal(value[~masks[name]], before[name][~masks[name]])
            assert (value[masks[name]] != before[name][masks[name]]).any()

    def test_the_rest_moves_as_if_the_others_had_no_gradient(self, data: TensorDataset, masks: dict) -> None:
        model = net().double()
        expected, before = copy.deepcopy(model), copy.deepcopy(model)
        fit(model, [Pass([DataPart(data)])], replace(ADAMW, epochs=3, schedule="constant"), RunOptions(mask=masks))
        optimizer = torch.optim.AdamW(expected.parameters(), weight_decay=0.1)
        for lr in (0.005, 0.01, 0.01):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            nn.functional.cross_entropy(expected(data.tensors[0].double()), data.tensors[1]).backward()
            optimizer.step()
            with torch.no_grad():
                for (name, each), old in zip(expected.named_parameters(), before.parameters(), strict=True):
                    each[~masks[name]] = old[~masks[name]]
        torch.testing.assert_close(model.state_dict(), expected.state_dict())

    def test_of_the_gradient_only_leaves_weight_decay(self, data: TensorDataset, masks: dict) -> None:
        model = net()
        before = state(model)
        recipe = Recipe(1, 0.01, batch_size=20, optimizer="adamw", weight_decay=0.1)
        fit(model, [Pass([DataPart(data)])], recipe, RunOptions(mask=masks, mask_gradient_only=True))
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value[~masks[name]], before[name][~masks[name]] * (1 - 0.01 * 0.1))

    def test_of_a_frozen_layer_and_one_that_does_not_fit(self, data: TensorDataset, masks: dict) -> None:
        model = net()
        model[1].requires_grad_(False)
        theirs = {name: mask for name, mask in masks.items() if name.startswith("3")}
        fit(model, [Pass([DataPart(data)])], ADAMW, RunOptions(mask=theirs))
        for wrong, message in (({}, "there for every"), ({**theirs, "4.bias": theirs["3.bias"]}, "masks for")):
            with pytest.raises(InputError, match=f"masks must be .*{message}"):
                fit(model, [Pass([DataPart(data)])], ADAMW, RunOptions(mask=wrong))

    def test_salun_with_it(self, data: TensorDataset) -> None:
        model = net()
        sets = TensorDataset(*data[:5]), TensorDataset(*data[5:])
        made = unlearn(model, *sets, method="salun", recipe=replace(ADAMW, epochs=3))
        flat = [torch.cat([each.flatten() for each in of.parameters()]) for of in (model, made)]
        assert (flat[0] == flat[1]).float().mean() == pytest.approx(0.5, abs=0.01)


class TestRecipe:
    def test_files_have_it(self, tmp_path: Path) -> None:
        save_tuned_options(tmp_path / "c.json", {("ft", True): {"recipe": ADAMW}}, {})
        assert load_tuned_options(tmp_path / "c.json")[0]["ft", True]["recipe"] == ADAMW
        assert Recipe(**{"epochs": 1, "lr": 0.1}).optimizer == "sgd"  # of a checkpoint from before there was one

    def test_flags(self, tmp_path: Path) -> None:
        out = tmp_path / "m.safetensors"
        flags = "--epochs 2 --lr 0.01 --optimizer adamw --weight-decay 0.05 --momentum 0.8 --warmup-epochs 1"
        line = f"train --data digits --model small-cnn --width 4 --batch-size 256 {flags} --out {out}"
        assert cli.main(line.split()) == 0
        told = json.loads(models.read_metadata(out)["recipe"])
        expected = Recipe(2, 0.01, told["schedule"], 256, 0.8, 0.05, optimizer="adamw", warmup_epochs=1)
        assert told == asdict(expected)
        assert Recipe(**told) == expected


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "spectral_norm"])
def test_a_number_beyond_the_range_of_floats_is_refused(name: str) -> None:
    for number in (10**400, -(10**400)):
        with pytest.raises(InputError, match=f"^{name} must be .*finite"):
            Recipe(**{"epochs": 1, "lr": 0.1, name: number})
