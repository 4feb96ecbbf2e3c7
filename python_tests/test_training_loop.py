"""The training loop: its arithmetic against torch.optim by hand, what it reports, and what it leaves as it was."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training_tools import conv_net, equal, inputs_of, linear_net, part, pictures, positive, state

from amun_ext import InputError
from amun_ext.training import DataPart, Epoch, Pass, Recipe, RunOptions, crop_and_flip, fit


class TestFit:
    def test_one_full_batch_is_one_step_of_sgd(self) -> None:
        model, data = linear_net(), part()
        expected = copy.deepcopy(model)
        optimizer = torch.optim.SGD(expected.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
        for lr in (0.3, 0.03):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            images, labels = data.data.tensors
            nn.functional.cross_entropy(expected(images), labels).backward()
            optimizer.step()
        fit(model, [Pass([data])], Recipe(2, 0.3, "step:1", batch_size=20))
        torch.testing.assert_close(model.state_dict(), expected.state_dict())

    def test_seed_decides_and_the_random_state_is_put_back(self) -> None:
        data, start, results = part(50), nn.Sequential(nn.Dropout(0.5), linear_net()).eval(), []
        for seed in (0, 0, 1):
            model, random = copy.deepcopy(start), torch.get_rng_state()
            fit(model, [Pass([data])], Recipe(2, 0.1, batch_size=16), RunOptions(seed=seed))
            assert torch.equal(random, torch.get_rng_state())
            assert not model.training
            results.append(model)
        assert equal(results[0], results[1])
        assert not equal(results[0], results[2])

    def test_parts_are_shuffled_together_and_every_sample_is_seen_once_an_epoch(self) -> None:
        model, labels = linear_net(), torch.zeros(33, dtype=torch.long)
        seen = inputs_of(model)
        values = torch.arange(66.0).view(66, 1, 1, 1).expand(66, 1, 3, 4) / 66
        parts = [DataPart(TensorDataset(some, labels)) for some in (values[:33], values[33:])]
        fit(model, [Pass(parts)], Recipe(1, 0.1, batch_size=13))
        batches = [batch[:, 0, 0, 0].tolist() for batch in seen]
        assert [len(batch) for batch in batches] == [13, 13, 13, 13, 14]  # no batch of one: BatchNorm
        assert sorted(value for batch in batches for value in batch) == values[:, 0, 0, 0].tolist()
        assert any(min(batch) < 0.5 < max(batch) for batch in batches)

    def test_divergence_is_an_error(self) -> None:
        """In the last step too: its loss is of the weights before it."""
        last = DataPart(TensorDataset(100 * torch.ones(3, 1, 3, 4), torch.arange(3)))
        for data, recipe, what in (
            (part(), Recipe(30, 1e30), r"(loss is|weights are) .*; lower lr \(now 1e\+30\)"),
            (last, Recipe(1, 3e38), "weights are no longer finite; lower lr"),
        ):
            with pytest.raises(FloatingPointError, match=f"train: the {what}"):
                fit(linear_net(), [Pass([data])], recipe)

    def test_parts_that_are_not_to_be_augmented(self) -> None:
        model, labels = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.zeros(40, dtype=torch.long)
        seen = inputs_of(model)
        plain, moved = torch.rand(40, 1, 8, 8) + 1, torch.rand(40, 1, 8, 8) + 3
        parts = [DataPart(TensorDataset(plain, labels), augment=False), DataPart(TensorDataset(moved, labels))]
        fit(model, [Pass(parts)], Recipe(1, 0.1, batch_size=80, augment=True))
        sets = (seen[0], plain, moved)
        shown, plain, moved = ({tuple(image.flatten().tolist()) for image in images} for images in sets)
        assert plain <= shown
        assert len(shown & moved) < 10

    @pytest.mark.parametrize("accumulation_steps", [1, 2])
    def test_one_sample_is_enough_without_batchnorm(self, accumulation_steps: int) -> None:
        one, norm = [Pass([part(1)])], nn.Sequential(nn.BatchNorm2d(1), linear_net())
        fit(linear_net(), one, Recipe(2, 0.1, accumulation_steps=accumulation_steps))
        for mode in ("frozen", "eval"):
            fit(norm, one, Recipe(2, 0.1, batch_norm=mode))
        with pytest.raises(InputError, match=r"^parts must be at least two samples"):
            fit(norm, one, Recipe(2, 0.1))

    @pytest.mark.parametrize("masked", [False, True])
    def test_an_interrupt_leaves_no_gradients_and_the_modes(self, masked: bool) -> None:
        class Interrupted(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x.flatten(1))
                if self.weight.grad is not None:  # in the second piece of a batch
                    raise KeyboardInterrupt
                return logits

        model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(), Interrupted(12, 3)).eval()
        model[1].train()
        data, run = [Pass([part()])], RunOptions(mask=positive(model) if masked else None)
        before, random = [each.training for each in model.modules()], torch.get_rng_state()
        with pytest.raises(KeyboardInterrupt):
            fit(model, data, Recipe(1, 0.1, accumulation_steps=2, channels_last=True), run)
        assert all(each.grad is None for each in model.parameters())
        assert [each.training for each in model.modules()] == before
        assert torch.equal(torch.get_rng_state(), random)


class TestHistory:
    def test_has_every_epoch(self) -> None:
        model, data, shown = linear_net(), part(30), []
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
        model, parts = linear_net(), [part(7), part(12)]
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
        assert equal(other, model)
        assert other.training
        right = (other.eval()(data.tensors[0]).argmax(1) == data.tensors[1]).double().mean()
        assert last.accuracy["own"] == pytest.approx(100 * float(right))


class TestRunOptions:
    @pytest.mark.parametrize("name", ["seed", "num_workers"])
    def test_whole_numbers(self, name: str) -> None:
        for value in (-1, 2**40, 1.5, "1", None):
            with pytest.raises(InputError, match=f"^{name} must be a whole number from 0 on"):
                RunOptions(**{name: value})

    def test_others(self) -> None:
        for name, value in {"mask_gradient_only": True, "on_epoch": 3}.items():
            with pytest.raises(InputError, match=f"^{name} must be"):
                RunOptions(**{name: value})
        images, labels = part(4).data.tensors
        for data, message in (
            (TensorDataset(images[:0], labels[:0]), "non-empty"),
            (TensorDataset(images), "a TensorDataset"),
            ([*part(4).data], "a TensorDataset"),
            (TensorDataset(images * torch.nan, labels), "free of NaN"),
            (TensorDataset(images, labels.float()), "integers"),
        ):
            with pytest.raises(InputError, match=rf"^eval_sets\['test'\] (labels )?must be {message}"):
                RunOptions(eval_sets={"test": data})
        for recipe in ({"epochs": 1, "lr": 0.1}, None):
            with pytest.raises(InputError, match=r"^recipe must be a Recipe"):
                fit(linear_net(), [Pass([part()])], recipe)


@pytest.mark.parametrize("masked", [False, True])
class TestFrozen:
    def test_weights_without_requires_grad_are_unchanged(self, masked: bool) -> None:
        model = conv_net()
        model[0].weight.requires_grad_(False)
        model[1].bias.requires_grad_(False)
        before = state(model)
        trainable = {name for name, each in model.named_parameters() if each.requires_grad}
        mask = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in trainable}
        recipe = Recipe(3, 0.1, weight_decay=0.1)
        fit(model, [Pass([DataPart(pictures())])], recipe, RunOptions(mask=mask if masked else None))
        for name, value in model.named_parameters():
            assert torch.equal(value, before[name]) == (name not in trainable)
            assert value.requires_grad == (name in trainable)

    def test_weights_that_no_loss_depends_on_are_unchanged(self, masked: bool) -> None:
        model = linear_net()
        model.register_parameter("idle", nn.Parameter(torch.rand(3)))
        before = model.idle.detach().clone()
        mask = {name: torch.ones_like(each, dtype=torch.bool) for name, each in model.named_parameters()}
        fit(model, [Pass([part()])], Recipe(2, 0.1, weight_decay=0.1), RunOptions(mask=mask if masked else None))
        assert torch.equal(model.idle, before)


class TestMask:
    def test_without_any_weight(self) -> None:
        model = conv_net()
        before = state(model)
        mask = {name: torch.zeros_like(each, dtype=torch.bool) for name, each in model.named_parameters()}
        fit(model, [Pass([DataPart(pictures())])], Recipe(3, 0.1, weight_decay=0.1), RunOptions(mask=mask))
        assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])  # statistics are no weights

    def test_is_made_when_the_training_begins(self) -> None:
        model, data, asked = linear_net(), [Pass([part()])], []
        other, mask = copy.deepcopy(model), positive(model)

        def make() -> dict[str, Tensor]:
            asked.append(1)
            return mask

        flat = DataPart(TensorDataset(torch.rand(4, 12), torch.arange(4) % 3))
        with pytest.raises(InputError, match=r"^augment must be off"):
            fit(other, [Pass([flat])], Recipe(1, 0.1, augment=True), RunOptions(mask=make))
        assert not asked
        fit(model, data, Recipe(2, 0.1), RunOptions(mask=mask))
        fit(other, data, Recipe(2, 0.1), RunOptions(mask=make))
        assert asked == [1]
        assert equal(other, model)

    def test_that_does_not_fit(self) -> None:
        model = linear_net()
        mask = positive(model)
        for wrong in ({}, mask | {"other": mask["1.bias"]}, mask | {"1.bias": mask["1.bias"].float()}):
            with pytest.raises(InputError, match=r"^masks"):
                fit(model, [Pass([part()])], Recipe(1, 0.1), RunOptions(mask=wrong))


class TestAugment:
    def test_moves_by_at_most_four_pads_with_zeros_and_flips(self) -> None:
        image = torch.arange(1.0, 101.0).view(1, 1, 10, 10)
        seen = crop_and_flip(image.expand(500, -1, -1, -1), torch.Generator().manual_seed(0))
        padded, possible = nn.functional.pad(image, (4, 4, 4, 4))[0, 0], {}
        for top in range(9):
            for left in range(9):
                crop = padded[top : top + 10, left : left + 10]
                for flip, view in enumerate((crop, crop.flip(1))):
                    possible[tuple(view.flatten().tolist())] = (top, left, flip)
        places = [possible[tuple(view.flatten().tolist())] for view in seen]
        assert [{*each} for each in zip(*places, strict=True)] == [{*range(9)}, {*range(9)}, {0, 1}]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_suits_models_that_view_their_input(self, channels: int) -> None:
        class Viewing(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.view(len(x), -1))

        model = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), Viewing(4 * 64, 2))
        data = TensorDataset(torch.rand(6, channels, 8, 8), torch.randint(0, 2, (6,)))
        (epoch,) = fit(model, [Pass([DataPart(data)])], Recipe(1, 0.1, augment=True))
        assert epoch.loss > 0
