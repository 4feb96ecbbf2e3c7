"""find_min_adversarial: closed forms, guarantees, what each option promises, and bad input."""

import contextlib
import dataclasses
import math
from typing import ClassVar

import pytest
import torch
from search_tools import (
    ALL,
    LOSSES,
    SCALES,
    Linear,
    Restless,
    Scaled,
    Task,
    Watched,
    check_alike,
    check_guarantees,
    every_method,
    may_run_out,
    plain_ddn,
    rows_of,
    trained_net,
    unit,
)
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import AdversarialSet, InputError, find_min_adversarial
from amun_ext import search as search_module
from amun_ext.search.finish import on_grid

pytestmark = pytest.mark.usefixtures("one_thread")
X, Y = torch.rand(4, 5), torch.zeros(4, dtype=torch.long)


@pytest.mark.same_inputs
class TestClosedForm:
    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("classes", [2, 10])
    def test_margin_loss_is_close_to_the_true_minimum(self, scale: float, classes: int) -> None:
        model, x = Linear(classes, 100, scale), torch.rand(200, 100)
        labels = model(x).argmax(1)
        truth = model.distance(x, labels)
        result = find_min_adversarial(model, x, labels, loss="margin", bounds=(-100.0, 100.0))
        assert result.found.all()
        ratio = result.distance / truth
        assert ratio.median() <= 1.12
        assert (ratio >= 1 - 1e-4).all()
        if classes == 2:  # one boundary: the overshoot is at most a step, eps / 10
            assert (ratio[truth > 0.02] <= 1.2 + 1e-4).all()

    @pytest.mark.parametrize(
        ("method", "classes", "features", "scale"),
        [
            pytest.param(method, *case, id=f"{name}-{case}")
            for case in [(2, 10, 0.1), (2, 3072, 1000.0), (10, 100, 1.0), (50, 3072, 120.0), (50, 10, 20.0)]
            for name, method in ALL.items()
            if method != "ffgsm" or case[0] == 2  # it heads for the boundary of no one class
        ],
    )
    def test_refined_it_is_the_true_minimum(self, method, classes: int, features: int, scale: float) -> None:
        model, x = Linear(classes, features, scale), torch.rand(60, features)
        labels = model(x).argmax(1)
        truth = model.distance(x, labels)
        if method == "ffgsm":  # one boundary, met along the sign of its normal
            normal = (model.weight[0] - model.weight[1]).detach()
            truth = truth * normal.norm() * features**0.5 / normal.abs().sum()
        result = find_min_adversarial(
            model, x, labels, method=method, loss="margin", refine=10, bounds=(-100.0, 100.0), eps_max=100.0
        )
        assert result.found.all()
        ratio = result.distance / truth
        assert ratio.median() <= 1.02
        assert (ratio >= 0.99).all()
        if classes == 2:
            assert (ratio[truth > 0.02] <= 1.02).all()

    @pytest.mark.parametrize("scale", SCALES)
    def test_cross_entropy_in_float32_agrees_with_float64(self, scale: float) -> None:
        model, x = Linear(10, 30, scale), torch.rand(100, 30)
        labels = model(x).argmax(1)
        single = find_min_adversarial(model, x, labels, bounds=(-100.0, 100.0))
        double = find_min_adversarial(model.double(), x.double(), labels, bounds=(-100.0, 100.0))
        assert single.found.all()
        assert double.found.all()
        torch.testing.assert_close(single.distance.double(), double.distance, rtol=0.01, atol=1e-6)

    @may_run_out
    @every_method
    def test_binding_box(self, method) -> None:
        """Logits x_0 + 10 x_1 - 0.5 and 0, with x_1 at its lower bound: only x_0 can still fall."""
        model = Linear(2, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 10.0], [0.0, 0.0]]))
            model.bias.copy_(torch.tensor([-0.5, 0.0]))
        x, labels = torch.tensor([[0.8, 0.0]]), torch.tensor([0])
        for loss in LOSSES:
            result = find_min_adversarial(model, x, labels, method=method, loss=loss, steps=50)
            check_guarantees(model, x, labels, result)
            if method is plain_ddn:  # what the box cancels is most of its step
                continue
            assert result.found.all()
            assert result.images[0, 1] == 0
            assert 0.3 <= result.distance[0] <= 0.3 + 0.5 * result.eps[0]

    @may_run_out
    @every_method
    def test_no_example_inside_the_box(self, method) -> None:
        model = Linear(2, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
            model.bias.copy_(torch.tensor([0.5, 0.0]))
        x = torch.tensor([[0.3, 0.4]])
        result = find_min_adversarial(model, x, torch.tensor([0]), method=method, refine=3, quantize=255)
        assert not result.found.any()
        assert torch.equal(result.images, x)
        assert result.distance.isinf().all()

    def test_step_count_and_radius_of_one_sample(self) -> None:
        """Distance 0.05 at eps_init 0.04: 10 steps fill the ball, 40 stay on it, the second round needs two more."""
        model = Linear(2, 1)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[-1.0], [0.0]]))
            model.bias.copy_(torch.tensor([0.55, 0.0]))
        result = find_min_adversarial(model, torch.tensor([[0.5]]), torch.tensor([0]), eps_init=0.04)
        assert result.eps.item() == pytest.approx(0.08)
        assert result.distance.item() == pytest.approx(0.056, abs=1e-5)
        assert result.grad_evals.item() == 50 + 2 + 1


