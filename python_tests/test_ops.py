"""The compiled ops against their plain PyTorch twins, closed forms and invariants."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amun_ext import ops, reference
from amun_ext.ops import AttackLoss, Book, Pool, Schedule, Status, accumulate_dtype

# Relative, and absolute for values around one: a few rounding errors of the dtype that is written.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in TOLERANCE]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    expected = expected.to(actual)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


# -------------------------------------------------------------------------------------------------------- attack_loss


def check_attack_loss(op, logits: Tensor, labels: Tensor, loss: str) -> AttackLoss:
    """`op` gives what the twin gives in the same dtype and in float64, and what the op itself gives on the CPU."""
    result = op(logits, labels, loss)
    for expected in (
        reference.attack_loss(logits, labels, loss),
        reference.attack_loss(logits.double(), labels, loss),
        ops.attack_loss(logits.cpu(), labels.cpu(), loss),
    ):
        assert torch.equal(result.adversarial, expected.adversarial.to(logits.device))
        assert torch.equal(result.predicted, expected.predicted.to(logits.device))
        # The margin is a difference of two logits of the dtype: exact up to the accumulator's rounding.
        assert_close(result.margin, expected.margin, accumulate_dtype(logits.dtype))
        assert_close(result.grad_logits, expected.grad_logits, logits.dtype)
    return result


def draw_logits(
    rows: int, classes: int, scale: float = 3.0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    logits = scale * torch.randn(rows, classes, dtype=torch.float64)
    return logits.to(device, dtype), torch.randint(classes, (rows,)).to(device)


def directions(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("loss", ops.LOSSES)
class TestAttackLoss:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("rows", "classes"), [(0, 10), (1, 2), (7, 2), (1, 31), (5, 33), (64, 10), (33, 1000), (3000, 7)]
    )
    def test_matches_the_reference(self, device, dtype, rows, classes, loss):
        result = check_attack_loss(ops.attack_loss, *draw_logits(rows, classes, device=device, dtype=dtype), loss)
        assert result.margin.dtype == accumulate_dtype(dtype)
        assert result.grad_logits.dtype == dtype

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0, 1e3, 1e4])
    def test_every_finite_row_has_a_direction(self, device, dtype, scale, loss):
        logits, labels = draw_logits(40, 17, scale, device=device, dtype=dtype)
        gradient = check_attack_loss(ops.attack_loss, logits, labels, loss).grad_logits.double()
        assert (gradient.gather(1, labels[:, None]) == -1).all()
        # The other entries are a distribution: what one class loses, the others gain.
        assert_close(gradient.sum(1), torch.zeros(40), dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_ties_go_to_the_first_class(self, device, dtype, loss):
        logits = torch.randint(3, (200, 5)).to(device=device, dtype=dtype)
        labels = torch.randint(5, (200,), device=device)
        result = check_attack_loss(ops.attack_loss, logits, labels, loss)
        assert torch.equal(result.predicted, logits.argmax(1))
        assert ((result.margin == 0) & result.adversarial).any()
        assert ((result.margin == 0) & ~result.adversarial).any()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_infinite_logits(self, device, dtype, loss):
        logits, labels = draw_logits(600, 4, device=device, dtype=dtype)
        drawn = torch.rand(logits.shape, device=device)
        logits[drawn < 0.2], logits[drawn > 0.8] = -torch.inf, torch.inf
        assert not check_attack_loss(ops.attack_loss, logits, labels, loss).grad_logits.isnan().any()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("spoilt", ["a NaN at the label", "a NaN elsewhere", "label K", "label -1"])
    def test_a_row_without_an_answer_leaves_the_others_alone(self, device, dtype, spoilt, loss):
        logits, labels = draw_logits(50, 9, device=device, dtype=dtype)
        expected = ops.attack_loss(logits.clone(), labels.clone(), loss)
        rows = torch.arange(50, device=device) % 3 == 1
        if "NaN" in spoilt:
            logits[rows, labels[rows] if "label" in spoilt else (labels[rows] + 1) % 9] = torch.nan
        else:
            labels[rows] = 9 if spoilt == "label K" else -1

        result = ops.attack_loss(logits, labels, loss)
        assert (result.predicted[rows] == -1).all()
        assert not result.adversarial[rows].any()
        assert result.margin[rows].isnan().all()
        assert (result.grad_logits[rows] == 0).all()
        for column, column_expected in zip(result, expected, strict=True):
            assert torch.equal(column[~rows], column_expected[~rows])

    def test_any_layout_of_the_logits(self, device, loss):
        logits, labels = draw_logits(12, 10, device=device)
        expected = ops.attack_loss(logits, labels, loss)
        wide = torch.zeros(12, 20, dtype=logits.dtype, device=device)
        wide[:, ::2] = logits
        for same in (logits.t().contiguous().t(), wide[:, ::2]):
            assert not same.is_contiguous()
            for column, column_expected in zip(ops.attack_loss(same, labels, loss), expected, strict=True):
                assert torch.equal(column, column_expected)
        one_row = ops.attack_loss(logits[:1].expand(5, 10), labels[:1].expand(5), loss)
        assert torch.equal(one_row.grad_logits, expected.grad_logits[:1].expand(5, 10))

    def test_is_not_differentiable(self, device, loss):
        logits, labels = draw_logits(4, 3, device=device)
        result = ops.attack_loss(logits.requires_grad_(), labels, loss)
        assert not any(column.requires_grad for column in result)

    def test_compiles_without_a_graph_break(self, device, loss):
        def attacked(images: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            result = ops.attack_loss(images @ weight, labels, loss)
            return torch.where(result.adversarial[:, None], 0.0, result.grad_logits @ weight.t())

        arguments = torch.randn(6, 8).to(device), torch.randn(8, 5).to(device), torch.randint(5, (6,)).to(device)
        compiled = torch.compile(attacked, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(*arguments), attacked(*arguments))

    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"logits must have shape \[B, K\], got \[3\]"),
            (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), r"at least two classes, got \[3, 1\]"),
            (torch.zeros(3, 2).int(), torch.zeros(3, dtype=torch.int64), "logits must be float32, .*, got Int"),
            (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32), "labels must have dtype Long, got Int"),
            (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), r"labels must have shape \[3\], got \[4\]"),
            (torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.int64), r"labels must have shape \[3\], got \[3, 1\]"),
        ],
    )
    def test_wrong_arguments_are_named(self, device, logits, labels, message, loss):
        with pytest.raises(RuntimeError, match=message):
            ops.attack_loss(logits.to(device), labels.to(device), loss)


class TestAttackLossDirection:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0, 1e3, 1e4])
    def test_cross_entropy_has_the_direction_of_its_gradient(self, device, dtype, scale):
        logits, labels = draw_logits(60, 10, scale, device=device, dtype=dtype)
        result = ops.attack_loss(logits, labels, "cross_entropy")
        wide = logits.double()
        if scale > 1:
            # The direction does not depend on the label's own logit (which the smaller scales confirm), so autograd is
            # asked where the softmax does not saturate.
            others = wide.scatter(1, labels[:, None], -torch.inf)
            wide = wide.scatter(1, labels[:, None], others.amax(1, keepdim=True))
        wide.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(wide, labels, reduction="sum"), wide)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10  # autograd's own 1 - p is what limits float64
        torch.testing.assert_close(
            directions(result.grad_logits.double()), directions(gradient), rtol=0, atol=tolerance
        )

    def test_margin_has_the_gradient_of_the_margin(self, device):
        logits, labels = draw_logits(60, 10, device=device, dtype=torch.float64)
        logits.requires_grad_()
        reference.attack_loss(logits, labels).margin.neg().sum().backward()
        assert torch.equal(ops.attack_loss(logits, labels, "margin").grad_logits, logits.grad)

    def test_unknown_loss(self, device):
        with pytest.raises(RuntimeError, match='loss must be "cross_entropy" or "margin", got "hinge"'):
            ops.attack_loss(torch.zeros(3, 2, device=device), torch.zeros(3, dtype=torch.int64, device=device), "hinge")


# -------------------------------------------------------------------------------------------------------- search_step_


@dataclass
class Search:
    """Everything that a step works on."""

    pool: Pool
    book: Book
    queue: Tensor
    cursor: Tensor

    @classmethod
    def begin(
        cls, slots: int, samples: int, shape, queue=None, eps=0.25, device="cpu", dtype=torch.float32
    ) -> "Search":
        """A search about to begin: images in [0, 1], every slot idle, and all samples queued in random order."""
        inputs = torch.rand(samples, *shape, dtype=torch.float64).to(device, dtype)

        def column(dtype: torch.dtype, value: float = 0) -> Tensor:
            return torch.full((samples,), value, dtype=dtype, device=device)

        real = accumulate_dtype(dtype)
        book = Book(
            inputs=inputs,
            labels=torch.randint(10, (samples,)).to(device),
            images=inputs.clone(),
            found_labels=column(torch.int64, -1),
            eps=column(real, eps),
            distance=column(real, torch.inf),
            round_step=column(torch.int32),
            grad_evals=column(torch.int32),
            status=column(torch.int8, Status.PENDING),
        )
        pool = Pool(
            x=torch.rand(slots, *shape, dtype=torch.float64).to(inputs),
            slots=torch.full((slots,), -1, device=device),
            slot_labels=torch.full((slots,), -1, device=device),
        )
        queue = torch.randperm(samples) if queue is None else torch.as_tensor(queue, dtype=torch.int64)
        return cls(pool, book, queue.to(device), torch.zeros(1, dtype=torch.int64, device=device))

    @classmethod
    def running(cls, samples: int, shape, **kind) -> "Search":
        """A search with sample b in slot b and nothing queued."""
        search = cls.begin(samples, samples, shape, queue=[], **kind)
        search.pool.slots.copy_(torch.arange(samples))
        search.pool.slot_labels.copy_(search.book.labels)
        search.pool.x.copy_(search.book.images)
        return search

    def copy(self, device=None, double: bool = False) -> "Search":
        def one(tensor: Tensor) -> Tensor:
            dtype = torch.float64 if double and tensor.is_floating_point() else tensor.dtype
            return tensor.to(device, dtype, copy=True)

        return Search(Pool(*map(one, self.pool)), Book(*map(one, self.book)), one(self.queue), one(self.cursor))

    def step(self, op, feedback: "Feedback", schedule: Schedule, bounds=(0.0, 1.0)) -> None:
        op(self.pool, self.book, self.queue, self.cursor, *feedback.like(self.pool.x), schedule, bounds)


@dataclass
class Feedback:
    """What the model said about the images of the pool."""

    grad: Tensor
    adversarial: Tensor
    predicted: Tensor

    @classmethod
    def random(cls, x: Tensor) -> "Feedback":
        """Of images none of which is adversarial."""
        return cls(
            torch.randn(x.shape, dtype=torch.float64).to(x),
            torch.zeros(len(x), dtype=torch.bool, device=x.device),
            torch.randint(10, (len(x),), device=x.device),
        )

    def like(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.grad.to(x), self.adversarial.to(x.device), self.predicted.to(x.device)


class Plan:
    """A pretended model: says for each sample as what its search ends, and at which evaluation."""

    def __init__(self, search: Search) -> None:
        samples = len(search.book.inputs)
        sample = torch.arange(samples, device=search.book.inputs.device)
        self.ends_as = 1 + sample % 3  # FOUND, EXHAUSTED, NO_GRADIENT
        self.ends_at = 1 + sample // 3 % 4
        self.no_gradient = torch.tensor([0.0, torch.nan, torch.inf, -torch.inf]).to(search.book.inputs)[sample // 3 % 4]

    def feedback(self, search: Search) -> Feedback:
        # Drawn per sample and not per slot, because which slot gets which sample is open on a GPU.
        table = Feedback.random(search.book.inputs)
        slots, idle = search.pool.slots.clamp(min=0), search.pool.slots < 0
        ending = search.book.grad_evals[slots] + 1 >= self.ends_at[slots]
        grad = table.grad[slots]
        spoilt = ending & (self.ends_as[slots] == Status.NO_GRADIENT)
        grad[spoilt] = 0
        grad.flatten(1)[spoilt, -1] = self.no_gradient[slots][spoilt]
        grad[idle] = torch.nan  # nobody may look at an idle slot
        adversarial = ending & (self.ends_as[slots] == Status.FOUND) | idle
        return Feedback(grad, adversarial, table.predicted[slots])


def assert_same_search(actual: Search, expected: Search, dtype: torch.dtype) -> None:
    """Equal per sample; which slot works on which sample is open."""
    for name, column, column_expected in zip(Book._fields, actual.book, expected.book, strict=True):
        if column.is_floating_point():
            assert_close(column, column_expected, dtype)
        else:
            assert torch.equal(column, column_expected.to(column.device)), name
    order, order_expected = actual.pool.slots.argsort(), expected.pool.slots.argsort()
    slots = actual.pool.slots[order]
    assert torch.equal(slots, expected.pool.slots[order_expected].to(slots.device))
    for rows, rows_expected in zip(actual.pool, expected.pool, strict=True):
        assert_close(rows[order][slots >= 0], rows_expected[order_expected].to(rows.device)[slots >= 0], dtype)
    # On a GPU the counter runs past the end of the queue.
    assert actual.cursor.cpu().clamp(max=len(actual.queue)) == expected.cursor.cpu().clamp(max=len(actual.queue))


def check_search_step(op, search: Search, feedback: Feedback, schedule: Schedule, bounds=(0.0, 1.0)) -> None:
    """`op` does what the twin does in the same dtype and in float64 and what the op does on the CPU, and no more."""
    dtype, before = search.pool.x.dtype, search.copy()
    kept = [tensor.clone() for tensor in (feedback.grad, feedback.adversarial, feedback.predicted)]
    search.step(op, feedback, schedule, bounds)

    for twin, kind in (
        (reference.search_step_, {}),
        (reference.search_step_, {"double": True}),
        (ops.search_step_, {"device": "cpu"}),
    ):
        expected = before.copy(**kind)
        expected.step(twin, feedback, schedule, bounds)
        assert_same_search(search, expected, dtype)

    idle = search.pool.slots < 0
    assert torch.equal(search.pool.x[idle], before.pool.x[idle])
    absent = torch.ones(len(search.book.inputs), dtype=torch.bool, device=idle.device)
    absent[before.pool.slots[before.pool.slots >= 0]] = False
    for column, column_before in zip(search.book, before.book, strict=True):
        assert torch.equal(column[absent], column_before[absent])
    for table in ("inputs", "labels"):
        assert torch.equal(getattr(search.book, table), getattr(before.book, table))
    assert torch.equal(search.queue, before.queue)
    for tensor, tensor_before in zip((feedback.grad, feedback.adversarial, feedback.predicted), kept, strict=True):
        torch.testing.assert_close(tensor, tensor_before, rtol=0, atol=0, equal_nan=True)


def check_whole_search(op, search: Search) -> None:
    """From the first refill to the last harvest: every step as the twin makes it, every sample's end as planned."""
    schedule, plan = Schedule(steps=2, step_fraction=0.6, eps_growth=1.7, eps_max=0.5), Plan(search)
    queued = torch.zeros(len(search.book.inputs), dtype=torch.bool, device=search.queue.device)
    queued[search.queue] = True
    for step in range(100):
        if step and (search.pool.slots < 0).all():
            break
        check_search_step(op, search, plan.feedback(search), schedule)
    assert (search.pool.slots < 0).all()

    book, found = search.book, queued & (plan.ends_as == Status.FOUND)
    assert torch.equal(book.status, torch.where(queued, plan.ends_as, Status.PENDING).to(torch.int8))
    exhausted = plan.ends_as == Status.EXHAUSTED
    # Radii 0.25, 0.425 and 0.5 of two steps each, and the evaluation that shows the last step to be in vain.
    assert torch.equal(book.grad_evals, torch.where(exhausted, 7, plan.ends_at).to(torch.int32) * queued)
    # A sample that is misclassified to begin with is its own example.
    clean = found & (plan.ends_at == 1)
    assert (book.distance[clean] == 0).all()
    assert torch.equal(book.images[clean], book.inputs[clean])
    distance = (book.images.double() - book.inputs.double()).flatten(1).norm(dim=1)
    assert_close(book.distance[found], distance[found], accumulate_dtype(book.inputs.dtype))


