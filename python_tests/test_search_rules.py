"""Each rule of search_step_ against its closed form: where a step leads, and how the radius changes."""

import math

import pytest
import torch
from op_tools import (
    CONFIGS,
    DDN,
    DEEPFOOL,
    DTYPES,
    EXTERNAL,
    PGD,
    UNBOUNDED,
    Search,
    assert_close,
    check_search_step,
    directions,
    draw_feedback,
)
from pairs import pairs
from torch import Tensor

from amun_ext import ops
from amun_ext.ops import Feedback, Status, accumulate_dtype

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class TestPgd:
    CONFIG = PGD._replace(steps=3, step_fraction=0.75, eps_growth=2.0, eps_max=1.0)

    @FLOATS
    def test_one_step_has_the_length_of_the_step(self, device, dtype):
        search = Search.running(9, (3, 7, 7), eps=0.5, device=device, dtype=dtype)
        feedback = draw_feedback(search.batch.x)
        search.step(feedback, self.CONFIG, UNBOUNDED)
        moved = (search.batch.x - search.table.inputs).flatten(1)
        assert_close(moved, 0.75 * 0.5 * directions(feedback.grad.flatten(1)), dtype)

    @FLOATS
    def test_the_second_step_ends_on_the_radius(self, device, dtype):
        search = Search.running(9, (3, 7, 7), eps=0.5, device=device, dtype=dtype)
        feedback = draw_feedback(search.batch.x)
        for _ in range(2):
            search.step(feedback, self.CONFIG, UNBOUNDED)
        moved = (search.batch.x - search.table.inputs).flatten(1)
        assert_close(moved, 0.5 * directions(feedback.grad.flatten(1)), dtype)

    def test_the_radius_grows_up_to_the_last(self, device):
        search = Search.running(1, (5,), eps=0.1, device=device)
        config, radii = self.CONFIG._replace(step_fraction=0.5, eps_max=0.7), []
        while search.table.status == Status.PENDING:
            search.step(draw_feedback(search.batch.x), config)
            radii.append(round(search.table.eps.item(), 6))
        # The last evaluation finds that no radius is left.
        assert radii == [0.1] * 3 + [0.2] * 3 + [0.4] * 3 + [0.7] * 4
        assert search.table.status == Status.EXHAUSTED
        assert search.table.grad_evals == 13

    @pytest.mark.parametrize("eps", [0.0, 0.25])
    def test_a_radius_that_cannot_grow_by_rounding_is_the_last(self, device, eps):
        search = Search.running(3, (5,), device=device, eps=eps)
        config = PGD._replace(steps=2, step_fraction=0.1, eps_growth=1 + 1e-9)
        for _ in range(3):
            search.step(draw_feedback(search.batch.x), config)
        assert (search.table.status == Status.EXHAUSTED).all()


class Plane:
    """A model of two classes with a flat boundary, one for each image [B, D]: margin(x) = left - <normal, x - x0>."""

    def __init__(self, search: Search) -> None:
        self.x0 = search.table.inputs.double()
        self.normal, self.left = torch.randn_like(self.x0), 0.1 + torch.rand_like(self.x0[:, 0])

    def margin(self, x: Tensor) -> Tensor:
        return self.left - ((x.double() - self.x0) * self.normal).sum(1)

    def feedback(self, x: Tensor) -> Feedback:
        margin = self.margin(x)
        return Feedback(self.normal.to(x), margin <= 0, (margin <= 0).long(), margin.to(accumulate_dtype(x.dtype)))


def on_the_bounds(search: Search, grad: Tensor, bounds=(0.0, 1.0)) -> Tensor:
    """Puts two thirds of the iterates' elements on the bounds; those of them at which `grad` points out of the box."""
    x, drawn = search.batch.x, torch.rand(search.batch.x.shape, device=grad.device)
    x[drawn < 1 / 3], x[drawn > 2 / 3] = bounds[0], bounds[1]
    low, high = torch.tensor(bounds, dtype=x.dtype, device=x.device)
    return (x == low) & (grad < 0) | (x == high) & (grad > 0)


