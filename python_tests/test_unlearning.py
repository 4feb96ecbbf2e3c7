"""unlearn: what is trained on, what is left out, what is refused."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from method_tools import needs
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, random_split

from amun_ext import InputError, find_min_adversarial, saliency_mask, unlearn
from amun_ext.data import find_duplicates
from amun_ext.search import METHODS as SEARCHES
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS

# Python 3.12 and later warn where a process with threads makes another, as DataLoader does
FORKS = "ignore:.*multi-threaded, use of fork:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(FORKS)

ONE_PASS = Recipe(epochs=1, lr=0.0)
ONE_STEP = Recipe(epochs=1, lr=0.1)


class Recording(nn.Module):
    """Remembers, through copies, which inputs it was trained on."""

    seen: list[Tensor] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        # All logits meet in the middle of the box, so that every input has an example inside it.
        self.linear.bias.data = -0.5 * self.linear.weight.data.sum(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Recording.seen.append(x.detach().clone())
        return self.linear(x)


@pytest.fixture
def model() -> Recording:
    Recording.seen = []
    return Recording().train()


def labelled(model: nn.Module, count: int) -> TensorDataset:
    images = torch.rand(count, 6)
    return TensorDataset(images, model.linear(images).argmax(1))


def rows(images: Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in images.tolist())


class TestAmun:
    @pytest.mark.parametrize("include_forget", [True, False])
    @pytest.mark.parametrize("with_retain", [True, False])
    def test_trains_on_exactly_its_sets(self, model: Recording, include_forget: bool, with_retain: bool) -> None:
        forget, retain = labelled(model, 10), labelled(model, 30)
        adversarial = find_min_adversarial(model, *forget.tensors, bounds=(0.0, 1.0))
        Recording.seen = []
        unlearn(
            model,
            forget,
            retain if with_retain else None,
            include_forget=include_forget,
            adversarial=adversarial,
            recipe=ONE_PASS,
        )
        found = adversarial.found
        expected = [adversarial.images[found]]
        expected += [forget.tensors[0][found]] if include_forget else []
        expected += [retain.tensors[0]] if with_retain else []
        assert rows(torch.cat(Recording.seen)) == rows(torch.cat(expected))

    def test_labels_are_the_wrong_ones_for_the_examples_and_the_true_ones_else(self, monkeypatch, model) -> None:
        forget, retain = labelled(model, 10), labelled(model, 20)
        adversarial = find_min_adversarial(model, *forget.tensors)
        parts = []
        module = sys.modules["amun_ext.unlearning.amun"]  # the package has the function by this name
        monkeypatch.setattr(module, "fit", lambda _, passes, *__, **___: parts.extend(passes[0].parts))
        unlearn(model, forget, retain, adversarial=adversarial)
        examples, forgotten, retained = parts
        found = adversarial.found
        assert torch.equal(examples.data.tensors[1], adversarial.labels[found])
        assert (examples.data.tensors[1] != forget.tensors[1][found]).all()
        assert not examples.augment
        assert torch.equal(forgotten.data.tensors[1], forget.tensors[1][found])
        assert forgotten.augment
        assert torch.equal(retained.data.tensors[1], retain.tensors[1])
        assert retained.augment

    def test_samples_without_an_example_are_left_out_and_reported(self, model: Recording) -> None:
        forget = labelled(model, 10)
        result = find_min_adversarial(model, *forget.tensors)
        partly = dataclasses.replace(result, found=torch.arange(10) % 2 == 0)
        with pytest.warns(RuntimeWarning, match=r"5 of 10 forget samples .* left out: rows \[1, 3, 5, 7, 9\]"):
            unlearn(model, forget, adversarial=partly, recipe=ONE_PASS)
        trained_on = torch.cat(Recording.seen)
        left_out = forget.tensors[0][1::2]
        assert not any((trained_on == image).all(1).any() for image in left_out)

    def test_nothing_found_is_an_error(self, model: Recording) -> None:
        forget = labelled(model, 4)
        result = find_min_adversarial(model, *forget.tensors)
        nothing = dataclasses.replace(result, found=torch.zeros(4, dtype=torch.bool))
        with pytest.raises(InputError, match="forget must be attackable"):
            unlearn(model, forget, adversarial=nothing)

    def test_examples_of_another_set_are_refused(self, model: Recording) -> None:
        result = find_min_adversarial(model, *labelled(model, 4).tensors)
        with pytest.raises(InputError, match="adversarial must be a row for each of the 5 forget samples"):
            unlearn(model, labelled(model, 5), adversarial=result)
        with pytest.raises(InputError, match="adversarial must be the examples of these forget samples"):
            unlearn(model, TensorDataset(torch.rand(4, 6), result.true_labels), adversarial=result)

    def test_examples_with_true_labels_are_refused(self, model: Recording) -> None:
        forget = labelled(model, 4)
        result = find_min_adversarial(model, *forget.tensors)
        with pytest.raises(InputError, match="adversarial must be examples with wrong labels"):
            unlearn(model, forget, adversarial=dataclasses.replace(result, labels=result.true_labels))

    def test_search_options_pass_through(self, model: Recording) -> None:
        forget = labelled(model, 4)
        unlearn(model, forget, recipe=ONE_PASS, search="pgd", loss="margin", steps=20)
        with pytest.raises(InputError, match="settings of the search must be absent"):
            unlearn(model, forget, adversarial=find_min_adversarial(model, *forget.tensors), loss="margin")
        with pytest.raises(
            InputError, match=r"nonsense must be left out: method amun has the options .*include_forget"
        ):
            unlearn(model, forget, nonsense=1)
        with pytest.raises(InputError, match=r"lr must be in the recipe, as recipe=Recipe\(lr=\.\.\.\), got 0\.1"):
            unlearn(model, forget, lr=0.1)

    def test_examples_are_shown_in_a_line(self, model: Recording) -> None:
        shown = repr(find_min_adversarial(model, *labelled(model, 4).tensors))
        assert shown.startswith("AdversarialSet(4 of 4 found, images (4, ")
        assert "\n" not in shown

    @pytest.mark.parametrize("search", SEARCHES)
    def test_trains_on_the_examples_of_the_search(self, model: Recording, search: str) -> None:
        forget = labelled(model, 6)
        examples = find_min_adversarial(model, *forget.tensors, method=search)
        Recording.seen.clear()
        given = unlearn(model, forget, adversarial=examples, recipe=ONE_STEP, include_forget=False)
        searched = unlearn(model, forget, search=search, recipe=ONE_STEP, include_forget=False)
        torch.testing.assert_close(searched.linear.weight, given.linear.weight)

    def test_the_search_is_ddn_unless_told_otherwise(self, model: Recording) -> None:
        forget = labelled(model, 6)
        default, ddn, pgd = (
            unlearn(model, forget, recipe=ONE_STEP, **search) for search in ({}, {"search": "ddn"}, {"search": "pgd"})
        )
        assert torch.equal(default.linear.weight, ddn.linear.weight)
        assert not torch.equal(default.linear.weight, pgd.linear.weight)


class TestRetrain:
    def test_sees_the_retain_set_alone_and_starts_afresh(self, model: Recording) -> None:
        forget, retain = labelled(model, 5), labelled(model, 20)
        fresh = unlearn(model, forget, retain, method="retrain", recipe=ONE_PASS)
        assert rows(torch.cat(Recording.seen)) == rows(retain.tensors[0])
        assert not torch.equal(fresh.linear.weight, model.linear.weight)

    def test_needs_the_retain_set(self, model: Recording) -> None:
        with pytest.raises(InputError, match="retain must be given"):
            unlearn(model, labelled(model, 5), method="retrain", recipe=ONE_PASS)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(model: Recording, context) -> None:
    forget, retain = labelled(model, 5), labelled(model, 20)
    with context():
        result = unlearn(model, forget, retain, recipe=Recipe(epochs=1, lr=0.1))
    assert not torch.equal(result.linear.weight, model.linear.weight)
    assert all(parameter.grad is None for parameter in result.parameters())


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_leaves_the_model_and_the_random_state(self, model: Recording, method: str) -> None:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        forget, retain, state = labelled(model, 5), labelled(model, 20), torch.get_rng_state()
        recipe = Recipe(epochs=1, lr=0.1)
        result = unlearn(model, forget, retain, method=method, recipe=recipe, **needs(method, forget))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(state, torch.get_rng_state())
        assert not torch.equal(result.linear.weight, model.linear.weight)

    def test_seed_decides(self, model: Recording, method: str) -> None:
        forget, retain, recipe = labelled(model, 5), labelled(model, 20), Recipe(epochs=2, lr=0.1, batch_size=8)
        options = {"method": method, "recipe": recipe, **needs(method, forget)}
        weights = [unlearn(model, forget, retain, seed=seed, **options).linear.weight for seed in (1, 1, 2)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


class TestBadInput:
    def test_method_and_model(self, model: Recording) -> None:
        with pytest.raises(InputError, match="method must be one of"):
            unlearn(model, labelled(model, 5), method="hope")
        with pytest.raises(InputError, match=r"model must be an nn\.Module"):
            unlearn(len, labelled(model, 5))

    def test_empty_sets(self, model: Recording) -> None:
        empty = TensorDataset(torch.rand(0, 6), torch.zeros(0, dtype=torch.long))
        with pytest.raises(InputError, match="forget must be"):
            unlearn(model, empty)
        with pytest.raises(InputError, match="retain must be"):
            unlearn(model, labelled(model, 5), empty)

    def test_nan_and_shapes(self, model: Recording) -> None:
        images, labels = labelled(model, 5).tensors
        with pytest.raises(InputError, match="forget must be free of NaN"):
            unlearn(model, TensorDataset(images * torch.nan, labels))
        with pytest.raises(InputError, match=r"retain must be of the forget set's input shape \(6,\), got \(5,\)"):
            unlearn(model, TensorDataset(images, labels), TensorDataset(images[:, :5], labels))

    def test_copies(self, model: Recording) -> None:
        forget, retain = labelled(model, 5), labelled(model, 20)
        both = TensorDataset(*(torch.cat([a, b[3:4]]) for a, b in zip(retain.tensors, forget.tensors, strict=True)))
        assert find_duplicates(forget, retain) == []
        assert find_duplicates(forget, both) == [(3, 20)]
        with pytest.raises(InputError, match=r"retain must be free of the forget samples, got 1 of them .*\(3, 20\)"):
            unlearn(model, forget, both)
        relabelled = TensorDataset(both.tensors[0].double(), (both.tensors[1] + 1) % 3)
        assert find_duplicates(forget, relabelled) == [(3, 20)]
        signed = [TensorDataset(torch.tensor([[zero, 1.0]]), torch.tensor([0])) for zero in (0.0, -0.0)]
        assert find_duplicates(*signed) == [(0, 0)]

    def test_labels_the_model_does_not_have(self, model: Recording) -> None:
        images, labels = labelled(model, 20).tensors
        for wrong, message in ((-100, "retain labels must be not negative"), (3, r"retain labels must be in \[0, 3\)")):
            with pytest.raises(InputError, match=message):
                unlearn(model, labelled(model, 5), TensorDataset(images, torch.full_like(labels, wrong)))

    def test_frozen_models(self, model: Recording) -> None:
        with pytest.raises(InputError, match="model must be trainable"):
            unlearn(model.requires_grad_(False), labelled(model, 5), recipe=ONE_PASS)

    def test_options_of_another_method(self, model: Recording) -> None:
        forget, retain = labelled(model, 5), labelled(model, 20)
        for method, option in (
            ("ft", "order"),
            ("rl", "eps"),
            ("bs", "true_label"),
            ("ga", "gamma"),
            ("salun", "steps"),
        ):
            with pytest.raises(InputError, match=rf"^{option} must be left out: method {method} has the options \["):
                unlearn(model, forget, retain, method=method, **{option: 1})
        for taken in ("inputs", "labels", "run"):  # of the search or the method, but not the caller's
            with pytest.raises(InputError, match=f"^{taken} must be left out"):
                unlearn(model, forget, retain, **{taken: 1})

    def test_options_have_no_name_that_unlearn_has(self) -> None:
        own = {
            "model",
            "forget",
            "retain",
            "method",
            "preset",
            "mask",
            "mask_gradient_only",
            "seed",
            "checkpoint",
            "eval_sets",
        }
        own |= {"on_epoch", "num_workers", "progress"}
        assert not any(own & row.options.keys() for row in METHODS.values())

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seed": -1}, "seed must be a whole number from 0 on, got -1"),
            ({"seed": 2**70}, "seed must be a whole number from 0 on, below 2[*][*]31, got 1180591620717411303424"),
            ({"num_workers": -1}, "num_workers must be a whole number from 0 on, got -1"),
            ({"mask": 0}, r"mask must be bool tensors by name, or a fraction in \(0, 1\], got 0"),
            ({"mask": 1.5}, r"mask must be bool tensors by name, or a fraction in \(0, 1\], got 1\.5"),
            ({"mask": float("nan")}, r"mask must be bool tensors by name, or a fraction in \(0, 1\], got nan"),
            ({"mask": "half"}, r"mask must be bool tensors by name, or a fraction in \(0, 1\], got 'half'"),
            ({"mask": True}, r"mask must be bool tensors by name, or a fraction in \(0, 1\], got True"),
            (
                {"mask": {"linear.weight": torch.ones(3, 6) > 0}},
                r"(masks must be there for every parameter|mask must be left)",
            ),
            ({"recipe": {"epochs": 1, "lr": 0.1}}, "recipe must be a Recipe, got dict"),
            (
                {"recipe": Recipe(1, 0.1, augment=True)},
                r"augment must be off for inputs other than \[N, C, H, W\], got 2",
            ),
            ({"eval_sets": {"test": 3}}, r"eval_sets\['test'\] must be a TensorDataset of images and labels, got int"),
            ({"on_epoch": "print"}, "on_epoch must be a function, got print"),
            ({"checkpoint": "."}, r"checkpoint must be a file in a folder that can be written to, got \."),
        ],
    )
    def test_is_refused_before_any_work(
        self, model: Recording, monkeypatch, method: str, options: dict[str, object], message: str
    ) -> None:
        """Before the search, the mask and the first epoch, which may take long."""

        def work(*_: object, **__: object) -> None:
            raise AssertionError

        for module in ("", ".amun"):
            for name in ("saliency_mask", "find_min_adversarial"):
                monkeypatch.setattr(sys.modules[f"amun_ext.unlearning{module}"], name, work, raising=False)
        forget, retain = labelled(model, 5), labelled(model, 20)
        Recording.seen.clear()
        with pytest.raises(InputError, match=f"^{message}"):
            unlearn(model, forget, retain, method=method, **{"recipe": ONE_PASS} | options)
        assert not Recording.seen

    def test_flags_and_others(self, model: Recording) -> None:
        """A flag that is a word would be true, whichever it is."""
        forget, retain = labelled(model, 5), labelled(model, 20)
        for method, options, message in (
            ("rl", {"true_label": "no"}, "true_label must be True or False, got 'no'"),
            ("salun", {"true_label": 1}, "true_label must be True or False, got 1"),
            ("bs", {"require_wrong": "no"}, "require_wrong must be True or False, got 'no'"),
            ("amun", {"include_forget": "no"}, "include_forget must be True or False, got 'no'"),
            ("amun", {"search": "walk"}, r"search must be one of \(.*\) or a function, got 'walk'"),
            ("amun", {"search": ["pgd"]}, r"search must be one of \(.*\) or a function, got \['pgd'\]"),
            ("amun", {"adversarial": forget}, "adversarial must be an AdversarialSet, got TensorDataset"),
            ("bs", {"bounds": (1.0, 0.0)}, r"bounds must be a pair of finite numbers, .*, got \(1.0, 0.0\)"),
            ("bs", {"bounds": (0.0, float("inf"))}, "bounds must be a pair of finite numbers"),
            ("bs", {"bounds": 1}, "bounds must be a pair of finite numbers"),
            (["rl"], {}, r"method must be one of .*, got \['rl'\]"),
            ("rl", {"preset": ["amun-paper"]}, r"preset must be one of .*, got \['amun-paper'\]"),
            ("rl", {"eval_sets": [retain]}, "eval_sets must be sets by name"),
            ("rl", {"eval_sets": {3: retain}}, "eval_sets must be sets by name"),
        ):
            with pytest.raises(InputError, match=f"^{message}"):
                unlearn(model, forget, retain, method=method, **{"recipe": ONE_PASS} | options)

    def test_a_state_that_no_checkpoint_can_hold(self, model: Recording, tmp_path: Path) -> None:
        class Extra(Recording):
            def get_extra_state(self) -> object:
                return {"of": "its own"}

            def set_extra_state(self, state: object) -> None:
                pass

        extra = Extra()
        unlearn(extra, labelled(extra, 5), method="rl", recipe=ONE_PASS)
        with pytest.raises(InputError, match=r"^model must be without extra state, .*, got \['_extra_state'\]"):
            unlearn(extra, labelled(extra, 5), method="rl", recipe=ONE_PASS, checkpoint=tmp_path / "checkpoint")

    def test_bad_options_come_before_the_mask(self, model: Recording, monkeypatch) -> None:
        monkeypatch.setattr(sys.modules["amun_ext.unlearning.unlearn"], "saliency_mask", None)
        with pytest.raises(InputError, match=r"^order must be"):
            unlearn(model, labelled(model, 5), method="salun", order="any")
        with pytest.raises(InputError, match=r"^mask must be left out: retraining changes all weights"):
            unlearn(model, labelled(model, 5), labelled(model, 20), method="retrain", mask=0.5, recipe=ONE_PASS)

    def test_gradient_only_without_a_mask(self, model: Recording) -> None:
        for method in ("rl", "amun"):
            with pytest.raises(InputError, match=r"^mask_gradient_only must be False without a mask, got True"):
                unlearn(model, labelled(model, 5), method=method, mask_gradient_only=True)
        unlearn(model, labelled(model, 5), method="rl", mask_gradient_only=True, mask=0.5, recipe=ONE_PASS)

    def test_sets_to_watch(self, model: Recording) -> None:
        forget = labelled(model, 5)
        for images, labels, message in (
            (torch.rand(4, 5), torch.zeros(4), r"eval_sets\['test'\] labels must be integers"),
            (
                torch.rand(4, 5),
                torch.zeros(4, dtype=torch.long),
                r"eval_sets\['test'\] must be of the forget set's input shape",
            ),
            (torch.rand(4, 6), torch.full((4,), 3), r"eval_sets\['test'\] labels must be in \[0, 3\)"),
        ):
            with pytest.raises(InputError, match=f"^{message}"):
                unlearn(model, forget, eval_sets={"test": TensorDataset(images, labels)}, method="rl")

    def test_models_that_cannot_be_copied(self, model: Recording) -> None:
        model.grown = [model.linear.weight * 2]  # deepcopy refuses tensors that were computed
        with pytest.raises(InputError, match=r"^model must be one that copy\.deepcopy can copy, got Only Tensors"):
            unlearn(model, labelled(model, 5), recipe=ONE_PASS)


class Items(Dataset):
    """A dataset that is read item by item; `changed` has other items for some of them."""

    def __init__(self, data: TensorDataset, changed: dict[int, object] | None = None) -> None:
        self.data, self.changed = data, changed or {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> object:
        image, label = self.data[index]
        return self.changed.get(index, (image, int(label)))


class TestDatasets:
    RECIPE = Recipe(2, 0.1, batch_size=8)

    @pytest.mark.parametrize("method", METHODS)
    def test_are_as_good_as_tensors(self, model: Recording, method: str) -> None:
        forget, retain = labelled(model, 6), labelled(model, 15)
        options = {"method": method, "recipe": self.RECIPE, **needs(method, forget)}
        expected = unlearn(model, forget, retain, **options)
        given = unlearn(model, Items(forget), Items(retain), **options)
        assert torch.equal(given.linear.weight, expected.linear.weight)

    def test_are_read_by_workers(self, model: Recording) -> None:
        forget, retain = labelled(model, 6), labelled(model, 15)
        expected = unlearn(model, forget, retain, recipe=self.RECIPE)
        given = unlearn(model, forget, Items(retain), recipe=self.RECIPE, num_workers=2)
        assert torch.equal(given.linear.weight, expected.linear.weight)

    def test_subsets_of_tensors_are_in_memory(self, model: Recording, monkeypatch) -> None:
        forget, everything = labelled(model, 6), labelled(model, 30)
        rows = list(range(29, 3, -2))
        retain = TensorDataset(*(tensor[rows] for tensor in everything.tensors))
        expected = unlearn(model, forget, retain, recipe=self.RECIPE).linear.weight
        monkeypatch.setattr("amun_ext.training.parts.DataLoader", None)
        nested = Subset(Subset(everything, range(30)[::-1]), np.arange(0, 26, 2))
        for subset in (Subset(everything, rows), Subset(everything, torch.tensor(rows)), nested):
            assert torch.equal(unlearn(model, forget, subset, recipe=self.RECIPE).linear.weight, expected)
        for part in random_split(everything, [10, 20]):
            unlearn(model, forget, part, recipe=ONE_PASS)

    def test_a_class_of_tensors_may_have_items_of_its_own(self, model: Recording) -> None:
        class Brighter(TensorDataset):
            def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
                image, label = super().__getitem__(index)
                return image + 5, label

        class Half(Subset):
            def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
                image, label = super().__getitem__(index)
                return image / 2 + 5, label

            def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
                return [self[index] for index in indices]

        data = labelled(model, 15)
        for retain in (Brighter(*data.tensors), Half(data, range(15)), Subset(Brighter(*data.tensors), range(15))):
            Recording.seen.clear()
            unlearn(model, labelled(model, 5), retain, method="ft", recipe=ONE_PASS)
            assert torch.cat(Recording.seen).min() >= 5

    def test_copies_are_found(self, model: Recording) -> None:
        forget, retain = labelled(model, 5), labelled(model, 9)
        deep_copy = Items(retain, {7: (forget.tensors[0][2].double(), 0), 8: (forget.tensors[0][0], 1)})
        with pytest.raises(InputError, match=r"^retain must be free .*, got 2 of them .*\[\(2, 7\), \(0, 8\)\]"):
            unlearn(model, forget, deep_copy, method="ft")
        with pytest.raises(InputError, match=r"^retain must be free .*\[\(2, 1\)\]"):
            unlearn(model, forget, Subset(deep_copy, [3, 7, 5]), method="ft")

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ((torch.full((6,), torch.nan), 0), r"retain\[4\] must be free of NaN"),
            ((torch.full((6,), torch.inf), 0), r"retain\[4\] must be finite"),
            ((torch.rand(5), 0), r"retain\[4\] must be of the forget set's input shape \(6,\), got \(5,\)"),
            ((torch.ones(6, dtype=torch.uint8), 0), r"retain\[4\] must be floating point"),
            ((torch.rand(6), 3), r"retain\[4\] label must be in \[0, 3\)"),
            ((torch.rand(6), -1), r"retain\[4\] label must be in \[0, 3\)"),
            ((torch.rand(6), 1.0), r"retain\[4\] must be a pair \(tensor image, int label\)"),
            ((np.zeros(6), 0), r"retain\[4\] must be a pair \(tensor image, int label\), got \(ndarray, int\)"),
            (torch.rand(6), r"retain\[4\] must be a pair"),
            (None, r"retain\[4\] must be a pair"),
        ],
    )
    def test_a_bad_item_is_named(self, model: Recording, item: object, message: str) -> None:
        with pytest.raises(InputError, match=f"^{message}"):
            unlearn(model, labelled(model, 5), Items(labelled(model, 9), {4: item}), method="ft")
        assert not Recording.seen

    def test_bad_items_of_the_forget_set(self, model: Recording) -> None:
        for item in ((torch.rand(5), 0), (torch.rand(6).double(), 0), (torch.rand(6), 0.5), 7):
            with pytest.raises(InputError, match=r"^forget\[2\] must be "):
                unlearn(model, Items(labelled(model, 5), {2: item}), method="rl")
        with pytest.raises(InputError, match=r"^forget must be free of NaN"):
            unlearn(model, Items(labelled(model, 5), {2: (torch.full((6,), torch.nan), 0)}), method="rl")

    def test_types_of_items(self, model: Recording) -> None:
        """Lists of pairs; labels that are NumPy's, tensors, and tensors of one element; other integer types."""
        forget, retain = labelled(model, 6), labelled(model, 15)
        expected = unlearn(model, forget, retain, method="ga", recipe=self.RECIPE).linear.weight
        kinds = (int, np.int64, np.uint8, torch.tensor, lambda label: torch.tensor([label]))
        for kind in kinds:
            sets = [
                [(image, kind(int(label))) for image, label in zip(*each.tensors, strict=True)]
                for each in (forget, retain)
            ]
            assert torch.equal(unlearn(model, *sets, method="ga", recipe=self.RECIPE).linear.weight, expected)
        for dtype in (torch.int32, torch.uint8, torch.int16):
            sets = [TensorDataset(each.tensors[0], each.tensors[1].to(dtype)) for each in (forget, retain)]
            assert torch.equal(unlearn(model, *sets, method="ga", recipe=self.RECIPE).linear.weight, expected)

    def test_inputs_of_another_type_than_the_model(self, model: Recording) -> None:
        forget, retain = labelled(model, 6), labelled(model, 15)
        expected = unlearn(model, forget, retain, method="ga", recipe=self.RECIPE).linear.weight
        wide = TensorDataset(retain.tensors[0].double(), retain.tensors[1])
        for other in (wide, Items(wide)):
            assert torch.equal(unlearn(model, forget, other, method="ga", recipe=self.RECIPE).linear.weight, expected)
        for method in METHODS:
            for dtype in (torch.float64, torch.bfloat16):
                options = {"method": method, "recipe": self.RECIPE, **needs(method, forget)}
                result = unlearn(model.to(dtype), forget, retain, **options)
                assert result.linear.weight.dtype == dtype
        model.float()

    def test_what_is_no_map_style_dataset(self, model: Recording) -> None:
        class Stream(IterableDataset):
            def __iter__(self):
                yield torch.rand(6), 0

        for wrong in (Stream(), 7):
            with pytest.raises(InputError, match=r"^forget must be a map-style dataset .*, got (Stream|int)"):
                unlearn(model, wrong)
            with pytest.raises(InputError, match=r"^retain must be a map-style dataset .*, got (Stream|int)"):
                unlearn(model, labelled(model, 5), wrong)
        for empty in ([], Items(labelled(model, 5))):
            if isinstance(empty, Items):
                empty.data = TensorDataset(torch.rand(0, 6), torch.zeros(0, dtype=torch.long))
            with pytest.raises(InputError, match=r"^retain must be non-empty"):
                unlearn(model, labelled(model, 5), empty)
            with pytest.raises(InputError, match=r"^forget must be non-empty"):
                unlearn(model, empty)

    def test_that_draw_random_numbers_leave_the_random_state(self, model: Recording) -> None:
        class Noisy(Items):
            def __getitem__(self, index: int) -> tuple[Tensor, int]:
                image, label = super().__getitem__(index)
                return (image + 0.01 * torch.rand(6)).clamp(0, 1), label

        forget, retain, state = labelled(model, 6), labelled(model, 15), torch.get_rng_state()
        for method in METHODS:
            options = {"method": method, "recipe": ONE_STEP, **needs(method, forget)}
            unlearn(model, Noisy(forget), Noisy(retain), **options)
            assert torch.equal(torch.get_rng_state(), state)

    def test_a_random_forget_set_is_read_once(self, model: Recording) -> None:
        """Its labels, its examples and what is trained on are of the same drawing."""

        class Counting(Items):
            read = 0

            def __getitem__(self, index: int) -> object:
                self.read += 1
                return super().__getitem__(index)

        forget = Counting(labelled(model, 6))
        unlearn(model, forget, labelled(model, 15), recipe=self.RECIPE)
        assert forget.read == 6


