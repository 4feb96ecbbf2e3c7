"""unlearn: what is trained on, what is left out, and what every method leaves as it was."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from method_tools import Recording, labelled, needs
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training_tools import equal, interrupt, state

from amun_ext import InputError, find_min_adversarial, saliency_mask, unlearn
from amun_ext.search import ATTACKS
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS

ONE_PASS = Recipe(epochs=1, lr=0.0)
ONE_STEP = Recipe(epochs=1, lr=0.1)


@pytest.fixture
def model() -> Recording:
    return Recording()


def rows(images: Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in images.tolist())


class TestAmun:
    @pytest.mark.parametrize("include_forget", [True, False])
    @pytest.mark.parametrize("with_retain", [True, False])
    def test_trains_on_exactly_its_sets(self, model: Recording, include_forget: bool, with_retain: bool) -> None:
        forget, retain = labelled(model, 10), labelled(model, 30)
        adversarial = find_min_adversarial(model, *forget.tensors, bounds=(0.0, 1.0))
        Recording.seen = []
        options = {"include_forget": include_forget, "adversarial": adversarial, "recipe": ONE_PASS}
        unlearn(model, forget, retain if with_retain else None, **options)
        found = adversarial.found
        expected = [adversarial.images[found]]
        expected += [forget.tensors[0][found]] * include_forget + [retain.tensors[0]] * with_retain
        assert rows(torch.cat(Recording.seen)) == rows(torch.cat(expected))

    def test_labels_are_the_wrong_ones_for_the_examples_and_the_true_ones_else(self, monkeypatch, model) -> None:
        forget, retain, parts = labelled(model, 10), labelled(model, 20), []
        adversarial = find_min_adversarial(model, *forget.tensors)
        module = sys.modules["amun_ext.unlearning.amun"]  # the package has the function by this name
        monkeypatch.setattr(module, "fit", lambda _, passes, *__, **___: parts.extend(passes[0].parts))
        unlearn(model, forget, retain, adversarial=adversarial)
        found, truth = adversarial.found, forget.tensors[1]
        expected = adversarial.labels[found], truth[found], retain.tensors[1]
        assert all(torch.equal(part.data.tensors[1], labels) for part, labels in zip(parts, expected, strict=True))
        assert (expected[0] != truth[found]).all()
        assert [part.augment for part in parts] == [False, True, True]

    def test_samples_without_an_example_are_left_out_and_reported(self, model: Recording) -> None:
        forget = labelled(model, 10)
        result = find_min_adversarial(model, *forget.tensors)
        partly = dataclasses.replace(result, found=torch.arange(10) % 2 == 0)
        with pytest.warns(RuntimeWarning, match=r"5 of 10 forget samples .* left out: rows \[1, 3, 5, 7, 9\]"):
            unlearn(model, forget, adversarial=partly, recipe=ONE_PASS)
        trained_on = torch.cat(Recording.seen)
        assert not any((trained_on == image).all(1).any() for image in forget.tensors[0][1::2])

    @pytest.mark.parametrize("search", ATTACKS)
    def test_trains_on_the_examples_of_the_search(self, model: Recording, search: str) -> None:
        forget, options = labelled(model, 6), {"recipe": ONE_STEP, "include_forget": False}
        given = unlearn(
            model, forget, adversarial=find_min_adversarial(model, *forget.tensors, method=search), **options
        )
        torch.testing.assert_close(unlearn(model, forget, search=search, **options).state_dict(), given.state_dict())

    def test_the_search_is_ddn_unless_told_otherwise(self, model: Recording) -> None:
        forget = labelled(model, 6)
        default, ddn, pgd = (
            unlearn(model, forget, recipe=ONE_STEP, **search)
            for search in ({}, {"search": "ddn"}, {"search": "pgd", "loss": "margin", "steps": 20})
        )
        assert equal(default, ddn)
        assert not equal(default, pgd)


def test_retrain_sees_the_retain_set_alone_and_starts_afresh(model: Recording) -> None:
    retain = labelled(model, 20)
    fresh = unlearn(model, labelled(model, 5), retain, method="retrain", recipe=ONE_PASS)
    assert rows(torch.cat(Recording.seen)) == rows(retain.tensors[0])
    assert not torch.equal(fresh.linear.weight, model.linear.weight)


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

    model, images, labels = Counted(), torch.rand(20, 6), torch.arange(20) % 3
    model(images)  # as trained on what is to be forgotten
    forget, retain = (TensorDataset(images[part], labels[part]) for part in (slice(5), slice(5, None)))
    result = unlearn(model, forget, retain, method="retrain", recipe=ONE_PASS)
    torch.testing.assert_close(result.mean, images[5:].sum(0))


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    RECIPE = Recipe(2, 0.1, batch_size=8)

    @pytest.fixture
    def forget(self, model: Recording) -> TensorDataset:
        return labelled(model, 5)

    @pytest.fixture
    def retain(self, model: Recording) -> TensorDataset:
        return labelled(model, 20)

    @pytest.fixture
    def options(self, method: str, forget: TensorDataset) -> dict[str, object]:
        return {"method": method, "recipe": self.RECIPE, **needs(method, forget)}

    def test_leaves_the_model_and_the_random_state_and_follows_from_the_seed(self, model, forget, retain, options):
        before, random, results = state(model), torch.get_rng_state(), []
        for seed in (1, 1, 2):
            results.append(unlearn(model, forget, retain, seed=seed, **options))
            assert equal(model, before)
            assert model.training
            assert all(each.grad is None for each in (*model.parameters(), *results[-1].parameters()))
            assert torch.equal(random, torch.get_rng_state())
            assert not torch.equal(results[-1].linear.weight, model.linear.weight)
        assert equal(results[0], results[1])
        assert not equal(results[0], results[2])

    def test_one_sample_to_forget(self, model: Recording, method: str, retain) -> None:
        forget = labelled(model, 1)
        options = {"method": method, "recipe": self.RECIPE, **needs(method, forget)}
        unlearn(model, forget, retain, **options)
        if not METHODS[method].needs_retain:
            assert not equal(unlearn(model, forget, **options), model)

    @pytest.mark.same_inputs
    def test_logits_that_are_not_contiguous(self, model: Recording, forget, retain, options) -> None:
        class Turned(Recording):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).t().contiguous().t()

        turned = Turned()
        turned.load_state_dict(model.state_dict())
        results = [unlearn(each, forget, retain, **options).state_dict() for each in (turned, model)]
        torch.testing.assert_close(*results)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_callers_without_gradients(self, model: Recording, forget, retain, options, context) -> None:
        with context():
            result = unlearn(model, forget, retain, **options)
            made_here = TensorDataset(*(tensor.clone() for tensor in forget.tensors))
            again = unlearn(model, made_here, retain, **options)
        assert equal(result, again)
        assert not equal(result, model)
        assert not result.linear.weight.is_inference()
        result.linear(torch.rand(2, 6)).sum().backward()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_inputs_of_another_type_than_the_model(self, model: Recording, forget, retain, options, dtype) -> None:
        assert unlearn(model.to(dtype), forget, retain, **options).linear.weight.dtype == dtype

    OTHERS = {  # noqa: RUF012
        "rl": [{"true_label": True}, {"order": "sequential"}],
        "salun": [{"true_label": True}, {"order": "sequential"}, {"mask": 0.3}, {"mask_gradient_only": True}],
        "bs": [{"eps": 0.3}, {"teacher": "per_epoch"}, {"require_wrong": False}, {"bounds": (-1.0, 1.0)}],
        "l1-sparse": [{"gamma": 1e-3}, {"gamma_schedule": "amun"}, {"epochs_without": 1}],
        "bad-teacher": [{"retain_fraction": 0.5}],
        "scrub": [{"kl_weight": 0.5}, {"label_weight": 0.5}, {"ascent_epochs": 1}],
        "neggrad+": [{"beta": 0.5}],
        "msg": [{"reset_fraction": 0.5}],
        "regun": [{"forget_weight": 0.3}, {"held_out": TensorDataset(torch.zeros(3, 6), torch.arange(3))}],
        "distill": [{"weight": 1.0}, {"temperature": 2.0}, {"targets": torch.eye(5, 3)}],
        "amun": [{"include_forget": False}, {"mask": 0.5}, {"search": "pgd"}],
        "amun+salun": [{"include_forget": False}, {"mask": 0.3}],
    }

    def test_a_checkpoint_goes_on_and_knows_its_method(
        self, model: Recording, tmp_path: Path, method: str, forget, retain, options
    ) -> None:
        whole, path = unlearn(model, forget, retain, **options), tmp_path / "checkpoint"
        if not METHODS[method].trains:  # then there is nothing to go on with
            with pytest.raises(InputError, match=r"^checkpoint must be left out"):
                unlearn(model, forget, retain, **options, checkpoint=path)
            return
        with pytest.raises(KeyboardInterrupt):
            unlearn(model, forget, retain, **options, checkpoint=path, on_epoch=interrupt)
        for other in [*self.OTHERS.get(method, []), {"seed": 1}]:
            with pytest.raises(InputError, match=r"^checkpoint must be a new file or one of this training"):
                unlearn(model, forget, retain, **options | other, checkpoint=path)
        assert equal(unlearn(model, forget, retain, **options, checkpoint=path), whole)


class TestMasks:
    def test_a_fraction_is_the_saliency_mask_of_the_forget_set(self, model: Recording) -> None:
        forget, retain = labelled(model, 6), labelled(model, 15)

        def result(mask: object = None, method: str = "rl") -> nn.Module:
            return unlearn(model, forget, retain, method=method, recipe=Recipe(2, 0.1), mask=mask)

        by_name = result(saliency_mask(model, forget, 0.3))
        assert equal(result(0.3), by_name)
        assert equal(result(method="salun"), result(0.5))
        assert not equal(result(0.5), by_name)

    @pytest.mark.parametrize("method", ["rl", "ga", "amun"])
    def test_one_fits_all_weights(self, model: Recording, method: str) -> None:
        forget = labelled(model, 6)
        plain, masked = (unlearn(model, forget, method=method, recipe=ONE_STEP, mask=mask) for mask in (None, 1))
        torch.testing.assert_close(plain.state_dict(), masked.state_dict())