def fields(search: Search, feedback: Feedback) -> dict[str, Tensor]:
    """All tensors of a step by name."""
    return {
        **search.pool._asdict(),
        **search.book._asdict(),
        "queue": search.queue,
        "cursor": search.cursor,
        **vars(feedback),
    }


class TestSearchStep:
    SCHEDULE = Schedule(steps=3, step_fraction=0.75, eps_growth=2.0, eps_max=1.0)
    UNBOUNDED = (-math.inf, math.inf)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "shape", [(1,), (3,), (31,), (33,), (1000,), (3, 5, 7), (3 * 32 * 32 + 1,)], ids=lambda shape: f"{shape}"
    )
    def test_whole_search_matches_the_reference(self, device, dtype, shape):
        check_whole_search(ops.search_step_, Search.begin(5, 14, shape, device=device, dtype=dtype))

    @pytest.mark.parametrize(
        ("slots", "queue"),
        [(4, []), (0, [0, 1]), (7, [5, 2]), (1, [3, 0, 4, 1]), (6, [0, 1, 2, 3, 4, 5])],
        ids=["nothing queued", "no slots", "queue shorter than the pool", "one slot", "queue as long as the pool"],
    )
    def test_pools_and_queues(self, device, slots, queue):
        search = Search.begin(slots, 7, (2, 3), queue=queue, device=device)
        if slots:
            check_whole_search(ops.search_step_, search)
        else:
            check_search_step(ops.search_step_, search, Feedback.random(search.pool.x), self.SCHEDULE)
            assert search.cursor == 0

    def test_book_without_samples(self, device):
        search = Search.begin(3, 0, (4,), device=device)
        check_search_step(ops.search_step_, search, Feedback.random(search.pool.x), self.SCHEDULE)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_more_slots_than_a_grid_dimension_might_hold(self, device, dtype):
        search = Search.running(2**16 + 3, (3,), device=device, dtype=dtype)
        feedback, x, eps = Feedback.random(search.pool.x), search.pool.x.clone(), search.book.eps.clone()
        search.step(ops.search_step_, feedback, self.SCHEDULE)
        assert_close(search.pool.x, reference.pgd_step(x, x, feedback.grad, eps, 0.75, (0, 1)), dtype)
        assert (search.book.grad_evals == 1).all()

        feedback.adversarial.fill_(True)
        search.step(ops.search_step_, feedback, self.SCHEDULE)
        assert (search.book.status == Status.FOUND).all()
        assert (search.pool.slots == -1).all()
        assert torch.equal(search.book.images, search.pool.x)
        assert torch.equal(search.book.found_labels, feedback.predicted)

    @pytest.mark.parametrize("layout", ["channels_last", "transposed", "every second", "expanded"])
    def test_any_layout_of_the_gradient(self, device, layout):
        search = Search.running(4, (3, 6, 6), device=device)
        feedback = Feedback.random(search.pool.x)
        grad = feedback.grad
        if layout == "channels_last":
            grad = grad.contiguous(memory_format=torch.channels_last)
        elif layout == "transposed":
            grad = grad.transpose(2, 3)
        elif layout == "every second":
            grad = grad.repeat_interleave(2, dim=3)[..., ::2]
        else:
            grad = grad[:1, :1, :1, :1].expand_as(grad)
        assert not grad.is_contiguous()
        feedback.grad = grad.contiguous()
        expected = search.copy()
        expected.step(ops.search_step_, feedback, self.SCHEDULE)

        feedback.grad = grad
        check_search_step(ops.search_step_, search, feedback, self.SCHEDULE)
        assert torch.equal(search.pool.x, expected.pool.x)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_one_step_has_the_length_of_the_step(self, device, dtype):
        search = Search.running(9, (3, 7, 7), eps=0.5, device=device, dtype=dtype)
        feedback = Feedback.random(search.pool.x)
        search.step(ops.search_step_, feedback, self.SCHEDULE, self.UNBOUNDED)
        moved = (search.pool.x - search.book.inputs).flatten(1)
        assert_close(moved, 0.75 * 0.5 * directions(feedback.grad.flatten(1)), dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_the_second_step_ends_on_the_radius(self, device, dtype):
        search = Search.running(9, (3, 7, 7), eps=0.5, device=device, dtype=dtype)
        feedback = Feedback.random(search.pool.x)
        for _ in range(2):
            search.step(ops.search_step_, feedback, self.SCHEDULE, self.UNBOUNDED)
        moved = (search.pool.x - search.book.inputs).flatten(1)
        assert_close(moved, 0.5 * directions(feedback.grad.flatten(1)), dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_length_of_the_gradient_is_free(self, device, dtype):
        search = Search.running(3, (40,), device=device, dtype=dtype)
        longer, feedback = search.copy(), Feedback.random(search.pool.x)
        search.step(ops.search_step_, feedback, self.SCHEDULE)
        feedback.grad = feedback.grad * 2.0**8  # a power of two: nothing is rounded
        longer.step(ops.search_step_, feedback, self.SCHEDULE)
        assert_close(longer.pool.x, search.pool.x, dtype)

    def test_the_radius_grows_up_to_the_last(self, device):
        search = Search.running(1, (5,), eps=0.1, device=device)
        schedule, radii = Schedule(steps=3, step_fraction=0.5, eps_growth=2.0, eps_max=0.7), []
        while search.book.status == Status.PENDING:
            search.step(ops.search_step_, Feedback.random(search.pool.x), schedule)
            radii.append(round(search.book.eps.item(), 6))
        # The last evaluation finds that no radius is left.
        assert radii == [0.1] * 3 + [0.2] * 3 + [0.4] * 3 + [0.7] * 4
        assert search.book.status == Status.EXHAUSTED
        assert search.book.grad_evals == 13

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_invariants(self, device, data):
        torch.manual_seed(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        samples = data.draw(st.integers(1, 8), label="samples")
        queue = data.draw(st.lists(st.integers(0, samples - 1), unique=True), label="queue")
        dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), label="dtype")
        length = data.draw(st.integers(1, 40), label="length")
        search = Search.begin(
            data.draw(st.integers(1, 6), label="slots"), samples, (length,), queue=queue, device=device, dtype=dtype
        )
        schedule = Schedule(
            steps=data.draw(st.integers(1, 3), label="steps"),
            step_fraction=data.draw(st.floats(0.01, 3), label="step_fraction"),
            eps_growth=data.draw(st.floats(1.2, 4), label="eps_growth"),
            eps_max=data.draw(st.floats(0.1, 2), label="eps_max"),
        )
        plan, handed_out, evaluations, rounding = Plan(search), [], 0, torch.finfo(dtype).eps
        for _ in range(400):
            before = search.pool.slots.tolist()
            evaluations += sum(sample >= 0 for sample in before)
            search.step(ops.search_step_, plan.feedback(search), schedule)
            after = search.pool.slots.tolist()
            handed_out += [sample for sample in after if sample >= 0 and sample not in before]
            running = search.pool.slots >= 0
            x, sample = search.pool.x[running].double(), search.pool.slots[running]
            assert ((x >= 0) & (x <= 1)).all()
            distance = (x - search.book.inputs[sample].double()).norm(dim=1)
            assert (distance <= search.book.eps[sample] * (1 + 100 * rounding) + math.sqrt(length) * rounding).all()
            if not running.any():
                break
        assert sorted(handed_out) == sorted(queue)
        assert search.book.grad_evals.sum() == evaluations
        assert (search.book.status != Status.PENDING).nonzero().flatten().tolist() == sorted(queue)

    def test_compiles_without_a_graph_break(self, device):
        def move(pool: Pool, book: Book, queue: Tensor, cursor: Tensor, *feedback: Tensor) -> Tensor:
            ops.search_step_(pool, book, queue, cursor, *feedback, self.SCHEDULE, (0.0, 1.0))
            return pool.x * 2

        search = Search.begin(3, 5, (2, 4), device=device)
        for _ in range(2):  # a refill, then a step
            expected, feedback = search.copy(), Feedback.random(search.pool.x)
            arguments = feedback.like(search.pool.x)
            compiled = torch.compile(move, backend="aot_eager", fullgraph=True)
            doubled = compiled(search.pool, search.book, search.queue, search.cursor, *arguments)
            move(expected.pool, expected.book, expected.queue, expected.cursor, *arguments)
            assert torch.equal(doubled, search.pool.x * 2)
            assert_same_search(search, expected, torch.float32)

    def test_gradient_that_requires_grad(self, device):
        search = Search.running(2, (3,), device=device)
        feedback = Feedback.random(search.pool.x)
        feedback.grad.requires_grad_()
        search.step(ops.search_step_, feedback, self.SCHEDULE)
        assert not search.pool.x.requires_grad

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("x", lambda x: x.int(), "x must be float32, float64, float16 or bfloat16, got Int"),
            ("x", lambda x: x.transpose(1, 2), r"got \[4, 2, 3\] for x \[4, 3, 2\]"),
            ("x", lambda x: x.flip(1).transpose(1, 2).contiguous().transpose(1, 2), "x must be contiguous"),
            ("x", lambda x: x[0, 0, 0], "x must have a batch dimension, got a scalar"),
            ("grad", lambda grad: grad[:3], r"grad must have 4 rows of the images' shape, got \[3, 2, 3\]"),
            ("grad", lambda grad: grad[..., :2], r"grad must have 4 rows of the images' shape, got \[4, 2, 2\]"),
            ("grad", lambda grad: grad.double(), "grad must have dtype Float, got Double"),
            ("inputs", lambda inputs: inputs.flatten(1), r"inputs must have 6 rows .*, got \[6, 6\]"),
            ("inputs", lambda inputs: inputs[:1].expand(6, 2, 3), "inputs must be contiguous"),
            ("images", lambda images: images[:5], r"images must have 6 rows .*, got \[5, 2, 3\]"),
            ("images", lambda images: images.half(), "images must have dtype Float, got Half"),
            ("images", lambda images: images[:1].expand(6, 2, 3), "images must be contiguous"),
            ("slots", lambda slots: slots.int(), "slots must have dtype Long, got Int"),
            ("slots", lambda slots: slots[1:], r"slots must have shape \[4\], got \[3\]"),
            ("slots", lambda slots: slots.repeat_interleave(2)[::2], "slots must be contiguous"),
            ("slot_labels", lambda labels: labels[:, None], r"slot_labels must have shape \[4\], got \[4, 1\]"),
            ("adversarial", lambda flags: flags.to(torch.uint8), "adversarial must have dtype Bool, got Byte"),
            ("predicted", lambda predicted: predicted[:2], r"predicted must have shape \[4\], got \[2\]"),
            ("labels", lambda labels: labels.float(), "labels must have dtype Long, got Float"),
            ("found_labels", lambda labels: labels[:1], r"found_labels must have shape \[6\], got \[1\]"),
            ("eps", lambda eps: eps.double(), "eps must have dtype Float, got Double"),
            ("distance", lambda distance: distance.half(), "distance must have dtype Float, got Half"),
            ("round_step", lambda steps: steps.long(), "round_step must have dtype Int, got Long"),
            ("grad_evals", lambda evals: evals.long(), "grad_evals must have dtype Int, got Long"),
            ("status", lambda status: status.int(), "status must have dtype Char, got Int"),
            ("queue", lambda queue: queue[None], r"queue must have shape \[Q\], got \[1, 6\]"),
            ("queue", lambda queue: queue.int(), "queue must have dtype Long, got Int"),
            ("cursor", lambda cursor: cursor[0], r"cursor must have shape \[1\], got \[\]"),
        ],
    )
    def test_wrong_tensors_are_named(self, device, name, change, message):
        search = Search.begin(4, 6, (2, 3), device=device)
        tensors = fields(search, Feedback.random(search.pool.x))
        tensors[name] = change(tensors[name])
        with pytest.raises(RuntimeError, match=message):
            ops.search_step_(
                Pool(*(tensors.pop(field) for field in Pool._fields)),
                Book(*(tensors.pop(field) for field in Book._fields)),
                **tensors,
                schedule=self.SCHEDULE,
                bounds=(0.0, 1.0),
            )

    @pytest.mark.parametrize(
        ("change", "bounds", "message"),
        [
            ({"steps": 0}, (0, 1), r"steps must be in \[1, 2\^31\), got 0"),
            ({"steps": 2**31}, (0, 1), r"steps must be in \[1, 2\^31\), got 2147483648"),
            ({"step_fraction": 0.0}, (0, 1), "step_fraction must be positive, got 0"),
            ({"step_fraction": math.nan}, (0, 1), "step_fraction must be positive, got nan"),
            ({"eps_growth": 1.0}, (0, 1), "eps_growth must be greater than 1, got 1"),
            ({"eps_max": 0.0}, (0, 1), "eps_max must be positive, got 0"),
            ({}, (1, 1), "low must be less than high, got 1 and 1"),
            ({}, (0, math.nan), "low must be less than high, got 0 and nan"),
        ],
    )
    def test_wrong_schedules_are_named(self, device, change, bounds, message):
        search = Search.begin(4, 6, (2, 3), device=device)
        with pytest.raises(RuntimeError, match=message):
            search.step(ops.search_step_, Feedback.random(search.pool.x), self.SCHEDULE._replace(**change), bounds)

    @pytest.mark.parametrize("slot", [-2, 7, 10**12])
    def test_slots_that_name_no_sample_are_idle(self, device, slot):
        search = Search.begin(4, 6, (5,), queue=[3, 1], device=device)
        search.pool.slots.fill_(slot)
        search.step(ops.search_step_, Feedback.random(search.pool.x), self.SCHEDULE)
        assert sorted(search.pool.slots[search.pool.slots >= 0].tolist())[:2] == [1, 3]
        assert (search.book.grad_evals == 0).all()

    @pytest.mark.parametrize("entry", [-1, 6, 10**12])
    def test_queue_entries_that_are_no_rows_are_refused(self, entry):
        """On a CPU; a GPU kernel cannot raise, and passes them over."""
        search = Search.begin(4, 6, (5,), queue=[2, entry])
        with pytest.raises(RuntimeError, match=r"queue must hold rows of the book, \[0, 6\), got"):
            search.step(ops.search_step_, Feedback.random(search.pool.x), self.SCHEDULE)
        search.cursor.fill_(-1)
        with pytest.raises(RuntimeError, match="cursor must not be negative"):
            search.step(ops.search_step_, Feedback.random(search.pool.x), self.SCHEDULE)

    def test_arguments_that_share_memory_are_refused(self, device):
        search = Search.running(4, (5,), device=device)
        search.book = search.book._replace(images=search.book.inputs)
        with pytest.raises(RuntimeError, match="must not share memory"):
            search.step(ops.search_step_, Feedback.random(search.pool.x), self.SCHEDULE)

    def test_x_that_requires_grad_is_refused(self, device):
        search = Search.running(4, (5,), device=device)
        search.pool.x.requires_grad_()
        with pytest.raises(RuntimeError, match="x must not require grad"):
            search.step(ops.search_step_, Feedback.random(search.pool.x.detach()), self.SCHEDULE)

    @pytest.mark.parametrize("eps", [0.0, 0.25])
    def test_a_radius_that_rounding_keeps_from_growing_is_the_last(self, device, eps):
        search, schedule = Search.running(3, (5,), device=device, eps=eps), Schedule(2, 0.1, 1 + 1e-9, 1.0)
        for _ in range(3):
            feedback = Feedback.random(search.pool.x)
            feedback.adversarial.fill_(False)
            search.step(ops.search_step_, feedback, schedule)
        assert (search.book.status == Status.EXHAUSTED).all()