@every_method
class TestGuarantees:
    @pytest.mark.parametrize("batch_size", [1, 7, 1000, None])
    def test_all_found_and_as_promised(self, few: Task, method, batch_size: int | None) -> None:
        model, images, labels = few
        if batch_size == 1:
            images, labels = images[:8], labels[:8]
        for loss in LOSSES:
            result = find_min_adversarial(model, images, labels, method=method, loss=loss, batch_size=batch_size)
            assert result.found.all()
            check_guarantees(model, images, labels, result)

    def test_does_not_depend_on_the_batch(self, task: Task, method) -> None:
        model, images, labels = task
        many = find_min_adversarial(model, images, labels, method=method, batch_size=len(images))
        for size in (9, 40):  # the last batch is ragged
            check_alike(find_min_adversarial(model, images, labels, method=method, batch_size=size), many)

    @pytest.mark.same_inputs
    def test_does_not_depend_on_the_order(self, task: Task, method) -> None:
        model, images, labels = task
        order = torch.randperm(len(images))
        there = find_min_adversarial(model, images, labels, method=method, batch_size=30)
        back = find_min_adversarial(model, images[order], labels[order], method=method, batch_size=30)
        columns = {field.name: getattr(back, field.name)[order.argsort()] for field in dataclasses.fields(back)}
        assert torch.equal(order[columns["source_index"]], torch.arange(len(images)))
        if method == "ffgsm":  # another row has other random directions once the first try has failed
            first = (there.grad_evals == 1) & (columns["grad_evals"] == 1)
            there, columns = rows_of(there, first), {name: column[first] for name, column in columns.items()}
            assert len(there.found) > 40
        check_alike(there, AdversarialSet(**columns))

    def test_does_not_depend_on_chunks(self, task: Task, method, monkeypatch) -> None:
        model, images, labels = task
        whole = find_min_adversarial(model, images, labels, method=method, batch_size=16)
        monkeypatch.setattr(search_module, "CHUNK_BYTES", 40 * images[0].nbytes)
        parts = find_min_adversarial(model, images, labels, method=method, batch_size=16)
        check_guarantees(model, images, labels, parts)
        check_alike(whole, parts)

    def test_is_deterministic(self, few: Task, method) -> None:
        model, images, labels = few
        torch.manual_seed(1)
        first = find_min_adversarial(model, images, labels, method=method, batch_size=16, refine=2)
        torch.manual_seed(2)
        second = find_min_adversarial(model, images, labels, method=method, batch_size=16, refine=2)
        assert torch.equal(first.images, second.images)

    def test_the_cheaper_copy_finds_the_same(self, task: Task, method) -> None:
        model, images, labels = task
        cheap, plain = (
            find_min_adversarial(model, images, labels, method=method, prepare=prepare) for prepare in (True, False)
        )
        check_alike(cheap, plain)

    def test_misclassified_inputs_come_back_as_they_are(self, few: Task, method) -> None:
        model, images, _ = few
        labels = (model(images).argmax(1) + 1) % 4
        result = find_min_adversarial(model, images, labels, method=method, refine=3)
        assert torch.equal(result.images, images)
        assert (result.distance == 0).all()
        assert (result.eps == 0).all()
        assert (result.grad_evals == 1).all()
        assert result.found.all()
        check_guarantees(model, images, labels, result)

    @may_run_out
    @pytest.mark.same_inputs
    def test_inputs_on_the_bounds(self, method) -> None:
        images, labels = torch.rand(50, 1, 6, 6).round(), torch.randint(0, 4, (50,))
        model = trained_net(images, labels)
        result = find_min_adversarial(model, images, labels, method=method)
        assert result.found.float().mean() >= (0.9 if method is plain_ddn else 1)  # it loses what the box cancels
        check_guarantees(model, images, labels, result)

    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "expanded", "strided"])
    def test_layouts_of_the_inputs(self, task: Task, method, layout: str) -> None:
        model, images, _ = task
        images = {
            "transposed": images.transpose(2, 3),
            "channels_last": images.contiguous(memory_format=torch.channels_last),
            "expanded": images[:1].expand(5, -1, -1, -1),
            "strided": images[::3],
        }[layout]
        labels = model(images).argmax(1)
        result = find_min_adversarial(model, images, labels, method=method)
        plain = find_min_adversarial(model, images.contiguous(), labels, method=method)
        check_guarantees(model, images, labels, result)
        check_alike(plain, result)

    @may_run_out
    @pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
    @pytest.mark.same_inputs
    def test_inputs_of_any_rank(self, method, shape: tuple[int, ...]) -> None:
        model, x = Linear(3, math.prod(shape)), torch.rand(9, *shape)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method, bounds=(-100.0, 100.0), batch_size=4)
        assert result.found.all()
        assert result.images.shape == x.shape
        check_guarantees(model, x, labels, result, (-100.0, 100.0))

    @may_run_out
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.same_inputs
    def test_models_of_another_dtype(self, method, dtype: torch.dtype) -> None:
        model, x = Linear(3, 20).to(dtype), torch.rand(40, 20).to(dtype)
        labels = model(x).argmax(1)
        for refine in (0, 4):
            result = find_min_adversarial(model, x, labels, method=method, refine=refine)
            assert result.distance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            found = result.found
            assert found.float().mean() > 0.75  # deepfool may be stuck at a tie of coarse logits
            check = (result.images.double() - x.double()).norm(dim=1)[found]
            assert torch.equal(model(result.images).argmax(1)[found], result.labels[found])
            assert (result.labels != labels)[found].all()
            torch.testing.assert_close(result.distance[found].double(), check, rtol=1e-4, atol=1e-6)

    @may_run_out
    @pytest.mark.parametrize(
        ("weights", "inputs"),
        [(torch.float16, torch.float32), (torch.float32, torch.float16), (torch.float64, torch.float32)],
        ids=str,
    )
    @pytest.mark.same_inputs
    def test_inputs_of_another_dtype_than_the_model(self, method, weights: torch.dtype, inputs: torch.dtype) -> None:
        model, x = Linear(3, 20).to(weights), torch.rand(20, 20).to(inputs)
        labels = model(x.to(weights)).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method)
        assert result.images.dtype == inputs
        assert result.found.float().mean() > 0.75
        predicted = model(result.images.to(weights)).argmax(1)
        assert torch.equal(predicted[result.found], result.labels[result.found])

    def test_labels_of_another_dtype(self, few: Task, method) -> None:
        model, images, labels = few
        expected = find_min_adversarial(model, images, labels, method=method)
        for dtype in (torch.int32, torch.uint8):
            result = find_min_adversarial(model, images, labels.to(dtype), method=method)
            assert result.labels.dtype == result.true_labels.dtype == torch.int64
            assert torch.equal(result.images, expected.images)

    @may_run_out
    def test_bounds_are_read_in_the_images_dtype(self, method) -> None:
        """0.3 is a little less than its float32 neighbour, which the search itself returns."""
        model, x = Linear(3, 5), torch.rand(8, 5).clamp(0, 0.3)
        labels = model(x).argmax(1)
        options = {"method": method, "bounds": (0.0, 0.3), "eps_max": 2.0}
        result = find_min_adversarial(model, x, labels, **options)
        again = find_min_adversarial(model, result.images, model(result.images).argmax(1), **options)
        assert again.images.max() <= torch.tensor(0.3)

    @may_run_out
    def test_nothing_is_farther_than_eps_max(self, task: Task, method) -> None:
        model, images, labels = task
        near = find_min_adversarial(model, images, labels, method=method)
        eps_max = float(near.distance.median())
        result = find_min_adversarial(model, images, labels, method=method, eps_max=eps_max)
        check_guarantees(model, images, labels, result)
        assert (result.distance[result.found] <= eps_max * 1.001).all()
        assert 0 < result.found.sum() < len(images)

    @may_run_out
    @pytest.mark.parametrize("eps_max", [100.0, 1e30, 1e300])
    def test_no_radius_is_too_large_for_it(self, method, eps_max: float) -> None:
        model, x = Linear(3, 6), torch.rand(8, 6)
        labels = model(x).argmax(1)
        expected = find_min_adversarial(model, x, labels, method=method)
        result = find_min_adversarial(model, x, labels, method=method, eps_max=eps_max)
        assert torch.equal(result.images, expected.images)
        if method in ("pgd", "ffgsm"):
            result = find_min_adversarial(model, x, labels, method=method, eps_max=eps_max, eps_growth=1e300)
            assert result.found.all()
            check_guarantees(model, x, labels, result)

    def test_float32_finds_what_a_saturated_softmax_hides(self, few: Task, method) -> None:
        model, images, labels = few
        plain = find_min_adversarial(model, images, labels, method=method)
        for loss in LOSSES:
            sharp = find_min_adversarial(Scaled(model, 2000.0), images, labels, method=method, loss=loss)
            assert sharp.found.all()
        if method != "ffgsm":  # its one gradient is another where the softmax is sharp
            assert sharp.distance.median() <= 1.3 * plain.distance.median()