@pytest.mark.parametrize("method", METHODS)
class TestModels:
    RECIPE = Recipe(2, 0.1, batch_size=8)

    def test_one_sample_to_forget(self, model: Recording, method: str) -> None:
        forget, retain = labelled(model, 1), labelled(model, 15)
        options = {"method": method, "recipe": self.RECIPE, **needs(method, forget)}
        unlearn(model, forget, retain, **options)
        if not METHODS[method].needs_retain:
            result = unlearn(model, forget, **options)
            assert not torch.equal(result.linear.weight, model.linear.weight)

    def test_logits_that_are_not_contiguous(self, method: str) -> None:
        class Turned(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.linear(x).t().contiguous().t()

        torch.manual_seed(3)
        turned, straight = Turned(), Recording()
        with torch.no_grad():
            turned.linear.bias.copy_(-0.5 * turned.linear.weight.sum(1))
        straight.load_state_dict(turned.state_dict())
        forget, retain = labelled(straight, 6), labelled(straight, 15)
        options = {"method": method, "recipe": self.RECIPE, **needs(method, forget)}
        results = [unlearn(each, forget, retain, **options) for each in (turned, straight)]
        torch.testing.assert_close(results[0].linear.weight, results[1].linear.weight)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_callers_without_gradients(self, model: Recording, context, method: str) -> None:
        forget, retain = labelled(model, 5), labelled(model, 20)
        options = {"method": method, "recipe": self.RECIPE, **needs(method, forget)}
        with context():
            result = unlearn(model, forget, retain, **options)
            made_here = TensorDataset(forget.tensors[0].clone(), forget.tensors[1].clone())
            again = unlearn(model, made_here, retain, **options)
        assert torch.equal(result.linear.weight, again.linear.weight)
        assert not torch.equal(result.linear.weight, model.linear.weight)
        assert not result.linear.weight.is_inference()
        result.linear(torch.rand(2, 6)).sum().backward()

    def test_a_checkpoint_goes_on_and_knows_its_method(self, model: Recording, tmp_path: Path, method: str) -> None:
        forget, retain, path = labelled(model, 5), labelled(model, 20), tmp_path / "checkpoint"
        options = {"method": method, "recipe": self.RECIPE, **needs(method, forget)}
        whole = unlearn(model, forget, retain, **options)

        def stop(epoch: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            unlearn(model, forget, retain, **options, checkpoint=path, on_epoch=stop)
        others = {
            "rl": [{"true_label": True}, {"order": "sequential"}],
            "salun": [{"true_label": True}, {"order": "sequential"}, {"mask": 0.3}, {"mask_gradient_only": True}],
            "bs": [{"eps": 0.3}, {"teacher": "per_epoch"}, {"require_wrong": False}, {"bounds": (-1.0, 1.0)}],
            "l1-sparse": [{"gamma": 1e-3}, {"gamma_schedule": "amun"}, {"epochs_without": 1}],
            "distill": [{"weight": 1.0}, {"temperature": 2.0}, {"targets": torch.eye(5, 3)}],
            "amun": [{"include_forget": False}, {"mask": 0.5}, {"search": "pgd"}],
            "amun+salun": [{"include_forget": False}, {"mask": 0.3}],
        }
        for other in [*others.get(method, []), {"seed": 1}]:
            with pytest.raises(InputError, match=r"^checkpoint must be a new file or one of this training"):
                unlearn(model, forget, retain, **options | other, checkpoint=path)
        resumed = unlearn(model, forget, retain, **options, checkpoint=path)
        assert torch.equal(resumed.linear.weight, whole.linear.weight)


class TestMasks:
    def test_a_fraction_is_the_saliency_mask_of_the_forget_set(self, model: Recording) -> None:
        forget, retain = labelled(model, 6), labelled(model, 15)
        options = {"method": "rl", "recipe": Recipe(2, 0.1)}
        by_fraction = unlearn(model, forget, retain, mask=0.3, **options)
        by_name = unlearn(model, forget, retain, mask=saliency_mask(model, forget, 0.3), **options)
        assert torch.equal(by_fraction.linear.weight, by_name.linear.weight)
        salun = unlearn(model, forget, retain, **options | {"method": "salun"})
        half = unlearn(model, forget, retain, mask=0.5, **options)
        assert torch.equal(salun.linear.weight, half.linear.weight)
        assert not torch.equal(salun.linear.weight, by_name.linear.weight)

    def test_one_fits_all_weights(self, model: Recording) -> None:
        forget = labelled(model, 6)
        for method in ("rl", "ga", "amun"):
            plain = unlearn(model, forget, method=method, recipe=ONE_STEP)
            masked = unlearn(model, forget, method=method, recipe=ONE_STEP, mask=1)
            torch.testing.assert_close(plain.linear.weight, masked.linear.weight)


def test_retrain_draws_buffers_outside_the_state_dict_anew() -> None:
    class Counted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            self.register_buffer("mean", torch.zeros(6), persistent=False)

        def reset_parameters(self) -> None:
            super().reset_parameters()
            if hasattr(self, "mean"):
                self.mean.zero_()

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.mean += x.sum(0)
            return super().forward(x)

    model, images = Counted(), torch.rand(20, 6)
    model(images)  # as trained on what is to be forgotten
    forget, retain = TensorDataset(images[:5], torch.arange(5) % 3), TensorDataset(images[5:], torch.arange(15) % 3)
    result = unlearn(model, forget, retain, method="retrain", recipe=ONE_PASS)
    torch.testing.assert_close(result.mean, images[5:].sum(0))