class TestFirstRadius:
    @pytest.mark.parametrize(("dtype", "rule"), pairs(DTYPES, ["pgd", "ddn", "deepfool"]))
    def test_is_estimated_from_margin_and_gradient(self, device, rule, dtype):
        search, config = Search.running(200, (30,), device=device, dtype=dtype, eps=0), CONFIGS[rule]
        feedback = draw_feedback(search.batch.x)
        feedback.margin.copy_(10 ** (12 * torch.rand(200, device=device) - 9))
        feedback.margin[0], feedback.margin[1] = 0, -1
        grad, outward = feedback.grad.double(), on_the_bounds(search, feedback.grad)
        assert outward.any()
        if rule != "pgd":
            grad[outward] = 0
        # Steps that are less than 16 roundings of the iterate may not move it.
        wide = accumulate_dtype(dtype)
        shortest = 16 * torch.finfo(wide).eps * search.batch.x.double().norm(dim=1)
        search.step(feedback, config)
        expected = (1.5 * feedback.margin.double() / grad.norm(dim=1)).clamp(min=shortest).clamp(max=0.5)
        assert_close(search.table.eps / expected, torch.ones(200), wide)
        assert (search.table.eps[:2] / shortest[:2] - 1 < 1e-5).all()
        assert (expected == 0.5).any()

        search.step(draw_feedback(search.batch.x), config)  # and once only
        change = 1 + 0.3 * (0.05 / 0.3) ** (1 / 5) if rule == "ddn" else 1
        assert_close(search.table.eps, (expected * change).clamp(max=0.5), accumulate_dtype(dtype))

    @FLOATS
    @pytest.mark.parametrize("rule", ["pgd", "ddn", "deepfool"])
    def test_a_tie_that_the_label_wins_still_moves(self, device, rule, dtype):
        config, eps = CONFIGS[rule], torch.finfo(dtype).eps
        for size in (0.0, 1e-3):  # of the image: a rounding of the logits and one of the image
            search = Search.running(1, (16,), device=device, dtype=dtype, eps=0)
            search.table.inputs.fill_(size)
            search.batch.x.fill_(size)
            attack = ops.attack_loss(
                torch.ones(1, 3, device=device, dtype=dtype), torch.zeros_like(search.queue_position)
            )
            assert (attack.margin, attack.predicted, attack.adversarial) == (eps, 0, False)
            grad = directions(torch.randn_like(search.batch.x)) / 3
            feedback = Feedback(grad, attack.adversarial, attack.predicted, attack.margin)
            search.step(feedback, config, (-1.0, 1.0))
            estimate = 3 * eps * (config.overshoot if rule == "deepfool" else config.start)
            length = max(estimate, 16 * eps * 4 * size) * (config.step_fraction if rule == "pgd" else 1)
            moved = (search.batch.x - search.table.inputs) / length
            torch.testing.assert_close(moved, 3 * grad, rtol=0, atol=1e-5 if size == 0 else 0.05)