# -------------------------------------------------------------------------------------------------------- registration


def opcheck_attack_loss(device: str):
    logits, labels = draw_logits(5, 4, device=device, dtype=torch.float32)
    for loss in ops.LOSSES:
        yield (logits, labels, loss), {}


def opcheck_search_step(device: str):
    for search in (Search.running(3, (2, 4), device=device), Search.begin(3, 5, (2, 4), device=device)):
        tensors = fields(search, Feedback.random(search.pool.x))
        pool = [tensors.pop(field) for field in Pool._fields]
        feedback = [tensors.pop(field) for field in ("grad", "adversarial", "predicted")]
        rule = {**TestSearchStep.SCHEDULE._asdict(), "low": 0.0, "high": 1.0}
        yield (*pool, *feedback, *tensors.values()), rule


OPCHECK = {"attack_loss": opcheck_attack_loss, "search_step_": opcheck_search_step}
REGISTERED = sorted(
    name.removeprefix("amun_ext::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("amun_ext::")
)


class TestRegistration:
    @pytest.mark.parametrize("name", REGISTERED)
    def test_opcheck(self, device, name):
        for arguments, keywords in OPCHECK[name](device):
            torch.library.opcheck(getattr(torch.ops.amun_ext, name).default, arguments, keywords)

    def test_every_op_is_there(self):
        assert sorted(OPCHECK) == REGISTERED

    @pytest.mark.parametrize("name", REGISTERED)
    def test_has_a_kernel_for_the_device(self, device, name):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"amun_ext::{name}", device.upper())
