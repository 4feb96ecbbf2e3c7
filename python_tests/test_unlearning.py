"""unlearn: what is trained on, what is left out, what is refused."""

import dataclasses
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, find_min_adversarial, unlearn
from amun_ext.data import copies
from amun_ext.search import METHODS as SEARCHES
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS

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
        with pytest.raises(InputError, match="nonsense must be left out: method amun has the options .*include_forget"):
            unlearn(model, forget, nonsense=1)

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
        result = unlearn(model, forget, retain, method=method, recipe=Recipe(epochs=1, lr=0.1))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(state, torch.get_rng_state())
        assert not torch.equal(result.linear.weight, model.linear.weight)

    def test_seed_decides(self, model: Recording, method: str) -> None:
        forget, retain, recipe = labelled(model, 5), labelled(model, 20), Recipe(epochs=2, lr=0.1, batch_size=8)
        weights = [
            unlearn(model, forget, retain, method=method, recipe=recipe, seed=seed).linear.weight for seed in (1, 1, 2)
        ]
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
        assert copies(forget, retain) == []
        assert copies(forget, both) == [(3, 20)]
        with pytest.raises(InputError, match=r"retain must be free of the forget samples, got 1 of them .*\(3, 20\)"):
            unlearn(model, forget, both)
        relabelled = TensorDataset(both.tensors[0].double(), (both.tensors[1] + 1) % 3)
        assert copies(forget, relabelled) == [(3, 20)]
        signed = [TensorDataset(torch.tensor([[zero, 1.0]]), torch.tensor([0])) for zero in (0.0, -0.0)]
        assert copies(*signed) == [(0, 0)]

    def test_labels_the_model_does_not_have(self, model: Recording) -> None:
        images, labels = labelled(model, 20).tensors
        for wrong, message in ((-100, "retain labels must be not negative"), (3, r"retain labels must be in \[0, 3\)")):
            with pytest.raises(InputError, match=message):
                unlearn(model, labelled(model, 5), TensorDataset(images, torch.full_like(labels, wrong)))

    def test_frozen_models(self, model: Recording) -> None:
        with pytest.raises(InputError, match="model must be trainable"):
            unlearn(model.requires_grad_(False), labelled(model, 5), recipe=ONE_PASS)