class TestDdn:
    @FLOATS
    @pytest.mark.same_inputs
    def test_every_iterate_lies_on_its_radius(self, device, dtype):
        search = Search.running(30, (3, 5, 5), device=device, dtype=dtype)
        config = DDN._replace(steps=9, step_fraction=1.0, last_step_fraction=0.1)
        for step in range(9):
            feedback = draw_feedback(search.batch.x, torch.rand(30, device=device) < min(step, 0.5))
            search.step(feedback, config, UNBOUNDED)
            distance = (search.batch.x - search.table.inputs).flatten(1).norm(dim=1)
            assert_close(distance / search.table.eps, torch.ones(30), dtype)
            assert (search.table.eps <= 0.5).all()
        assert (search.table.eps < 0.1).any()

    def test_radius_and_step_follow_their_schedules(self, device):
        """Of samples that never become adversarial."""
        search = Search.running(5, (30,), eps=0.1, device=device, dtype=torch.float64)
        config = DDN._replace(steps=7, step_fraction=0.8, last_step_fraction=0.05, last_eps_growth=1.02, eps_max=0.15)
        for step in range(7):
            d, eps = search.batch.x - search.table.inputs, search.table.eps.clone()
            feedback = draw_feedback(search.batch.x)
            search.step(feedback, config, UNBOUNDED)
            fraction = math.exp(math.log(0.8) + step / 6 * math.log(0.05 / 0.8))
            change = math.exp(math.log(0.3) + step / 6 * math.log(0.02 / 0.3)) if step else 0
            aimed = d + fraction * eps[:, None] * directions(feedback.grad)
            expected = (eps * (1 + change)).clamp(max=0.15)
            assert_close(search.table.eps, expected, torch.float64)
            assert_close(search.batch.x - search.table.inputs, expected[:, None] * directions(aimed), torch.float64)
        assert (search.table.eps == 0.15).all()

    @pytest.mark.parametrize("closer", [1.0, 0.7], ids=["best so far", "a closer one is known"])
    def test_from_an_example_the_radius_shrinks_to_the_boundary(self, device, closer):
        search, step = Search.running(300, (30,), eps=0.2, device=device, dtype=torch.float64), 2
        plane, config = Plane(search), DDN._replace(step_fraction=0.8, last_step_fraction=0.1, overshoot=1.0)
        search.table.step_count.fill_(step)
        d = 0.2 * directions(directions(plane.normal) + 0.1 * torch.randn_like(plane.normal))
        search.batch.x.copy_(search.table.inputs + d)
        if closer < 1:
            search.table.distance.fill_(closer * 0.2)

        fraction, change = 0.8 * (0.1 / 0.8) ** (step / 5), 0.3 * (0.05 / 0.3) ** (step / 5)
        ahead = directions(d + fraction * 0.2 * directions(plane.normal))
        # Where the boundary is met on the way, from well before the range that is trusted to well after it.
        crossing = closer * 0.2 * (1 - 4 * change * torch.rand(300, device=device, dtype=torch.float64))
        plane.left = crossing * (ahead * plane.normal).sum(1)
        feedback = plane.feedback(search.batch.x)
        feedback.adversarial.fill_(True)
        search.step(feedback, config, UNBOUNDED)

        least, most = closer * 0.2 * (1 - 2 * change), closer * 0.2 * (1 - change)
        assert_close(search.table.eps, crossing.clamp(least, most), torch.float64)
        assert_close(search.batch.x - search.table.inputs, search.table.eps[:, None] * ahead, torch.float64)
        exact = (crossing > least) & (crossing < most)
        assert exact.any()
        assert ((crossing < least).any(), (crossing > most).any()) == (True, True)
        assert_close(plane.margin(search.batch.x)[exact], torch.zeros(int(exact.sum())), torch.float64)

    def test_from_an_example_with_the_boundary_behind_it_the_radius_shrinks_a_little(self, device):
        search = Search.running(5, (30,), eps=0.2, device=device, dtype=torch.float64)
        search.table.step_count.fill_(5)
        feedback = draw_feedback(search.batch.x, True)
        search.batch.x.copy_(search.table.inputs - 0.2 * directions(feedback.grad))
        search.step(feedback, DDN._replace(last_step_fraction=0.1), UNBOUNDED)
        assert_close(search.table.eps / (0.2 * 0.95), torch.ones(5), torch.float64)
        expected = search.table.inputs - 0.2 * 0.95 * directions(feedback.grad)
        assert_close(search.batch.x, expected, torch.float64)

    def test_a_step_that_cancels_d(self, device):
        """Then there is no direction to stretch: back to the original."""
        for adversarial in (False, True):
            search = Search.running(3, (4,), eps=0.25, device=device)
            search.table.inputs.fill_(0.5)
            search.table.step_count.fill_(1)
            search.batch.x.fill_(0.5)[:, 1] = 0.25
            feedback = draw_feedback(search.batch.x, adversarial)
            feedback.grad.zero_()[:, 1] = 2.0
            config = DDN._replace(step_fraction=1.0, last_step_fraction=1.0)
            check_search_step(search, feedback, config)
            assert torch.equal(search.batch.x, search.table.inputs)
            assert ((search.table.eps > 0.1) & (search.table.eps < 0.4)).all()

    def test_a_growth_below_rounding(self, device):
        search = Search.running(3, (4,), eps=0.25, device=device)
        config = DDN._replace(eps_growth=1 + 1e-9, last_eps_growth=1 + 1e-12)
        for _ in range(6):
            check_search_step(search, draw_feedback(search.batch.x), config)
            assert (search.table.eps == 0.25).all()
        assert (search.table.grad_evals == 6).all()


