"""Distances have the unit of the data: the search knows no length of its own, and takes none from the box."""

import math

import pytest
import torch
from torch import nn

from amun_ext import InputError, find_min_adversarial
from amun_ext.search import ATTACKS

CASES = 48


def linear(dtype: torch.dtype, offset: float = 0.0) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A linear model of two classes, inputs and their labels. `offset` moves the inputs, and the boundary with them."""
    draw = torch.Generator().manual_seed(5)
    model = nn.Linear(20, 2).to(dtype).requires_grad_(False)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=draw, dtype=dtype))
    x = torch.randn(CASES, 20, generator=draw, dtype=dtype) + offset
    model.bias -= offset * model.weight.sum(1)
    return model, x, model(x).argmax(1)


def distances(model: nn.Linear, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The true ones: to the plane between the two classes."""
    logits = model.double()(x.double())
    return (logits[:, 0] - logits[:, 1]).abs() / (model.weight[0] - model.weight[1]).double().norm()


@pytest.mark.parametrize("bounds", [None, (-1e6, 1e6), (-math.inf, 1e9), (-1e30, 1e30)], ids=str)
@pytest.mark.parametrize("method", ["pgd", "ddn", "deepfool"])
def test_the_result_does_not_depend_on_a_wide_box(method: str, bounds: tuple[float, float] | None) -> None:
    model, x, labels = linear(torch.float32)
    result = find_min_adversarial(model, x, labels, method=method, bounds=bounds)
    ratio = result.distance.double() / distances(model, x, labels)
    assert result.found.all()
    assert (ratio >= 1 - 1e-4).all()
    assert (ratio <= (1.12 if method == "pgd" else 1.03)).all()


@pytest.mark.parametrize("power", [-40, -10, 10, 40])
@pytest.mark.parametrize("method", [*ATTACKS])
def test_the_unit_of_the_inputs_only_scales_the_result(method: str, power: int) -> None:
    """In powers of two, by which no number is rounded otherwise."""
    model, x, labels = linear(torch.float32)
    expected = find_min_adversarial(model, x, labels, method=method, bounds=None)
    unit = 2.0**power
    model.weight /= unit
    result = find_min_adversarial(model, x * unit, labels, method=method, bounds=None)
    assert torch.equal(result.images, expected.images * unit)
    assert torch.equal(result.distance, expected.distance * unit)
    assert torch.equal(result.grad_evals, expected.grad_evals)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["pgd", "ddn", "deepfool"])
def test_distances_far_below_the_size_of_the_inputs(method: str, dtype: torch.dtype) -> None:
    offset = 1e3 if dtype == torch.float32 else 1e10
    model, x, labels = linear(dtype, offset)
    result = find_min_adversarial(model, x, labels, method=method, bounds=None)
    assert result.found.all()
    # What rounding leaves of the inputs is what the search can see.
    seen = 64 * torch.finfo(dtype).eps * offset
    assert (result.distance <= 1.15 * distances(model, x, labels) + seen).all()


def test_the_radius_of_the_paper_is_for_images() -> None:
    """0.04 in the box (0, 1); in any other an estimate, as where it is asked for."""
    model, x, labels = linear(torch.float32)
    x = (x / 8).sigmoid()
    labels = model(x).argmax(1)
    in_the_box = find_min_adversarial(model, x, labels)
    assert torch.equal(in_the_box.images, find_min_adversarial(model, x, labels, eps_init=0.04).images)
    elsewhere = find_min_adversarial(model, x, labels, bounds=(0.0, 1.5))
    estimated = find_min_adversarial(model, x, labels, bounds=(0.0, 1.5), eps_init="estimate")
    assert torch.equal(elsewhere.images, estimated.images)


def test_warns_of_a_first_step_that_is_too_long() -> None:
    model, x, labels = linear(torch.float32)
    x = (x / 8).sigmoid()
    model.bias -= model(x[0])  # its boundary goes through an input
    x = x[:1] + 1e-5 * model.weight[0].sign()
    labels = model(x).argmax(1)
    with pytest.warns(RuntimeWarning, match="1 of 1 samples were found by the first step, 0.004 long"):
        far = find_min_adversarial(model, x, labels)
    near = find_min_adversarial(model, x, labels, eps_init="estimate")
    assert near.distance < far.distance / 10


@pytest.mark.parametrize("method", ["pgd", "ddn", "deepfool"])
@pytest.mark.same_inputs
def test_a_tie_at_black_images_is_found(method: str) -> None:
    """There neither the image nor the margin has a length to start from."""
    model = nn.Linear(12, 3, bias=False)
    start = {"eps_init": "estimate"} if method == "pgd" else {}
    x, labels = torch.zeros(4, 12), torch.zeros(4, dtype=torch.long)
    result = find_min_adversarial(model, x, labels, method=method, **start)  # type: ignore[arg-type]
    assert result.found.all()
    assert (result.distance <= 1e-4).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": (1.0, 0.0)}, r"bounds must be \(low, high\) with low < high, or None, got \(1.0, 0.0\)"),
        ({"bounds": (math.nan, 1.0)}, r"bounds must be \(low, high\) with low < high, or None"),
        ({"bounds": ("0", "1")}, r"bounds must be \(low, high\) with low < high, or None"),
        ({"bounds": None, "quantize": 255}, r"quantize must be None without a box, bounds = \(-inf, inf\), got 255"),
    ],
    ids=str,
)
def test_bad_bounds_are_refused(options: dict[str, object], message: str) -> None:
    model, x, labels = linear(torch.float32)
    with pytest.raises(InputError, match=message):
        find_min_adversarial(model, x, labels, **options)  # type: ignore[arg-type]
