"""find_min_adversarial: what each option promises."""

import dataclasses

import pytest
import torch
from search_tools import (
    ALL,
    Linear,
    Restless,
    Scaled,
    Task,
    check_guarantees,
    every_method,
    may_run_out,
    plain_ddn,
    unit,
)
from torch import Tensor, nn

from amun_ext import InputError, find_min_adversarial
from amun_ext.search.postprocess import on_grid

X, Y = torch.rand(4, 5), torch.zeros(4, dtype=torch.long)


class TestOptions:
    @pytest.mark.parametrize(
        ("method", "option"),
        [
            ("deepfool", "eps_init"),
            ("deepfool", "eps_growth"),
            ("deepfool", "step_fraction"),
            ("ffgsm", "step_fraction"),
        ]
        + [(plain_ddn, option) for option in ("eps_init", "eps_growth", "step_fraction")],
    )
    def test_an_option_of_another_method_is_refused(self, method, option: str) -> None:
        with pytest.raises(InputError, match=f"{option} must be left out: method .* has no such setting, got 1.2"):
            find_min_adversarial(Linear(3, 5), X, Y, method=method, **{option: 1.2})

    @pytest.mark.parametrize("method", ["pgd", "ddn", "ffgsm"])
    def test_estimated_first_radius(self, few: Task, method: str) -> None:
        model, images, labels = few
        for scale in (1.0, 1e-3):  # of the distances
            small = Scaled(nn.Sequential(Stretched(scale), model), 1.0)
            result = find_min_adversarial(
                small, images * scale, labels, method=method, eps_init="estimate", bounds=(0.0, scale)
            )
            assert result.found.all()
            check_guarantees(small, images * scale, labels, result, (0.0, scale))
            if scale == 1:
                plain = result
        torch.testing.assert_close(plain.distance.median() * 1e-3, result.distance.median(), rtol=0.05, atol=0)

    def test_first_radius_of_ddn(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(
            model, images, labels, method="ddn", eps_init=0.3, eps_growth=1.2, step_fraction=0.5, steps=30
        )
        check_guarantees(model, images, labels, result)
        assert result.found.all()
        assert (result.grad_evals == 30).float().mean() >= 0.97


class Stretched(nn.Module):
    """Takes inputs in [0, scale]."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x / self.scale


class TestRefine:
    @pytest.mark.same_inputs
    def test_linear_model_ends_on_the_boundary(self) -> None:
        model, x = Linear(2, 100), torch.rand(100, 100)
        labels = model(x).argmax(1)
        truth = model.distance(x, labels)
        result = find_min_adversarial(model, x, labels, loss="margin", bounds=(-100.0, 100.0), refine=10)
        assert result.found.all()
        far = truth > 0.02
        assert (result.distance[far] / truth[far] <= 1.02).all()

    @every_method
    def test_never_worse_and_still_valid(self, few: Task, method) -> None:
        model, images, labels = few
        plain, refined = (
            find_min_adversarial(model, images, labels, method=method, refine=passes) for passes in (0, 6)
        )
        check_guarantees(model, images, labels, refined)
        assert torch.equal(plain.found, refined.found)
        assert (refined.distance <= plain.distance * (1 + 1e-5)).all()
        if method in ("pgd", "ffgsm"):  # the others end at the boundary
            assert refined.distance.mean() < 0.99 * plain.distance.mean()

    @may_run_out
    @every_method
    def test_does_not_change_misclassified_and_unfound_inputs(self, method) -> None:
        model, x = Linear(2, 3), torch.rand(6, 3)
        with torch.no_grad():
            model.bias.copy_(torch.tensor([50.0, 0.0]))
        labels = torch.tensor([0, 1] * 3)
        result = find_min_adversarial(model, x, labels, method=method, refine=5)
        assert result.found.tolist() == [False, True] * 3
        assert torch.equal(result.images, x)
        assert (result.distance[1::2] == 0).all()


def as_saved(images: Tensor, low: float = 0.0, high: float = 1.0, levels: int = 255) -> Tensor:
    """Through a file of 8-bit images and back."""
    saved = ((images - low) / (high - low) * levels).round().to(torch.uint8)
    return saved / levels if (low, high) == (0.0, 1.0) else saved / levels * (high - low) + low


class TestQuantize:
    @every_method
    @pytest.mark.parametrize("grid", [True, False], ids=["8-bit inputs", "any inputs"])
    def test_survives_8_bits_and_costs_little(self, few: Task, method, grid: bool) -> None:
        model, images, labels = few
        if grid:
            images = as_saved(images)
            labels = model(images).argmax(1)
        plain, saved = (
            find_min_adversarial(model, images, labels, method=method, refine=4, quantize=levels)
            for levels in (None, 255)
        )
        assert saved.found.all()
        assert torch.equal(saved.images, as_saved(saved.images))
        check_guarantees(model, images, labels, dataclasses.replace(saved, eps=saved.distance))
        assert (saved.distance / plain.distance).median() <= 1.1

    @pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-2.0, 0.7), (-0.1, 0.3), (3.0, 7.1), (-2.1179, 2.64)])
    def test_other_bounds(self, few: Task, bounds: tuple[float, float]) -> None:
        model, images, labels = few
        low, high = torch.tensor(bounds).tolist()
        shifted = nn.Sequential(Shifted(low, high - low), model)
        inputs = (images * (high - low) + low).clamp(low, high)
        labels = shifted(inputs).argmax(1)
        result = find_min_adversarial(shifted, inputs, labels, method="ddn", quantize=255, bounds=bounds)
        assert result.found.all()
        check_guarantees(shifted, inputs, labels, result, bounds)
        back = as_saved(result.images, low, high)
        torch.testing.assert_close(back, result.images, rtol=0, atol=1e-6 * (high - low + abs(low)))
        assert (shifted(back).argmax(1) != labels).float().mean() >= 0.98  # the last bit may differ

    @pytest.mark.parametrize("bounds", [(-2.0, 0.7), (-0.1, 0.3), (0.1, 0.9), (-123.4, 151.1)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_grid_is_inside_the_box_and_stays_where_it_is(self, bounds, dtype: torch.dtype) -> None:
        low, high = torch.tensor(bounds, dtype=dtype).tolist()
        x = torch.rand(1000, dtype=dtype) * (high - low) + low
        for levels in (1, 2, 3, 255):
            points = on_grid(torch.cat([x, x.new_tensor([low, high])]), (low, high), levels)
            assert points.min() == low
            assert points.max() == high
            assert len(points.unique()) <= levels + 1
            assert torch.equal(on_grid(points, (low, high), levels), points)

    @pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4, 1e-5])
    @pytest.mark.parametrize("features", [30, 3072])
    @pytest.mark.same_inputs
    def test_perturbations_of_less_than_a_level(self, distance: float, features: int) -> None:
        x = (torch.rand(20, features) * 0.8 + 0.1).mul(255).round() / 255
        model = Near(x, distance)
        labels = torch.zeros(20, dtype=torch.long)
        result = find_min_adversarial(model, x, labels, method="ddn", quantize=255)
        assert result.found.all()
        assert torch.equal(result.images, as_saved(result.images))
        assert (result.distance <= max(6 * distance, 0.03)).all()

    @may_run_out
    def test_samples_without_an_example_on_the_grid_are_not_found(self) -> None:
        """Misclassified between two levels only."""

        class Between(Linear):
            def forward(self, x: Tensor) -> Tensor:
                off = (x * 255 - (x * 255).round()).abs().sum(1, keepdim=True)
                return torch.cat([0.2 - off, off * 0], 1)

        x = torch.rand(10, 4)
        labels = torch.zeros(10, dtype=torch.long)
        result = find_min_adversarial(Between(2, 4), x, labels, method="ddn", quantize=255, steps=5)
        assert not result.found.any()
        assert torch.equal(result.images, x)
        assert result.distance.isinf().all()

    @may_run_out
    @pytest.mark.same_inputs
    def test_random_logits(self) -> None:
        model, x = Restless(3, 4), torch.rand(2000, 4)
        result = find_min_adversarial(model, x, torch.zeros(2000, dtype=torch.long), method="ddn", quantize=255)
        assert 0 < result.found.sum() < 2000
        assert torch.equal(result.images[result.found], as_saved(result.images[result.found]))

    def test_misclassified_inputs_on_the_grid_are_unchanged(self, few: Task) -> None:
        model, images, _ = few
        images = as_saved(images)
        labels = (model(images).argmax(1) + 1) % 4
        result = find_min_adversarial(model, images, labels, quantize=255)
        assert torch.equal(result.images, images)
        assert (result.distance == 0).all()

    @may_run_out
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.same_inputs
    def test_other_dtypes(self, dtype: torch.dtype) -> None:
        model, x = Linear(3, 20).to(dtype), torch.rand(20, 20).to(dtype)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels, method="ddn", quantize=255)
        found = result.found
        assert found.float().mean() > 0.75
        levels = (result.images.double() * 255).round()
        torch.testing.assert_close((levels / 255).to(dtype)[found], result.images[found], rtol=0, atol=0)
        assert torch.equal(model(result.images).argmax(1)[found], result.labels[found])


class Shifted(nn.Module):
    def __init__(self, low: float, width: float) -> None:
        super().__init__()
        self.low, self.width = low, width

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.low) / self.width


class Near(nn.Module):
    """One boundary, as far from each of some images."""

    def __init__(self, images: Tensor, distance: float) -> None:
        super().__init__()
        self.normal = nn.Parameter(unit(torch.randn(1, images.shape[1]))[0])
        self.register_buffer("images", images)
        self.distance = distance

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach(), self.images).argmin(1)
        left = self.distance - (x - self.images[nearest]) @ self.normal
        return torch.stack([left, torch.zeros_like(left)], 1) / self.distance


class TestMargin:
    @every_method
    @pytest.mark.parametrize("gap", [0.1, 3.0])
    def test_the_wrong_class_leads_by_it(self, few: Task, method, gap: float) -> None:
        model, images, labels = few
        plain = find_min_adversarial(model, images, labels, method=method)
        for more in ({}, {"refine": 6}, {"quantize": 255}):
            result = find_min_adversarial(model, images, labels, method=method, min_margin=gap, **more)
            assert result.found.float().mean() > 0.9
            logits = model(result.images)
            own = logits.gather(1, labels[:, None])[:, 0]
            ahead = logits.gather(1, result.labels[:, None])[:, 0] - own
            assert (ahead >= gap - 1e-4)[result.found].all()
            if not more:
                check_guarantees(model, images, labels, result)
        assert gap < 1 or result.distance.median() > plain.distance.median()

    @may_run_out
    @every_method
    def test_inputs_misclassified_by_less_are_searched(self, few: Task, method) -> None:
        model, images, _ = few
        ranked = model(images).detach().sort(1, descending=True)
        labels, ahead = ranked.indices[:, 1], ranked.values[:, 0] - ranked.values[:, 1]
        gap = float(ahead.median())
        result = find_min_adversarial(model, images, labels, method=method, min_margin=gap)
        assert (result.distance[ahead > gap * 1.001] == 0).all()
        assert (result.distance[ahead < gap * 0.999] > 0).all()
        assert result.found.float().mean() > 0.9

    @may_run_out
    def test_a_margin_that_cannot_be_reached(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn", min_margin=1e6, refine=2, quantize=255)
        assert not result.found.any()


class TestPrecision:
    @every_method
    def test_examples_hold_in_the_callers_precision(self, few: Task, method) -> None:
        model, images, labels = few
        plain = find_min_adversarial(model, images, labels, method=method)
        result = find_min_adversarial(model, images, labels, method=method, precision="bfloat16")
        assert result.found.all()
        check_guarantees(model, images, labels, result)
        ratio = result.distance / plain.distance  # of pgd's some are 2 or 1/2: another radius was the first to suffice
        assert 0.9 < ratio.median() < 1.1

    @every_method
    @pytest.mark.parametrize("what", ["constant", "detached", "nan"])
    @pytest.mark.same_inputs
    def test_samples_not_found_in_it_are_searched_in_the_callers_precision(self, method, what: str) -> None:
        class Blind(Linear):
            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x)
                if not torch.is_autocast_enabled("cpu"):
                    return logits
                if what == "constant":
                    return logits * 0.001 + torch.tensor([50.0, 0.0, 0.0])
                return logits.detach() * (torch.nan if what == "nan" else 1)

        model, x = Blind(3, 30), torch.rand(1000, 30)
        labels = model(x).argmax(1)
        x, labels = x[labels == 0][:10], labels[labels == 0][:10]
        assert len(x)
        result = find_min_adversarial(model, x, labels, method=method, precision="bfloat16")
        assert result.found.all()
        check_guarantees(model, x, labels, result)

    @pytest.mark.same_inputs
    def test_examples_of_its_rounding_are_not_accepted(self) -> None:
        class Fooled(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).flip(1) if torch.is_autocast_enabled("cpu") else super().forward(x)

        model, x = Fooled(2, 30), torch.rand(20, 30)
        labels = model(x).argmax(1)
        for method in ALL.values():
            result = find_min_adversarial(model, x, labels, method=method, precision="bfloat16")
            assert result.found.all()
            assert (result.distance > 0).all()
            check_guarantees(model, x, labels, result)
