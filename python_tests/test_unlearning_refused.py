"""unlearn refuses bad input before any work, with the name of the argument."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from method_tools import Recording, labelled, needs
from torch.utils.data import TensorDataset

from amun_ext import InputError, find_min_adversarial, unlearn
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS

ONE_PASS = Recipe(epochs=1, lr=0.0)


@pytest.fixture
def model() -> Recording:
    return Recording()


@pytest.fixture
def forget(model: Recording) -> TensorDataset:
    return labelled(model, 5)


@pytest.fixture
def retain(model: Recording) -> TensorDataset:
    return labelled(model, 20)


def refused(message: str, *given: object, **options: object) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        unlearn(*given, **{"recipe": ONE_PASS} | options)


@pytest.mark.parametrize("method", METHODS)
def test_before_any_work(model: Recording, forget, retain, monkeypatch, method: str) -> None:
    """Before the search, the mask and the first epoch, which may take long."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError

    for module in ("", ".amun"):
        for name in ("saliency_mask", "find_min_adversarial"):
            monkeypatch.setattr(sys.modules[f"amun_ext.unlearning{module}"], name, work, raising=False)
    how = {"method": method, **needs(method, forget)}
    for name, values in {
        "seed": (-1, 2**70),
        "num_workers": (-1,),
        "mask": (0, 1.5, math.nan, "half", True, {"linear.weight": torch.ones(3, 6) > 0}),
        "recipe": ({"epochs": 1, "lr": 0.1},),
        "eval_sets": ({"test": 3}, [retain], {3: retain}),
        "on_epoch": ("print",),
        "checkpoint": (".",),
        "preset": (["amun-paper"], "best"),
    }.items():
        for value in values:
            refused(rf"{name}(s|\['test'\])? must be", model, forget, retain, **how, **{name: value})
    refused("augment must be off", model, forget, retain, **how | {"recipe": Recipe(1, 0.1, augment=True)})
    assert not Recording.seen


# an option of another method, of the search, or of the method but not for the caller
OF_ANOTHER = [("ft", "order"), ("rl", "eps"), ("bs", "true_label"), ("ga", "gamma"), ("salun", "steps")]
OF_ANOTHER += [("amun", name) for name in ("inputs", "labels", "run", "nonsense")]
BAD = [
    ("rl", "true_label", ["no"]),
    ("rl", "order", ["random"]),
    ("salun", "true_label", [1]),
    ("salun", "order", ["random"]),
    ("bs", "require_wrong", ["no"]),
    ("bs", "bounds", [(1.0, 0.0), (0.0, math.inf), 1]),
    ("bs", "eps", [0.0, -0.1, math.inf, math.nan, "0.1"]),
    ("bs", "teacher", ["kind"]),
    ("l1-sparse", "gamma", [-1.0, math.inf, math.nan, "much"]),
    ("l1-sparse", "gamma_schedule", ["linear"]),
    ("bad-teacher", "retain_fraction", [0.0, 1.5, math.nan, "some"]),
    ("bad-teacher", "init", [3]),
    *[("scrub", name, [-1.0, math.inf, math.nan, "much"]) for name in ("kl_weight", "label_weight")],
    ("scrub", "ascent_epochs", [-1, 0.5]),
    *[("ssd", name, [0.0, -1.0, math.inf, math.nan, "much"]) for name in ("selection", "dampening")],
    ("msg", "reset_fraction", [0.0, 1.5, math.nan, "some"]),
    ("neggrad+", "beta", [-0.1, 1.1, math.nan, "half"]),
    ("amun", "include_forget", ["no"]),
    ("amun", "search", ["walk", ["pgd"]]),
    ("amun", "adversarial", [3]),
    ("amun", "method", ["hope", ["rl"]]),
    ("ga", "preset", ["amun-paper"]),
    ("retrain", "mask", [0.5]),
    ("amun", "lr", [0.1]),  # which belongs into the recipe
    *[(method, name, [1]) for method, name in OF_ANOTHER],
]


