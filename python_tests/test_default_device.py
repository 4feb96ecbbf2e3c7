"""Wherever new tensors go by default, and whatever has no values: the same result, or one line."""

import warnings

import pytest
import torch
from method_tools import needs
from torch import nn
from torch.utils.data import TensorDataset
from training_tools import Items

from amun_ext import evaluate, find_min_adversarial, saliency_mask, unlearn
from amun_ext.deletion import forget_ids, split
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.ablations import ABLATIONS, ablation_set
from amun_ext.validation import InputError

RECIPE = Recipe(epochs=1, lr=0.01, batch_size=8, augment=True)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.fixture
def sets() -> tuple[TensorDataset, TensorDataset]:
    images, labels = torch.rand(30, 1, 8, 8), torch.randint(0, 3, (30,))
    return TensorDataset(images[:5], labels[:5]), TensorDataset(images[5:], labels[5:])


def same_on_meta(work) -> None:
    """Meta tensors have no values: what is made on the default device by mistake cannot go unnoticed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ of \d+ forget samples")
        expected = work()
        with torch.device("meta"):
            found = work()
    assert len(expected) == len(found) > 0
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


class TestMeta:
    @pytest.mark.parametrize("method", METHODS)
    def test_unlearn(self, model, sets, method: str) -> None:
        options = {"method": method, "recipe": RECIPE, **needs(method, sets[0])}
        same_on_meta(lambda: [*unlearn(model, *sets, **options).parameters()])

    def test_unlearn_from_items(self, model, sets) -> None:
        forget, retain = sets
        recipe = Recipe(epochs=1, lr=0.01, batch_size=8)
        same_on_meta(lambda: [*unlearn(model, forget, Items(retain), method="ft", recipe=recipe).parameters()])

    @pytest.mark.parametrize("method", ["pgd", "ddn", "deepfool", "ffgsm"])
    def test_search(self, model, sets, method: str) -> None:
        same_on_meta(lambda: [find_min_adversarial(model, *sets[0].tensors, method=method, refine=2).images])

    def test_mask_ids_and_report(self, model, sets) -> None:
        forget, retain = sets
        same_on_meta(lambda: [*saliency_mask(model, forget).values()])
        same_on_meta(lambda: [*split(retain, forget_ids(25, fraction=0.2))[1].tensors])
        told = {"forget": forget, "retain": retain, "test": forget, "baseline": None}
        same_on_meta(lambda: [torch.tensor(evaluate({"a": model}, **told).scores["a"]["test"], device="cpu")])

    @pytest.mark.parametrize("name", ABLATIONS)
    def test_ablations(self, model, sets, name: str) -> None:
        forget, _ = sets
        adversarial = find_min_adversarial(model, *forget.tensors)
        same_on_meta(lambda: [*ablation_set(name, forget, adversarial, num_classes=3).tensors])


def test_meta_tensors_are_refused(model, sets) -> None:
    forget, retain = sets
    with pytest.raises(InputError, match="model must be of weights with values, got tensors on the device meta"):
        unlearn(model.to("meta"), forget, retain, method="ft")
    images, labels = (tensor.to("meta") for tensor in forget.tensors)
    with pytest.raises(InputError, match=r"must be a tensor with values, got one on the device meta"):
        unlearn(nn.Linear(8, 3), TensorDataset(images, labels), retain, method="ft")
    with pytest.raises(InputError, match=r"must be a tensor with values, got one on the device meta"):
        find_min_adversarial(nn.Linear(8, 3), forget.tensors[0], labels)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.trains])
def test_batches_of_one_are_refused_where_batch_norm_has_no_variance(sets, method: str) -> None:
    forget, retain = sets
    recipe = Recipe(epochs=1, lr=0.01, batch_size=1)
    flat = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = [each.clone() for each in flat.state_dict().values()]
    with pytest.raises(InputError, match=r"batch_size must be 2 at least: BatchNorm has no variance of one"):
        unlearn(flat, forget, retain, method=method, recipe=recipe, **needs(method, forget))
    assert all(map(torch.equal, before, flat.state_dict().values()))


def test_a_last_batch_of_one_joins_the_batch_before(model, sets) -> None:
    forget, retain = sets
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    unlearn(flat, forget, retain, method="ft", recipe=Recipe(epochs=1, lr=0.01, batch_size=8))  # 25 are 3 * 8 + 1
    unlearn(model, forget, retain, method="ft", recipe=Recipe(epochs=1, lr=0.01, batch_size=1))  # of 36 pixels each


def test_infinite_weights_are_not_a_matter_of_lr(model, sets) -> None:
    model[0].weight.data[0] = torch.inf
    with pytest.raises(InputError, match=r"model must be of finite weights, got NaN or infinite ones in 0\.weight"):
        unlearn(model, *sets, method="ft")