class TestCost:
    GRADIENTS: ClassVar = {
        "ddn": (14, 14),
        "deepfool": (10, 10),
        "ffgsm": (1, 5),
        "pgd": (2, 1000),
        plain_ddn: (20, 20),
    }

    @every_method
    def test_gradients_are_counted(self, few: Task, method) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method=method)
        least, most = self.GRADIENTS[method]
        fits = (result.grad_evals >= least) & (result.grad_evals <= most)
        assert fits.float().mean() >= 0.97  # one whose example does not hold on the model itself is searched twice

    @pytest.mark.parametrize("method", ["ddn", "deepfool", plain_ddn])
    def test_steps_are_gradients(self, few: Task, method) -> None:
        model, images, labels = few
        labels[0] = (labels[0] + 1) % 4  # misclassified: ends at once
        result = find_min_adversarial(model, images, labels, method=method, steps=7)
        assert result.grad_evals[0] == 1
        assert (result.grad_evals[1:] == 7).float().mean() >= 0.97

    @every_method
    def test_the_model_is_asked_no_more_than_that(self, method) -> None:
        """So a finished sample leaves the batch."""
        model, x = Watched(4, 36), torch.rand(64, 36)
        labels = Linear.forward(model, x).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method, prepare=False, batch_size=64)
        looks = 9 * 5 if method == "ffgsm" else 1  # without a gradient
        assert model.seen <= int(result.grad_evals.sum()) + (looks + 1) * 64 + 2

    @every_method
    def test_bar_counts_every_sample_once(self, task: Task, method, monkeypatch) -> None:
        class Bar(contextlib.nullcontext):
            made: ClassVar[list["Bar"]] = []

            def __init__(self, total: int = 0, initial: int = 0, disable: bool = False, **_: object) -> None:
                super().__init__(self)
                self.n, self.total, self.disable = initial, total, disable
                Bar.made += [] if disable else [self]

            def update(self, count: int) -> None:
                assert count >= 0
                self.n += 0 if self.disable else count

        model, images, labels = task
        monkeypatch.setattr(search_module, "tqdm", Bar)
        monkeypatch.setattr(search_module, "CHUNK_BYTES", 40 * images[0].nbytes)
        find_min_adversarial(model, images, labels, method=method, batch_size=16, progress=True)
        (bar,) = Bar.made
        assert bar.n == bar.total == len(images)


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
    def test_a_setting_that_the_method_has_not_is_refused(self, method, option: str) -> None:
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

    def test_radius_of_ddn_may_be_given(self, few: Task) -> None:
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
    def test_never_worse_and_still_as_promised(self, few: Task, method) -> None:
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
    def test_leaves_misclassified_and_unfound_inputs_alone(self, method) -> None:
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
    def test_what_the_grid_has_no_example_for_is_not_found(self) -> None:
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
    def test_answers_that_change(self) -> None:
        torch.manual_seed(0)
        model, x = Restless(3, 4), torch.rand(2000, 4)
        result = find_min_adversarial(model, x, torch.zeros(2000, dtype=torch.long), method="ddn", quantize=255)
        assert 0 < result.found.sum() < 2000
        assert torch.equal(result.images[result.found], as_saved(result.images[result.found]))

    def test_misclassified_inputs_on_the_grid_stay(self, few: Task) -> None:
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
    def test_the_wrong_class_is_ahead_by_it(self, few: Task, method, gap: float) -> None:
        model, images, labels = few
        plain = find_min_adversarial(model, images, labels, method=method)
        for more in ({}, {"refine": 6}, {"quantize": 255}):
            result = find_min_adversarial(model, images, labels, method=method, margin=gap, **more)
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
    def test_misclassified_by_less_than_it_goes_on(self, few: Task, method) -> None:
        model, images, _ = few
        ranked = model(images).detach().sort(1, descending=True)
        labels, ahead = ranked.indices[:, 1], ranked.values[:, 0] - ranked.values[:, 1]
        gap = float(ahead.median())
        result = find_min_adversarial(model, images, labels, method=method, margin=gap)
        assert (result.distance[ahead > gap * 1.001] == 0).all()
        assert (result.distance[ahead < gap * 0.999] > 0).all()
        assert result.found.float().mean() > 0.9

    @may_run_out
    def test_a_gap_that_cannot_be_had(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn", margin=1e6, refine=2, quantize=255)
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
    def test_what_it_cannot_see_is_found_in_the_callers(self, method, what: str) -> None:
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
    def test_a_wrong_answer_in_it_does_not_pass(self) -> None:
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


BAD = {
    "not a tensor": ({"inputs": [1.0]}, "inputs must be"),
    "8-bit": ({"inputs": torch.zeros(4, 5, dtype=torch.uint8)}, "inputs must be floating point"),
    "rank": ({"inputs": torch.rand(4)}, "inputs must be a batch"),
    "empty": ({"inputs": torch.rand(0, 5), "labels": Y[:0]}, "inputs must be a non-empty batch"),
    "nan": ({"inputs": X * torch.nan}, "inputs must be free of NaN"),
    "infinite": ({"inputs": X + torch.inf}, "inputs must be finite"),
    "outside": ({"inputs": X + 1}, "inputs must be inside bounds"),
    "no labels": ({"labels": None}, "labels must be a tensor"),
    "label too large": ({"labels": Y + 3}, r"labels must be in \[0, 3\), got values from 3 to 3"),
    "label negative": ({"labels": Y - 1}, "labels must be not negative"),
    "labels float": ({"labels": Y.float()}, "labels must be integers"),
    "labels bool": ({"labels": Y.bool()}, "labels must be integers"),
    "labels count": ({"labels": Y[:3]}, r"labels must be of shape \(4,\)"),
    "labels rank": ({"labels": Y[:, None]}, r"labels must be of shape \(4,\)"),
    "labels beside a dataset": ({"inputs": TensorDataset(X, Y)}, "inputs must be a tensor"),
    "method": ({"method": "cw"}, "method must be one of"),
    "loss": ({"loss": "hinge"}, "loss must be one of"),
    "eps_init": ({"eps_init": 0}, "eps_init must be from"),
    "eps_growth": ({"eps_growth": 1}, "eps_growth must be at least"),
    "eps_max": ({"eps_max": 0.01}, "eps_max must be finite and at least"),
    "eps_max inf": ({"eps_max": math.inf}, "eps_max must be finite"),
    "eps_init nan": ({"eps_init": math.nan}, "eps_init must be from"),
    "growth that float32 rounds away": ({"eps_growth": 1 + 1e-9}, "eps_growth must be at least"),
    "steps too many": ({"steps": 2**31}, "steps must be"),
    "a bool": ({"batch_size": True}, "batch_size must be"),
    "step_fraction inf": ({"step_fraction": math.inf}, "step_fraction must be in"),
    "bounds of three": ({"bounds": (0, 1, 2)}, "bounds must be"),
    "steps": ({"steps": 0}, "steps must be"),
    "steps float": ({"steps": 2.5}, "steps must be"),
    "step_fraction": ({"step_fraction": -1}, "step_fraction must be in"),
    "refine": ({"refine": -1}, "refine must be"),
    "batch_size": ({"batch_size": 0}, "batch_size must be"),
    "bounds": ({"bounds": (1.0, 0.0)}, "bounds must be"),
    "no items": ({"inputs": TensorDataset(X[:0], Y[:0]), "labels": None}, "inputs must be non-empty"),
    "a scalar": ({"inputs": torch.tensor(0.5)}, "inputs must be a batch"),
    "method of another type": ({"method": ["pgd"]}, "method must be one of"),
    "eps_init text": ({"eps_init": "guess"}, "eps_init must be a radius or"),
    "eps_init bool": ({"eps_init": True}, "eps_init must be a number"),
    "eps_growth text": ({"eps_growth": "2"}, "eps_growth must be a number"),
    "eps_growth of ddn": ({"method": "ddn", "eps_growth": 1.5}, "eps_growth must be below 1.5 with method ddn"),
    "eps_max text": ({"eps_max": "2"}, "eps_max must be a number"),
    "step_fraction text": ({"step_fraction": "2"}, "step_fraction must be a number"),
    "margin negative": ({"margin": -1}, "margin must be finite and not negative"),
    "margin nan": ({"margin": math.nan}, "margin must be finite"),
    "margin text": ({"margin": "1"}, "margin must be a number"),
    "quantize": ({"quantize": 0}, "quantize must be"),
    "quantize bool": ({"quantize": True}, "quantize must be"),
    "precision": ({"precision": "float16"}, "precision must be one of"),
    "precision without a copy": ({"precision": "bfloat16", "prepare": False}, "precision must be None with prepare"),
    "prepare": ({"prepare": 1}, "prepare must be True or False"),
    "out": ({"out": "/"}, "out must be a file to be written"),
    "model": ({"model": len}, "model must be an nn.Module"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_the_model_runs(change: dict, message: str) -> None:
    class Watched(Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Watched.calls += 1
            return super().forward(x)

    arguments = {"model": Watched(3, 5), "inputs": X, "labels": Y} | change
    with pytest.raises(InputError, match=message):
        find_min_adversarial(**arguments)
    assert Watched.calls <= 1  # one input, to learn the number of classes


@pytest.mark.parametrize(
    "answer",
    [lambda x: (x, x), lambda x: x[:, 0], lambda x: x[:, :1], lambda x: x.argmax(1, keepdim=True), lambda x: x[None]],
    ids=["tuple", "rank", "one class", "integers", "rank 3"],
)
def test_a_model_that_gives_no_logits_is_refused(answer) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor):
            return answer(x)

    with pytest.raises(InputError, match=r"model must be a map to logits \[N, K\]"):
        find_min_adversarial(Odd(), X, Y)
