"""Which inputs and labels the methods train on, step by step."""

import dataclasses
import re
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from method_tools import ByHand, arrays, line, samples
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import amun_ext.training.loop
from amun_ext import InputError, unlearn
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS

WITH_RETAIN = [method for method, row in METHODS.items() if row.needs_retain]

Steps = list[tuple[Tensor, Tensor]]


@pytest.fixture
def steps(monkeypatch) -> Iterator[Steps]:
    """Inputs and labels of every step of training, in their order."""
    seen: Steps = []
    inputs: list[Tensor] = []

    def forward(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module.training:
            inputs.append(args[0].detach().clone())

    def cross_entropy(logits: Tensor, labels: Tensor, **options: str) -> Tensor:
        seen.append((inputs[-1], labels.clone()))
        return nn.functional.cross_entropy(logits, labels, **options)

    monkeypatch.setattr(amun_ext.training.loop, "F", SimpleNamespace(cross_entropy=cross_entropy))
    register = nn.modules.module.register_module_forward_pre_hook
    handle = register(lambda module, args: forward(module, args) if isinstance(module, nn.Linear) else None)
    yield seen
    handle.remove()


def of(steps: Steps, images: Tensor) -> Tensor:
    """The labels [M, times] that each of `images` [M, D] was trained on with."""
    x, labels = torch.cat([x for x, _ in steps]), torch.cat([labels for _, labels in steps])
    return torch.stack([labels[(x == image).all(1)] for image in images])


class TestForgetSamples:
    RECIPE = Recipe(epochs=3, lr=0.05, batch_size=4)

    @pytest.mark.parametrize("with_retain", [True, False])
    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("rl", {}),
            ("rl", {"order": "sequential"}),
            ("salun", {}),
            ("bs", {}),
            ("bs", {"teacher": "per_epoch"}),
            ("amun", {"include_forget": False, "search": "pgd"}),  # which finds an example for all
            ("amun+salun", {"include_forget": False, "search": "pgd"}),
        ],
    )
    def test_are_never_trained_on_as_they_were(
        self, steps: Steps, method: str, options: dict[str, object], with_retain: bool
    ) -> None:
        model = line(3, 4)
        forget, retain = samples(model, 9), samples(model, 14)
        unlearn(model, forget, retain if with_retain else None, method=method, recipe=self.RECIPE, **options)
        images, truth = forget.tensors
        times = 3 if method in ("rl", "salun", "bs") else 0
        assert of(steps, images).shape == (9, times)
        assert not (of(steps, images) == truth[:, None]).any()
        if with_retain:
            assert torch.equal(of(steps, retain.tensors[0]), retain.tensors[1][:, None].expand(-1, 3))
        examples = 27 if times == 0 else 0
        assert sum(len(x) for x, _ in steps) == 9 * times + 14 * 3 * with_retain + examples

    @pytest.mark.parametrize(("method", "times"), [("ga", 3), ("retrain", 0), ("ft", 0), ("l1-sparse", 0)])
    def test_have_their_true_labels_or_are_not_looked_at(self, steps: Steps, method: str, times: int) -> None:
        model = line(3, 4)
        forget, retain = samples(model, 9), samples(model, 14)
        unlearn(model, forget, retain, method=method, recipe=self.RECIPE)
        for data, seen in ((forget, times), (retain, 3)):
            assert torch.equal(of(steps, data.tensors[0]), data.tensors[1][:, None].expand(-1, seen))

    @pytest.mark.parametrize("method", WITH_RETAIN)
    def test_alone_are_refused_before_anything_is_done(self, method: str) -> None:
        class Untouchable(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                raise AssertionError

            __deepcopy__ = forward

        class Unread(torch.utils.data.Dataset):
            def __getitem__(self, index: int) -> object:
                raise AssertionError

            __len__ = __getitem__

        with pytest.raises(InputError, match=rf"^retain must be given: method {re.escape(method)} trains on it"):
            unlearn(Untouchable(2, 2), Unread(), method=method)


class TestRandomLabels:
    def labels(self, steps: Steps, **options: object) -> Tensor:
        """Of 200 forget samples, 40 of each of five classes, in 30 epochs."""
        model = nn.Linear(3, 5)
        forget = TensorDataset(torch.rand(200, 3), torch.arange(200) % 5)
        recipe = Recipe(epochs=30, lr=0.0, batch_size=200)
        steps.clear()
        unlearn(model, forget, method="rl", recipe=recipe, **options)
        assert len(steps) == 30
        return of(steps, forget.tensors[0]) - forget.tensors[1][:, None]  # 0 for the true one

    def test_are_uniform_over_the_wrong_classes_and_new_in_every_epoch(self, steps: Steps) -> None:
        shift = self.labels(steps) % 5
        counts = shift.view(40, 5, 30).permute(1, 0, 2).flatten(1)  # by true class
        counts = torch.stack([(counts == wrong).sum(1) for wrong in range(5)], dim=1)
        assert (counts[:, 0] == 0).all()
        chi_square = ((counts[:, 1:] - 300.0) ** 2 / 300).sum()
        assert chi_square < 60  # 15 degrees of freedom: beyond it once in three million seeds, and the seed is fixed
        agree = (shift[:, 1:] == shift[:, :-1]).float().mean()
        assert agree == pytest.approx(1 / 4, abs=0.04)

    def test_hit_the_true_label_once_in_k_where_they_may(self, steps: Steps) -> None:
        shift = self.labels(steps, true_label=True) % 5
        counts = torch.stack([(shift == each).sum() for each in range(5)])
        assert ((counts - 1200.0) ** 2 / 1200).sum() < 40

    def test_follow_from_the_seed(self, steps: Steps) -> None:
        first, same, other = (self.labels(steps, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first, same)
        assert (first == other).float().mean() < 0.5

    def test_are_not_of_the_stream_that_shuffles(self, steps: Steps) -> None:
        """It is seeded with the seed: labels drawn from the same would follow from a sample's place in its batch."""
        drawn = self.labels(steps, seed=0)
        stream = torch.randint(1, 5, (200,), generator=torch.Generator().manual_seed(0))
        assert ((drawn[:, 0] % 5) == stream).float().mean() < 0.5


class TestBoundaryShrink:
    RECIPE = Recipe(epochs=2, lr=1.0, batch_size=64, momentum=0.9, weight_decay=0.05)

    def taught(self, steps: Steps, model: nn.Linear, forget: TensorDataset, **options: object) -> Tensor:
        """The labels [N, epochs] of the forget samples."""
        steps.clear()
        unlearn(model, forget, method="bs", **{"recipe": self.RECIPE} | options)
        return of(steps, forget.tensors[0])

    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)])
    @pytest.mark.parametrize("require_wrong", [True, False])
    def test_labels_are_those_of_the_fgsm_image(
        self, steps: Steps, bounds: tuple[float, float], require_wrong: bool
    ) -> None:
        torch.manual_seed(3)
        model, (low, high) = line(3, 4), bounds
        unit = samples(model, 60)
        forget = TensorDataset(low + unit.tensors[0] * (high - low), unit.tensors[1])
        x, labels = arrays(forget)
        logits = ByHand(model).fgsm(x, labels, 0.1, low, high)
        expected = logits.argmax(1)
        still = expected == labels
        assert 5 < still.sum() < 55  # of both kinds
        if require_wrong:
            second = np.argsort(logits, axis=1)[:, -2]
            expected = np.where(still, second, expected)
        options = {"bounds": bounds, "require_wrong": require_wrong}
        assert (self.taught(steps, model, forget, **options).numpy() == expected[:, None]).all()

    @pytest.mark.parametrize(
        ("pixel", "threshold", "bounds", "label"),
        [
            # 0.503 + 0.1 becomes 154 / 255 = 0.6039 in eight bits: over the first boundary, and not over the second
            (0.503, 0.6035, (0.0, 1.0), 1),
            (0.503, 0.6041, (0.0, 1.0), 0),
            (0.95, 1.02, (0.0, 1.0), 0),
            (0.95, 1.02, (0.0, 2.0), 1),
        ],
    )
    def test_the_image_has_eight_bits_and_stays_in_its_bounds(
        self, steps: Steps, pixel: float, threshold: float, bounds: tuple[float, float], label: int
    ) -> None:
        model = line(1, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.0], [5.0]]))
            model.bias.copy_(torch.tensor([0.0, -5.0 * threshold]))
        forget = TensorDataset(torch.full((2, 1), pixel, dtype=torch.float64), torch.tensor([0, 0]))
        assert (self.taught(steps, model, forget, require_wrong=False, bounds=bounds) == label).all()

    @pytest.mark.parametrize("with_retain", [True, False])
    def test_teachers(self, steps: Steps, with_retain: bool) -> None:
        """A new teacher is the model as it is after the pass over the retain set."""
        torch.manual_seed(5)
        model = line(3, 4)
        forget, retain = samples(model, 40), samples(model, 30)
        x, labels = arrays(forget)
        hand = ByHand(model)
        frozen = hand.fgsm(x, labels, 0.1, 0, 1).argmax(1)
        own = []
        for _ in range(2):
            if with_retain:
                hand.step(1.0, *arrays(retain))
            own.append(hand.fgsm(x, labels, 0.1, 0, 1).argmax(1))
            hand.step(1.0, x, own[-1])
        assert (own[1] != frozen).any()
        for teacher, expected in (("frozen", [frozen, frozen]), ("per_epoch", own)):
            steps.clear()
            options = {"teacher": teacher, "require_wrong": False, "recipe": self.RECIPE}
            unlearn(model, forget, retain if with_retain else None, method="bs", **options)
            assert (of(steps, forget.tensors[0]).numpy() == np.stack(expected, axis=1)).all()

    @pytest.mark.parametrize("teacher", ["frozen", "per_epoch"])
    def test_the_teacher_answers_in_eval_mode(self, steps: Steps, teacher: str) -> None:
        torch.manual_seed(3)
        linear = line(3, 4)
        forget = samples(linear, 40)
        x, labels = arrays(forget)
        expected = ByHand(linear).fgsm(x, labels, 0.1, 0, 1).argmax(1)
        model = nn.Sequential(linear, nn.Dropout(0.9)).train()
        options = {"teacher": teacher, "require_wrong": False, "recipe": dataclasses.replace(self.RECIPE, lr=0.0)}
        assert (self.taught(steps, model, forget, **options).numpy() == expected[:, None]).all()
