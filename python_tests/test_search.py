"""find_min_adversarial: closed forms, guarantees and cost."""

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
)

from amun_ext import AdversarialSet, find_min_adversarial
from amun_ext.search import find as search_module


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
    def test_refinement_finds_the_true_minimum(self, method, classes: int, features: int, scale: float) -> None:
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
    def test_all_are_found_and_valid(self, few: Task, method, batch_size: int | None) -> None:
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
            find_min_adversarial(model, images, labels, method=method, optimize_model=optimize_model)
            for optimize_model in (True, False)
        )
        check_alike(cheap, plain)

    def test_misclassified_inputs_are_returned_unchanged(self, few: Task, method) -> None:
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
    @pytest.mark.same_inputs
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
        "ddn": (10, 26),
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

    def test_samples_without_an_example_get_more_steps(self) -> None:
        """The radius grows to 2.59 times the first in 10 steps, and by another 1.15 in each round of the last 4."""
        model = Linear(2, 2)
        model.weight.data, model.bias.data = torch.eye(2), torch.zeros(2)
        images, labels = torch.tensor([[0.9, 0.1]]), torch.tensor([0])
        options = {"method": "ddn", "eps_init": 0.24 * 0.8 / math.sqrt(2)}
        fixed = find_min_adversarial(model, images, labels, steps=10, **options)
        assert (fixed.grad_evals.item(), fixed.found.item()) == (10, False)
        more = find_min_adversarial(model, images, labels, **options)
        assert (more.grad_evals.item(), more.found.item()) == (26, True)

    @every_method
    def test_the_model_is_not_called_more_often(self, method) -> None:
        """So a finished sample leaves the batch."""
        model, x = Watched(4, 36), torch.rand(64, 36)
        labels = Linear.forward(model, x).argmax(1)
        result = find_min_adversarial(model, x, labels, method=method, optimize_model=False, batch_size=64)
        looks = {"ffgsm": 9 * 5, "ddn": 5 + 3}.get(method, 1)  # without a gradient
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
        monkeypatch.setattr(search_module, "progress_bar", lambda shown, **options: Bar(disable=not shown, **options))
        monkeypatch.setattr(search_module, "CHUNK_BYTES", 40 * images[0].nbytes)
        find_min_adversarial(model, images, labels, method=method, batch_size=16, progress=True)
        (bar,) = Bar.made
        assert bar.n == bar.total == len(images)
