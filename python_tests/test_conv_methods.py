"""MSG and CT, which change the kernels of convolutions, against loops in float64 without the package."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, unlearn
from amun_ext.training import Recipe

RECIPE = Recipe(epochs=3, lr=0.1, schedule="cosine", batch_size=64, momentum=0.9, weight_decay=0.05)


def convolutional() -> nn.Sequential:
    layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2, groups=1), nn.Flatten(), nn.Linear(8, 2)
    return nn.Sequential(*layers).double()


def images(count: int) -> TensorDataset:
    return TensorDataset(torch.rand(count, 1, 5, 5, dtype=torch.float64), torch.arange(count) % 2)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(3)
    return convolutional()


@pytest.fixture
def forget(model) -> TensorDataset:
    return images(4)


@pytest.fixture
def retain(model) -> TensorDataset:
    return images(9)


def logits(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = F.conv2d(x, weights["0.weight"], weights["0.bias"]).relu()
    hidden = F.conv2d(hidden, weights["2.weight"], weights["2.bias"])
    return hidden.flatten(1) @ weights["4.weight"].T + weights["4.bias"]


def gradients(weights: dict[str, Tensor], x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of the mean cross-entropy."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    picked = logits(leaves, x).log_softmax(1)[torch.arange(len(x)), labels]
    return dict(zip(leaves, torch.autograd.grad(-picked.mean(), [*leaves.values()]), strict=True))


def fine_tuned(weights: dict[str, Tensor], data: TensorDataset, factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """RECIPE in full batches, with gradients times `factors`."""
    weights, momenta = dict(weights), {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for epoch in range(3):
        lr = 0.1 * (1 + math.cos(math.pi * epoch / 3)) / 2
        for name, grad in gradients(weights, *data.tensors).items():
            momenta[name] = 0.9 * momenta[name] + grad * factors.get(name, 1) + 0.05 * weights[name]
            weights[name] = weights[name] - lr * momenta[name]
    return weights


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_ct_swaps_and_fine_tunes(model, forget, retain) -> None:
    weights = weights_of(model)
    for name in ("0.weight", "2.weight"):
        weights[name] = weights[name].transpose(2, 3)
    result = unlearn(model, forget, retain, method="ct", recipe=RECIPE)
    torch.testing.assert_close(weights_of(result), fine_tuned(weights, retain, {}), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_msg_redraws_the_least_and_slows_the_others(model, retain, fraction: float) -> None:
    """With as many to forget as retained, the random part of D_R is all of it."""
    forget, weights = images(9), weights_of(model)
    difference = {
        name: grad - gradients(weights, *forget.tensors)[name]
        for name, grad in gradients(weights, *retain.tensors).items()
    }
    frozen = Recipe(epochs=1, lr=0.0)
    drawn = weights_of(unlearn(model, forget, retain, method="msg", recipe=frozen, reset_fraction=fraction))
    factors = {}
    for name in ("0.weight", "2.weight"):
        size = difference[name].abs()
        limit = size.flatten().sort().values[round(fraction * size.numel()) - 1]
        least = size <= limit
        assert least.sum() == round(fraction * size.numel())
        assert torch.equal(drawn[name] != weights[name], least)
        factors[name] = torch.where(least, 1.0, 0.1).double()
    assert all(torch.equal(drawn[name], weights[name]) for name in weights.keys() - factors.keys())
    result = unlearn(model, forget, retain, method="msg", recipe=RECIPE, reset_fraction=fraction)
    torch.testing.assert_close(weights_of(result), fine_tuned(drawn, retain, factors), rtol=1e-10, atol=1e-12)


def test_new_weights_have_he_s_deviation_by_the_fan_out() -> None:
    model = nn.Sequential(nn.Conv2d(2, 400, 3), nn.Flatten(), nn.Linear(400, 2))
    data = TensorDataset(torch.rand(6, 2, 3, 3), torch.arange(6) % 2)
    sets = TensorDataset(*(part[:2] for part in data.tensors)), TensorDataset(*(part[2:] for part in data.tensors))
    result = unlearn(model, *sets, method="msg", recipe=Recipe(epochs=1, lr=0.0), reset_fraction=1)
    # of 7,200 normal numbers, which unlearn draws by its own seed
    assert result[0].weight.std().item() == pytest.approx(math.sqrt(2 / (400 * 9)), rel=0.05)


def test_the_gradient_is_that_of_a_random_part_of_the_retain_set(model, forget, retain) -> None:
    """Another seed takes other samples, another batch size the same."""

    def reset(seed: int, batch_size: int = 64) -> Tensor:
        recipe = Recipe(epochs=1, lr=0.0, batch_size=batch_size)
        drawn = unlearn(model, forget, retain, method="msg", recipe=recipe, seed=seed)
        return drawn[0].weight != model[0].weight

    assert torch.equal(reset(0), reset(0, batch_size=2))
    assert any(not torch.equal(reset(0), reset(seed)) for seed in range(1, 6))


@pytest.mark.parametrize("method", ["msg", "ct"])
def test_masked_weights_stay(model, forget, retain, method: str) -> None:
    masks = {name: torch.arange(weight.numel()).view_as(weight) % 2 == 0 for name, weight in model.named_parameters()}
    options = {"reset_fraction": 1} if method == "msg" else {}
    result = unlearn(model, forget, retain, method=method, recipe=RECIPE, mask=masks, **options)
    for name, weight in result.named_parameters():
        assert torch.equal(weight == model.get_parameter(name), ~masks[name])


@pytest.mark.parametrize("method", ["msg", "ct"])
def test_a_model_without_convolutions_is_refused(forget, retain, method: str) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(25, 2)).double()
    frozen = convolutional()
    for layer in (0, 2):
        frozen[layer].requires_grad_(False)
    for model in (flat, frozen):
        with pytest.raises(InputError, match=r"^model must be one with a trainable Conv2d"):
            unlearn(model, forget, retain, method=method)


def test_ct_leaves_kernels_that_are_not_square(forget, retain) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 3)), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(30, 2)).double()
    with pytest.raises(InputError, match=r"^model must be one .* square"):
        unlearn(model, forget, retain, method="ct")
    model.insert(0, nn.Conv2d(1, 1, 3, padding=1).double())
    unlearn(model, forget, retain, method="ct", recipe=Recipe(epochs=1, lr=0.0))