@pytest.mark.parametrize(("method", "name", "values"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_options(model: Recording, forget, retain, method: str, name: str, values: list[object]) -> None:
    for value in values:
        refused(rf"{name} must be .*", model, forget, retain, **{"method": method, name: value})


def test_options_have_no_name_that_unlearn_has() -> None:
    own = {"model", "forget", "retain", "method", "preset", "mask", "mask_gradient_only", "seed", "checkpoint"}
    own |= {"eval_sets", "on_epoch", "num_workers", "progress"}
    assert not any(own & row.options.keys() for row in METHODS.values())


def test_sets(model: Recording, forget, retain) -> None:
    images, labels = forget.tensors
    refused("forget must be free of NaN", model, TensorDataset(images * torch.nan, labels))
    refused(r"forget must be inside bounds \(0\.0, 0\.01\)", model, forget, method="bs", bounds=(0.0, 0.01))
    narrow = TensorDataset(images[:, :5], labels)
    refused(r"retain must be of the forget set's input shape \(6,\), got \(5,\)", model, forget, narrow)
    images, labels = retain.tensors
    for label, what in ((-100, "not negative"), (3, r"in \[0, 3\)")):
        refused(f"retain labels must be {what}", model, forget, TensorDataset(images, torch.full_like(labels, label)))
    for data, message in (
        (TensorDataset(images, labels.float()), "labels must be integers"),
        (TensorDataset(images[:, :5], labels), "must be of the forget set's input shape"),
        (TensorDataset(images, torch.full_like(labels, 3)), r"labels must be in \[0, 3\)"),
    ):
        refused(rf"eval_sets\['test'\] {message}", model, forget, eval_sets={"test": data}, method="rl")
    refused("retain must be given", model, forget, method="retrain")
    refused("targets must be given", model, forget, method="distill")
    refused("held_out must be given", model, forget, method="regun")
    for data, message in (
        (forget, "free of the forget samples"),
        (TensorDataset(torch.rand(3, 5), torch.arange(3)), "of the forget set's input shape"),
        (TensorDataset(torch.rand(3, 6), torch.full((3,), 7)), "labels"),
        (TensorDataset(torch.rand(1, 6), labels[:1]), "of every class"),
    ):
        refused(f"held_out .*{message}", model, forget, method="regun", held_out=data)


def test_examples(model: Recording, forget) -> None:
    made = find_min_adversarial(model, *forget.tensors)
    nothing = dataclasses.replace(made, found=torch.zeros(5, dtype=torch.bool))
    others = TensorDataset(torch.rand(5, 6), made.true_labels)
    refused("forget must be a set with an adversarial example", model, forget, adversarial=nothing)
    refused("adversarial must be a row for each of the 6", model, labelled(model, 6), adversarial=made)
    refused("adversarial must be the examples of these forget samples", model, others, adversarial=made)
    true = dataclasses.replace(made, labels=made.true_labels)
    refused("adversarial must be examples with wrong labels", model, forget, adversarial=true)
    refused("settings of the search must be absent", model, forget, adversarial=made, loss="margin")
    assert repr(made).startswith("AdversarialSet(5 of 5 found, images (5, ")
    assert "\n" not in repr(made)


def test_models(model: Recording, forget, tmp_path: Path) -> None:
    class Extra(Recording):
        def get_extra_state(self) -> object:
            return {"of": "its own"}

        def set_extra_state(self, state: object) -> None:
            pass

    refused(r"model must be an nn\.Module", len, forget)
    unlearn(Extra(), forget, method="rl", recipe=ONE_PASS)
    refused("model must be without extra state", Extra(), forget, method="rl", checkpoint=tmp_path / "checkpoint")
    refused("model must be trainable", Recording().requires_grad_(False), forget)
    model.grown = [model.linear.weight * 2]  # deepcopy refuses tensors that were computed
    refused(r"model must be one that copy\.deepcopy can copy, got Only Tensors", model, forget)


def test_bad_options_come_before_the_mask(model: Recording, forget, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["amun_ext.unlearning.unlearn"], "saliency_mask", None)
    refused("order must be", model, forget, method="salun", order="any")


def test_a_method_without_epochs_has_nothing_to_do_after_each(model: Recording, forget, retain, tmp_path) -> None:
    for name, value in {"checkpoint": tmp_path / "a", "eval_sets": {"test": retain}, "on_epoch": print}.items():
        refused(f"{name} must be left out: method ssd", model, forget, retain, method="ssd", **{name: value})


def test_gradient_only_without_a_mask(model: Recording, forget) -> None:
    for method in ("rl", "amun"):
        refused(
            "mask_gradient_only must be False without a mask", model, forget, method=method, mask_gradient_only=True
        )
    unlearn(model, forget, method="rl", mask_gradient_only=True, mask=0.5, recipe=ONE_PASS)