class TestInward:
    """What ddn and deepfool make of gradients that point out of the box."""

    @pytest.mark.parametrize(("dtype", "rule", "bounds"), pairs(DTYPES, ["ddn", "deepfool"], [(0.0, 1.0), (0.3, 0.7)]))
    def test_elements_that_point_outwards_count_as_zero(self, device, rule, dtype, bounds):
        """Also where the bounds are no numbers of the dtype, and the iterates beside them."""
        search = Search.running(40, (30,), device=device, dtype=dtype)
        search.table.inputs.clamp_(*bounds)
        search.batch.x.copy_((search.table.inputs + 0.1 * torch.randn_like(search.batch.x)).clamp(*bounds))
        search.table.step_count.fill_(1)
        feedback = draw_feedback(search.batch.x, torch.arange(40, device=device) % 2 == 1)
        outward = on_the_bounds(search, feedback.grad, bounds)
        assert outward.any()
        expected = search.copy()
        search.step(feedback, CONFIGS[rule], bounds)
        expected.step(feedback._replace(grad=feedback.grad.masked_fill(outward, 0)), CONFIGS[rule], bounds)
        assert torch.equal(search.batch.x, expected.batch.x)
        assert torch.equal(search.table.eps, expected.table.eps)

    @pytest.mark.parametrize(("dtype", "rule", "bounds"), pairs(DTYPES, ["ddn", "deepfool"], [(0.0, 1.0), (0.3, 0.7)]))
    def test_a_gradient_out_of_the_box_counts_as_none(self, device, rule, dtype, bounds):
        search = Search.running(2, (30,), device=device, dtype=dtype)
        search.batch.x[0], search.batch.x[1] = bounds
        feedback = draw_feedback(search.batch.x)
        feedback.grad.abs_().mul_(torch.tensor([[-1.0], [1.0]]))
        check_search_step(search.copy(), feedback, CONFIGS[rule], search.batch.x[:, 0].tolist())
        search.step(feedback, CONFIGS[rule], bounds)
        assert (search.table.status == Status.NO_GRADIENT).all()

    @pytest.mark.parametrize("rule", ["pgd", "external"])
    def test_other_rules_use_the_whole_gradient(self, device, rule):
        search = Search.running(2, (30,), device=device)
        search.batch.x[0], search.batch.x[1] = 0, 1
        feedback = draw_feedback(search.batch.x)
        feedback.grad.abs_().mul_(torch.tensor([[-1.0], [1.0]]))
        search.step(feedback, CONFIGS[rule])
        assert (search.table.status == Status.PENDING).all()


