"""search_step_ against its twin in plain PyTorch, over whole searches; which example is kept, and invariants."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_tools import (
    CONFIGS,
    DTYPES,
    PGD,
    UNBOUNDED,
    Plan,
    Search,
    assert_close,
    assert_same_search,
    check_search_step,
    check_whole_search,
    draw_feedback,
)
from pairs import pairs
from torch import Tensor

from amun_ext import ops, reference
from amun_ext.ops import Feedback, SampleTable, SlotBatch, Status, StepConfig, accumulate_dtype

KEEPING = [rule for rule in ops.RULES if rule != "pgd"]  # make all their steps, and keep the closest example
every_rule = pytest.mark.parametrize("rule", ops.RULES)
LAYOUTS = {
    "channels_last": lambda grad: grad.contiguous(memory_format=torch.channels_last),
    "transposed": lambda grad: grad.transpose(2, 3),
    "every second": lambda grad: grad.repeat_interleave(2, dim=3)[..., ::2],
    "expanded": lambda grad: grad[:1, :1, :1, :1].expand_as(grad),
}


class TestSearchStep:
    @pytest.mark.parametrize(
        ("dtype", "shape", "rule"),
        pairs(DTYPES, [(1,), (3,), (31,), (33,), (1000,), (3, 5, 7), (3 * 32 * 32 + 1,)], ops.RULES),
    )
    def test_whole_search_matches_the_reference(self, backend, dtype, shape, rule):
        samples = min(14, 2**15 // math.prod(shape))
        check_whole_search(Search.begin(5, samples, shape, device=backend, dtype=dtype), rule)

    @pytest.mark.parametrize(
        ("slots", "queue"), [(4, []), (0, [0, 1]), (7, [5, 2]), (1, [3, 0, 4, 1]), (6, [0, 1, 2, 3, 4, 5])], ids=str
    )
    @every_rule
    def test_batches_and_queues(self, backend, slots, queue, rule):
        search = Search.begin(slots, 7, (2, 3), queue=queue, device=backend)
        if slots:
            check_whole_search(search, rule)
        else:
            check_search_step(search, draw_feedback(search.batch.x), CONFIGS[rule])
            assert search.queue_position == 0

    @every_rule
    def test_no_samples(self, device, rule):
        search = Search.begin(3, 0, (4,), device=device)
        check_search_step(search, draw_feedback(search.batch.x), CONFIGS[rule])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_more_slots_than_a_grid_dimension_might_hold(self, device, dtype):
        search = Search.running(2**16 + 3, (3,), device=device, dtype=dtype)
        feedback, x, eps = draw_feedback(search.batch.x), search.batch.x.clone(), search.table.eps.clone()
        search.step(feedback, PGD)
        assert_close(search.batch.x, reference.pgd_step(x, x, feedback.grad, eps, 0.6, (0, 1)), dtype)
        assert (search.table.grad_evals == 1).all()

        feedback.adversarial.fill_(True)
        search.step(feedback, PGD)
        assert (search.table.status == Status.FOUND).all()
        assert (search.batch.sample_index == -1).all()
        assert torch.equal(search.table.images, search.batch.x)
        assert torch.equal(search.table.found_labels, feedback.predicted)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_any_layout_of_the_gradient(self, device, layout):
        search = Search.running(4, (3, 6, 6), device=device)
        feedback = draw_feedback(search.batch.x)
        grad = LAYOUTS[layout](feedback.grad)
        assert not grad.is_contiguous()
        expected = search.copy()
        expected.step(feedback._replace(grad=grad.contiguous()), PGD)
        check_search_step(search, feedback._replace(grad=grad), PGD)
        assert torch.equal(search.batch.x, expected.batch.x)

    @pytest.mark.parametrize(("dtype", "rule"), pairs(DTYPES, ["pgd", "ddn"]))
    def test_the_length_of_the_gradient_is_free(self, device, rule, dtype):
        search = Search.running(3, (40,), device=device, dtype=dtype)
        longer, feedback = search.copy(), draw_feedback(search.batch.x)
        search.step(feedback, CONFIGS[rule])
        # By a power of two: nothing is rounded.
        longer.step(feedback._replace(grad=feedback.grad * 2.0**8), CONFIGS[rule])
        assert_close(longer.batch.x, search.batch.x, dtype)

    @every_rule
    @settings(max_examples=20, deadline=None)
    @given(data=st.data())
    def test_invariants(self, device, rule, data):
        torch.manual_seed(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        samples = data.draw(st.integers(1, 8), label="samples")
        queue = data.draw(st.lists(st.integers(0, samples - 1), unique=True), label="queue")
        dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), label="dtype")
        length = data.draw(st.integers(1, 40), label="length")
        search = Search.begin(
            data.draw(st.integers(1, 6), label="slots"),
            samples,
            (length,),
            queue=queue,
            eps=data.draw(st.sampled_from([0.0, 0.1]), label="eps"),
            device=device,
            dtype=dtype,
        )
        fraction = st.floats(1.1, 3) if rule == "ddn" else st.floats(0.01, 3)
        growth = st.floats(1.01, 1.49) if rule == "ddn" else st.floats(1.2, 4)
        config = StepConfig(
            rule=rule,
            steps=data.draw(st.integers(1, 3), label="steps"),
            step_fraction=data.draw(fraction, label="step_fraction"),
            last_step_fraction=data.draw(fraction, label="last_step_fraction"),
            eps_growth=data.draw(growth, label="eps_growth"),
            last_eps_growth=data.draw(growth, label="last_eps_growth"),
            eps_max=data.draw(st.floats(0.1, 2), label="eps_max"),
            start=data.draw(st.floats(0.1, 3), label="start"),
            overshoot=data.draw(st.floats(0.5, 2), label="overshoot"),
            pull_back=data.draw(st.floats(0.1, 1), label="pull_back"),
        )
        plan, handed_out, rounding = Plan(search, rule), [], torch.finfo(dtype).eps
        evaluations, best = torch.zeros_like(search.table.grad_evals), search.table.distance.clone()
        for _ in range(400):
            before = search.batch.sample_index[search.batch.sample_index >= 0]
            # The last look of a search with a fixed number of steps takes no gradient.
            evaluations[before] += (search.table.step_count[before] < config.steps) | torch.tensor(rule == "pgd")
            search.step(plan.feedback(search), config)
            after = search.batch.sample_index.tolist()
            handed_out += [sample for sample in after if sample >= 0 and sample not in before.tolist()]
            running = search.batch.sample_index >= 0
            x, sample = search.batch.x[running].double(), search.batch.sample_index[running]
            assert ((x >= 0) & (x <= 1)).all()
            if rule in ("pgd", "ddn"):
                distance = (x - search.table.inputs[sample].double()).norm(dim=1)
                assert (
                    distance <= search.table.eps[sample] * (1 + 100 * rounding) + math.sqrt(length) * rounding
                ).all()
                assert (search.table.eps <= max(0.1, config.eps_max * (1 + rounding))).all()
            assert (search.table.distance <= best).all()
            best.copy_(search.table.distance)
            if not running.any():
                break
        assert sorted(handed_out) == sorted(queue)
        assert torch.equal(search.table.grad_evals, evaluations)
        assert (search.table.status != Status.PENDING).nonzero().flatten().tolist() == sorted(queue)
        found = search.table.status == Status.FOUND
        assert torch.equal(search.table.distance.isfinite(), found)
        distance = (search.table.images.double() - search.table.inputs.double()).norm(dim=1)
        assert_close(search.table.distance[found], distance[found], dtype)

    @every_rule
    def test_compiles_without_a_graph_break(self, device, rule):
        def move(batch: SlotBatch, feedback: Feedback, table: SampleTable, queue: Tensor, position: Tensor) -> Tensor:
            ops.search_step_(batch, feedback, table, queue, position, CONFIGS[rule], (0.0, 1.0))
            return batch.x * 2

        search = Search.begin(3, 5, (2, 4), device=device)
        for step in range(3):  # a refill, a step, and one with examples
            expected, feedback = search.copy(), draw_feedback(search.batch.x, step == 2)
            compiled = torch.compile(move, backend="aot_eager", fullgraph=True)
            doubled = compiled(search.batch, feedback, search.table, search.queue, search.queue_position)
            move(expected.batch, feedback, expected.table, expected.queue, expected.queue_position)
            assert torch.equal(doubled, search.batch.x * 2)
            assert_same_search(search, expected, torch.float32)

    def test_gradient_that_requires_grad(self, device):
        search = Search.running(2, (3,), device=device)
        feedback = draw_feedback(search.batch.x)
        feedback.grad.requires_grad_()
        search.step(feedback, PGD)
        assert not search.batch.x.requires_grad

    @pytest.mark.parametrize("slot", [-2, 7, 10**12])
    def test_slots_without_a_sample_are_idle(self, device, slot):
        search = Search.begin(4, 6, (5,), queue=[3, 1], device=device)
        search.batch.sample_index.fill_(slot)
        search.step(draw_feedback(search.batch.x), PGD)
        assert sorted(search.batch.sample_index[~search.idle].tolist())[:2] == [1, 3]
        assert (search.table.grad_evals == 0).all()

    @pytest.mark.parametrize("entry", [-1, 6, 10**12])
    def test_queue_entries_that_are_no_rows_are_refused(self, entry):
        """On a CPU; a GPU kernel cannot raise, and passes them over."""
        search = Search.begin(4, 6, (5,), queue=[2, entry])
        with pytest.raises(RuntimeError, match=r"queue must hold rows of the samples, \[0, 6\), got"):
            search.step(draw_feedback(search.batch.x), PGD)
        search.queue_position.fill_(-1)
        with pytest.raises(RuntimeError, match="queue_position must not be negative"):
            search.step(draw_feedback(search.batch.x), PGD)


class TestClosestExample:
    @pytest.mark.parametrize(("dtype", "rule"), pairs(DTYPES, KEEPING))
    def test_of_the_adversarial_iterates_the_closest_is_kept(self, device, rule, dtype):
        """The iterates are set from outside, far and near by turns."""
        config, samples = CONFIGS[rule], 200
        search = Search.running(samples, (20,), device=device, dtype=dtype)
        looks, row = config.steps + 1, torch.arange(samples, device=device)
        radius = 0.05 * (1 + torch.rand(looks, samples, device=device).argsort(0))
        x = search.table.inputs + radius[..., None] * F.normalize(torch.randn(looks, samples, 20, device=device), dim=2)
        x, adversarial = x.to(dtype), torch.rand(looks, samples, device=device) < 0.5
        feedback = [draw_feedback(x[look], adversarial[look]) for look in range(looks)]
        for look in range(looks):
            search.batch.x.copy_(x[look])
            search.step(feedback[look], config, UNBOUNDED)

        distance = (x.double() - search.table.inputs.double()).norm(dim=2).masked_fill(~adversarial, torch.inf)
        distance, at = distance.min(0)
        found = distance.isfinite()
        assert at[found].unique().tolist() == list(range(looks))  # also neither the first nor the last of several
        expected = torch.where(found[:, None], x[at, row], search.table.inputs)
        assert torch.equal(search.table.images, expected)
        predicted = torch.stack([answer.predicted for answer in feedback])[at, row]
        assert torch.equal(search.table.found_labels, torch.where(found, predicted, -1))
        assert_close(search.table.distance, distance, accumulate_dtype(dtype))
        assert torch.equal(search.table.status, torch.where(found, Status.FOUND, Status.EXHAUSTED).to(torch.int8))
        assert (search.table.grad_evals == config.steps).all()

    @every_rule
    def test_a_farther_example_is_not_kept(self, device, rule):
        search = Search.running(6, (5,), device=device)
        search.table.images.fill_(0.5)
        search.table.distance.fill_(0.1)
        search.batch.x.copy_(search.table.inputs + 0.2)
        search.step(draw_feedback(search.batch.x, True), CONFIGS[rule], UNBOUNDED)
        assert (search.table.images == 0.5).all()
        assert (search.table.distance == 0.1).all()
        assert (search.table.found_labels == -1).all()
        assert (search.table.status == (Status.FOUND if rule == "pgd" else Status.PENDING)).all()

    @pytest.mark.parametrize(("value", "rule"), pairs([0.0, torch.nan, torch.inf, 1.0], KEEPING))
    def test_the_last_evaluation_does_not_move(self, device, rule, value):
        search, config = Search.running(6, (5,), device=device), CONFIGS[rule]
        search.table.step_count.fill_(config.steps)
        search.batch.x.copy_(search.table.inputs + 0.1)
        x, adversarial = search.batch.x.clone(), torch.arange(6, device=device) % 2 == 1
        feedback = draw_feedback(search.batch.x, adversarial)
        feedback.grad.fill_(value)
        feedback.margin.fill_(value)
        search.step(feedback, config)
        assert torch.equal(search.table.status == Status.FOUND, adversarial)
        assert torch.equal(search.table.status == Status.EXHAUSTED, ~adversarial)
        assert torch.equal(search.table.images[adversarial], x[adversarial])
        assert torch.equal(search.batch.x, x)
        assert (search.table.grad_evals == 0).all()
        assert (search.table.step_count == config.steps).all()
        assert (search.batch.sample_index == -1).all()

    @pytest.mark.parametrize(
        ("rule", "spoilt"),
        [(rule, value) for rule in KEEPING for value in (0.0, torch.nan, torch.inf) if value or rule != "external"],
    )
    def test_is_kept_without_a_gradient(self, device, rule, spoilt):
        search, config = Search.running(6, (5,), device=device), CONFIGS[rule]
        search.batch.x.copy_(search.table.inputs + 0.1)
        x, adversarial = search.batch.x.clone(), torch.arange(6, device=device) % 2 == 1
        search.step(draw_feedback(search.batch.x, adversarial), config, UNBOUNDED)
        assert (search.table.status == Status.PENDING).all()
        feedback = draw_feedback(search.batch.x)
        feedback.grad.fill_(spoilt)
        search.step(feedback, config, UNBOUNDED)
        assert torch.equal(search.table.status == Status.FOUND, adversarial)
        assert torch.equal(search.table.status == Status.NO_GRADIENT, ~adversarial)
        assert torch.equal(search.table.images[adversarial], x[adversarial])
        assert (search.table.grad_evals == 2).all()

    @pytest.mark.parametrize(("eps", "rule"), pairs([0.0, 0.25], ops.RULES))
    def test_a_nan_margin(self, device, rule, eps):
        """No gradient, but to "external", which does not look at it."""
        search = Search.running(6, (5,), device=device, eps=eps)
        feedback = draw_feedback(search.batch.x)
        feedback.margin[2:4] = torch.nan
        check_search_step(search, feedback, CONFIGS[rule])
        expected = torch.full((6,), Status.PENDING)
        expected[2:4] = Status.PENDING if rule == "external" else Status.NO_GRADIENT
        assert search.table.status.tolist() == expected.tolist()
        assert search.batch.x.isfinite().all()
