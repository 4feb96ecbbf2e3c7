"""The sets that stand in for D_A in the paper's section 6.2.1: which images, which labels, which are drawn."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from amun_ext import AdversarialSet, InputError
from amun_ext.unlearning.ablations import ABLATIONS, RECIPE, ablation_set

RANDOM_LABELS = ("Adv-RL", "Orig-RL")
Pair = tuple[TensorDataset, AdversarialSet]


def pair(count: int, shape: tuple[int, ...] = (1, 4, 4), classes: int = 5, dtype: torch.dtype = torch.float32) -> Pair:
    """Forget samples well inside the box with examples at random distances; none for every third sample."""
    images = 0.4 + 0.2 * torch.rand(count, *shape, dtype=dtype)
    labels = torch.randint(0, classes, (count,))
    step = torch.randn_like(images)
    length = (0.05 + 0.2 * torch.rand(count, dtype=dtype)) / step.flatten(1).norm(dim=1)
    moved = images + length.view(-1, *[1] * len(shape)) * step
    distance = (moved - images).double().flatten(1).norm(dim=1).to(dtype)
    found = torch.arange(count) % 3 != 1
    rows = found.view(-1, *[1] * len(shape))
    wrong = (labels + torch.randint(1, classes, (count,))) % classes
    examples = AdversarialSet(
        images=torch.where(rows, moved, images),
        labels=torch.where(found, wrong, labels),
        true_labels=labels,
        source_index=torch.arange(count),
        eps=distance,
        distance=distance.masked_fill(~found, torch.inf),
        grad_evals=torch.ones(count, dtype=torch.int32),
        found=found,
    )
    return TensorDataset(images, labels), examples


def built(name: str, given: Pair, **options) -> tuple[Tensor, Tensor]:
    images, labels = ablation_set(name, *given, **{"num_classes": 5, **options}).tensors
    return images, labels


class TestSets:
    def test_the_names_are_those_of_the_figures(self) -> None:
        assert [*ABLATIONS] == ["Adv", "Orig", "Adv-RS", "Adv-RL", "Orig-RL", "Orig-AdvL"]

    @pytest.mark.parametrize("name", ABLATIONS)
    def test_images_and_labels(self, name: str) -> None:
        forget, examples = given = pair(30)
        rows = examples.found
        images, labels = built(name, given)
        if name != "Adv-RS":
            expected = examples.images if name.startswith("Adv") else forget.tensors[0]
            assert torch.equal(images, expected[rows])
        if name not in RANDOM_LABELS:
            expected = forget.tensors[1] if name == "Orig" else examples.labels
            assert torch.equal(labels, expected[rows])
        assert images.shape == (20, 1, 4, 4)
        assert labels.shape == (20,)
        assert labels.dtype == torch.int64

    @pytest.mark.parametrize("name", ABLATIONS)
    def test_device_type_and_random_state(self, name: str, device: str) -> None:
        for dtype in (torch.float16, torch.float64):
            forget, examples = given = pair(12, dtype=dtype)
            state = torch.get_rng_state()
            here = built(name, given)
            there = built(name, (TensorDataset(*(part.to(device) for part in forget.tensors)), examples))
            assert torch.equal(state, torch.get_rng_state())
            assert there[0].dtype == dtype
            assert there[0].device.type == there[1].device.type == device
            torch.testing.assert_close(there[0].cpu(), here[0])
            assert torch.equal(there[1].cpu(), here[1])

    def test_any_dataset(self) -> None:
        forget, examples = given = pair(9)
        items = [(image, int(label)) for image, label in forget]
        assert torch.equal(built("Orig", (items, examples))[0], built("Orig", given)[0])

    def test_the_recipe_is_the_published_one(self) -> None:
        rates = [RECIPE.lr * RECIPE.lr_factor(epoch) for epoch in range(RECIPE.epochs)]
        assert rates == pytest.approx([0.01] * 5 + [1e-3] * 5 + [1e-4] * 5 + [1e-5] * 5)


class TestRandomLabels:
    @pytest.mark.parametrize("name", RANDOM_LABELS)
    @pytest.mark.parametrize("classes", [3, 4, 10])
    @pytest.mark.same_inputs
    def test_all_classes_but_two_equally_often(self, name: str, classes: int) -> None:
        forget, examples = given = pair(30_000, (2,), classes)
        rows = examples.found
        _, drawn = built(name, given, num_classes=classes)
        labels, wrong = forget.tensors[1][rows], examples.labels[rows]
        assert (drawn != labels).all()
        assert (drawn != wrong).all()
        expected = 1 / (classes - 2)
        spread = (expected * (1 - expected) / (20_000 / classes / (classes - 1))) ** 0.5  # of a pair's frequency
        for two in itertools.permutations(range(classes), 2):
            mine = drawn[(labels == two[0]) & (wrong == two[1])]
            shares = torch.bincount(mine, minlength=classes) / len(mine)
            rest = [label for label in range(classes) if label not in two]
            torch.testing.assert_close(shares[rest], torch.full((len(rest),), expected), atol=6 * spread, rtol=0)

    @pytest.mark.parametrize("name", ABLATIONS)
    def test_seeds(self, name: str) -> None:
        given = pair(90)
        first, again, other = (built(name, given, seed=seed) for seed in (1, 1, 2))
        assert all(torch.equal(*both) for both in zip(first, again, strict=True))
        assert torch.equal(first[1], other[1]) == (name not in RANDOM_LABELS)
        assert torch.equal(first[0], other[0]) == (name != "Adv-RS")

    @pytest.mark.parametrize("name", ABLATIONS)
    def test_two_classes_leave_no_third(self, name: str) -> None:
        given = pair(6, classes=2)
        if name in RANDOM_LABELS:
            with pytest.raises(InputError, match=r"num_classes must be at least 3: .*, got 2"):
                built(name, given, num_classes=2)
        else:
            built(name, given, num_classes=2)


class TestSphere:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", [(2,), (3, 5, 4)])
    @pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
    def test_at_the_distance_of_its_sample(self, shape, dtype: torch.dtype, bounds) -> None:
        forget, examples = given = pair(30, shape, dtype=dtype)  # no image reaches the box
        moved = (built("Adv-RS", given, bounds=bounds)[0] - forget.tensors[0][examples.found]).flatten(1).norm(dim=1)
        torch.testing.assert_close(moved, examples.distance[examples.found], rtol=1e-5, atol=1e-6)

    def test_the_box_only_shortens(self) -> None:
        forget, examples = given = pair(300)
        images = forget.tensors[0] + 5 * (examples.images - forget.tensors[0])
        far = dataclasses.replace(examples, images=images, distance=5 * examples.distance)
        given, rows = (forget, far), far.found
        inside, outside = (built("Adv-RS", given, bounds=bounds)[0] for bounds in ((0.0, 1.0), None))
        assert torch.equal(inside, outside.clamp(0, 1))
        assert not torch.equal(inside, outside)
        moved = (inside - forget.tensors[0][rows]).flatten(1).norm(dim=1)
        assert (moved <= far.distance[rows] * (1 + 1e-5)).all()

    def test_no_direction_is_preferred(self) -> None:
        forget, examples = given = pair(60_000, (3,))
        rows = examples.found
        unit = (built("Adv-RS", given, bounds=None)[0] - forget.tensors[0][rows]) / examples.distance[rows, None]
        # Moments of the uniform distribution on the sphere: 6.7 standard errors of 40,000 draws or more, 10^-9 in all.
        torch.testing.assert_close(unit.mean(0), torch.zeros(3), atol=0.02, rtol=0)
        torch.testing.assert_close(unit.T @ unit / len(unit), torch.eye(3) / 3, atol=0.01, rtol=0)
        torch.testing.assert_close(unit.pow(4).mean(0), torch.full((3,), 1 / 5), atol=0.01, rtol=0)

    def test_a_sample_that_was_misclassified_stays(self) -> None:
        forget, examples = pair(3)
        images, distance = examples.images.clone(), examples.distance.clone()
        images[0], distance[0] = forget.tensors[0][0], 0.0
        still = dataclasses.replace(examples, images=images, distance=distance)
        assert torch.equal(built("Adv-RS", (forget, still))[0][0], forget.tensors[0][0])


class TestBadInput:
    def test_arguments(self) -> None:
        given = pair(6)
        with pytest.raises(InputError, match="name must be one of"):
            built("Adv-LR", given)
        with pytest.raises(InputError, match="num_classes must be a whole number from 2 on"):
            built("Adv", given, num_classes=1)
        with pytest.raises(InputError, match="seed must be a whole number from 0 on"):
            built("Adv", given, seed=-1)
        with pytest.raises(InputError, match=r"forget must be inside bounds \(0.0, 0.3\)"):
            built("Adv", given, bounds=(0.0, 0.3))

    def test_labels_beyond_the_classes(self) -> None:
        forget, examples = pair(30, classes=3)
        with pytest.raises(InputError, match=r"forget labels must be in \[0, 2\)"):
            built("Adv", (forget, examples), num_classes=2)
        beyond = dataclasses.replace(examples, labels=torch.where(examples.found, 7, examples.labels))
        with pytest.raises(InputError, match=r"adversarial labels must be in \[0, 5\)"):
            built("Adv", (forget, beyond))

    def test_examples_of_others(self) -> None:
        forget, examples = pair(6)
        with pytest.raises(InputError, match="adversarial must be the examples of these forget samples"):
            built("Adv", (TensorDataset(pair(6)[0].tensors[0], forget.tensors[1]), examples))
        with pytest.raises(InputError, match="adversarial must be a row for each of the 5 forget samples"):
            built("Adv", (pair(5)[0], examples))
        with pytest.raises(InputError, match="adversarial must be examples with wrong labels"):
            built("Adv", (forget, dataclasses.replace(examples, labels=examples.true_labels)))

    def test_nothing_found(self) -> None:
        forget, examples = pair(6)
        none = dataclasses.replace(examples, found=torch.zeros(6, dtype=torch.bool))
        with pytest.raises(InputError, match="forget must be a set with an adversarial example"):
            built("Adv", (forget, none))