class TestDeepfool:
    @pytest.mark.parametrize("overshoot", [1.0, 1.3])
    @pytest.mark.parametrize("where", ["the original", "before the boundary", "beyond the boundary"])
    def test_one_step_leads_to_a_flat_boundary(self, device, where, overshoot):
        search = Search.running(50, (30,), device=device, dtype=torch.float64)
        plane = Plane(search)
        config = DEEPFOOL._replace(overshoot=overshoot, pull_back=0.6)
        if where != "the original":
            search.batch.x.add_(0.1 * torch.randn_like(search.batch.x))
            plane.left += plane.left - plane.margin(search.batch.x)  # so that x is as far from it as x0 was
            plane.left -= 0.0 if where == "before the boundary" else 2.0
        feedback = plane.feedback(search.batch.x)
        assert (feedback.adversarial == (where == "beyond the boundary")).all()
        d = search.batch.x - search.table.inputs
        pulled = search.table.inputs + (0.6 if where == "beyond the boundary" else 1) * d
        search.step(feedback, config, UNBOUNDED)

        moved = search.batch.x - pulled
        assert_close(plane.margin(search.batch.x), (1 - overshoot) * plane.margin(pulled), torch.float64)
        # Along the normal, which is the shortest way.
        along = plane.margin(pulled) / plane.normal.norm(dim=1) * overshoot
        assert_close(moved, along[:, None] * directions(plane.normal), torch.float64)

    def test_in_a_box_that_binds(self, device):
        search = Search.running(50, (30,), device=device, dtype=torch.float64)
        plane = Plane(search)
        outward = on_the_bounds(search, plane.normal)
        search.table.inputs.copy_(search.batch.x)
        plane.x0 = search.batch.x.clone()
        inwards = plane.normal.masked_fill(outward, 0).norm(dim=1)
        inside = (plane.x0 > 0) & (plane.x0 < 1)
        search.batch.x[inside] = search.table.inputs[inside] = plane.x0[inside] = 0.5  # so that nothing is clamped
        plane.left = 0.4 * torch.rand_like(plane.left) * inwards**2 / plane.normal.abs().amax(1)
        search.step(plane.feedback(search.batch.x), DEEPFOOL._replace(overshoot=1.0))
        assert_close(plane.margin(search.batch.x), torch.zeros(50), torch.float64)
        assert torch.equal(search.batch.x[outward], search.table.inputs[outward])
        distance = (search.batch.x - search.table.inputs).norm(dim=1)
        assert_close(distance, plane.left / inwards, torch.float64)

    @pytest.mark.parametrize("adversarial", [False, True])
    @pytest.mark.parametrize(("grad", "margin"), [(1e-21, 1.0), (1.0, torch.inf), (1.0, 1e38), (3e-22, 1e-3)], ids=str)
    def test_a_boundary_at_infinity(self, device, grad, margin, adversarial):
        """The corner of the box, and no NaN where the gradient is 0."""
        search = Search.running(4, (6,), device=device)
        feedback = draw_feedback(search.batch.x, adversarial)
        feedback.margin.fill_(-margin if adversarial else margin)
        search.batch.x.copy_(x := torch.full_like(search.batch.x, 0.5))
        search.table.inputs.copy_(x - 0.25)
        feedback.grad.copy_(grad * torch.tensor([1.0, -1.0, 0.0, 1.0, 1.0, 0.0]))
        search.step(feedback, DEEPFOOL._replace(pull_back=1.0))
        ends = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 0.5], device=device)
        assert torch.equal(search.batch.x, (1 - ends if adversarial else ends).expand(4, 6))

    def test_a_sample_that_is_not_adversarial_never_goes_back(self, device):
        """By what a caller calls so: attack_loss has no negative margin there."""
        search = Search.running(4, (6,), device=device, dtype=torch.float64)
        feedback = draw_feedback(search.batch.x)
        feedback.margin.fill_(-1.0)
        check_search_step(search, feedback, DEEPFOOL, UNBOUNDED)
        ahead = ((search.batch.x - search.table.inputs) * feedback.grad).sum(1)
        assert (ahead > 0).all()


class TestExternal:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.3, 0.4)], ids=str)
    def test_is_the_next_iterate(self, device, dtype, bounds):
        search, config = Search.running(7, (3, 4), device=device, dtype=dtype), EXTERNAL
        for step in range(config.steps):
            feedback = draw_feedback(search.batch.x, torch.arange(7, device=device) % 2 == step % 2)
            feedback.grad[0] = 0  # a black image is an iterate like any other
            feedback.adversarial[0] = False
            # None of the originals, at which a search ends.
            search.batch.x[1:] = torch.where(search.batch.x == search.table.inputs, 2, search.batch.x)[1:]
            search.step(feedback, config, bounds)
            assert torch.equal(search.batch.x, feedback.grad.clamp(*bounds))
            assert (search.table.step_count == step + 1).all()
            assert (search.table.grad_evals == step + 1).all()
            assert (search.table.status == Status.PENDING).all()
        assert (search.table.eps == 0.25).all()

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_an_iterate_that_is_not_finite_is_refused(self, device, value):
        search = Search.running(7, (3, 4), device=device)
        feedback, x = draw_feedback(search.batch.x), search.batch.x.clone()
        feedback.grad[::2, 1, 2] = value
        search.step(feedback, EXTERNAL, UNBOUNDED)
        assert (search.table.status[::2] == Status.NO_GRADIENT).all()
        assert (search.table.status[1::2] == Status.PENDING).all()
        assert torch.equal(search.batch.x[::2], x[::2])
        assert torch.equal(search.batch.x[1::2], feedback.grad[1::2])
        assert (search.batch.sample_index[::2] == -1).all()
        assert (search.table.grad_evals == 1).all()

    def test_the_radius_is_the_callers(self, device):
        search = Search.running(3, (4,), device=device, eps=0)
        search.step(draw_feedback(search.batch.x), EXTERNAL)
        assert (search.table.eps == 0).all()
