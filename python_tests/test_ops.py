"""The compiled ops against their plain PyTorch twins, closed forms and invariants."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import pairs
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


def check_attack_loss(op, logits: Tensor, labels: Tensor, loss: str, gap: float = 0.0) -> AttackLoss:
    """`op` gives what the twin gives in the same dtype and in float64, and what the op itself gives on the CPU."""
    result = op(logits, labels, loss, gap)
    for expected in (
        reference.attack_loss(logits, labels, loss, gap),
        reference.attack_loss(logits.double(), labels, loss, gap),
        ops.attack_loss(logits.cpu(), labels.cpu(), loss, gap),
    ):
        assert torch.equal(result.adversarial, expected.adversarial.to(logits.device))
        assert torch.equal(result.predicted, expected.predicted.to(logits.device))
        # The margin is a difference of two logits of the dtype: exact up to the accumulator's rounding.
        # At a tie that the label wins it is a rounding of the logits, in whatever type they are.
        rounding = 2 * torch.finfo(result.margin.dtype).eps * logits.double().abs().amax(1)
        tied = (result.margin > 0) & (result.margin <= rounding) & rounding.isfinite()
        assert (expected.margin.to(rounding)[tied] <= rounding[tied]).all()
        assert_close(result.margin[~tied], expected.margin.to(result.margin)[~tied], accumulate_dtype(logits.dtype))
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
        tied = logits.gather(1, labels[:, None])[:, 0] == logits.scatter(1, labels[:, None], -1).amax(1)
        assert (tied & result.adversarial).any()
        assert (tied & ~result.adversarial).any()
        assert (result.margin[tied & result.adversarial] == 0).all()
        # The label still wins: a rounding of its logit is left to go.
        own = logits.gather(1, labels[:, None])[:, 0].to(result.margin).where(logits.any(1), 1).clamp(min=0)
        left = torch.finfo(result.margin.dtype).eps * own.where(own > 0, 1)
        assert torch.equal(result.margin[tied & ~result.adversarial], left[tied & ~result.adversarial])

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
            result = ops.attack_loss(images @ weight, labels, loss, 0.5)
            return torch.where(result.adversarial[:, None], 0.0, result.grad_logits @ weight.t())

        arguments = torch.randn(6, 8).to(device), torch.randn(8, 5).to(device), torch.randint(5, (6,)).to(device)
        compiled = torch.compile(attacked, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(*arguments), attacked(*arguments))

    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"logits must have shape \[B, K\], got \[3\]"),
            (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), r"at least two classes, got \[3, 1\]"),
            (
                torch.zeros(0, 2**31),
                torch.zeros(0, dtype=torch.int64),
                r"at most 2\^30 classes, got \[0, 2147483648\]",
            ),
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


class TestGap:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("gap", [1e-3, 0.5, 3.0])
    def test_matches_the_reference(self, device, dtype, gap):
        logits, labels = draw_logits(200, 7, device=device, dtype=dtype)
        logits = (logits * 64).round() / 64  # or rounding may decide whether a lead is the gap
        drawn = torch.rand(logits.shape, device=device)
        logits[drawn < 0.02], logits[drawn > 0.98] = -torch.inf, torch.inf
        logits[::9, 3] = torch.nan
        check_attack_loss(ops.attack_loss, logits, labels, "margin", gap)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("gap", [0, 1, 2])
    def test_a_row_is_adversarial_when_another_class_is_ahead_by_the_gap(self, device, dtype, gap):
        """In whole numbers, where nothing is rounded and leads are often the gap itself."""
        logits, labels = torch.randint(4, (400, 5), device=device), torch.randint(5, (400,), device=device)
        own = logits.gather(1, labels[:, None])
        lead = (logits.scatter(1, labels[:, None], -1).amax(1, keepdim=True) - own)[:, 0]
        result = ops.attack_loss(logits.to(dtype), labels, "margin", gap)
        assert torch.equal(result.adversarial, (logits.argmax(1) != labels) & (lead >= gap))
        won = (gap == 0) & (lead == 0) & ~result.adversarial  # where a rounding is left to go
        assert torch.equal(result.margin[~won], (gap - lead).to(result.margin)[~won])
        assert (result.margin[won] > 0).all()
        if gap:
            assert result.adversarial[lead == gap].all()
            assert ((result.predicted != labels) & ~result.adversarial).any()  # ahead, but by too little

    @pytest.mark.parametrize("loss", ops.LOSSES)
    def test_changes_neither_prediction_nor_gradient(self, device, loss):
        logits, labels = draw_logits(200, 5, device=device)
        without, result = ops.attack_loss(logits, labels, loss), ops.attack_loss(logits, labels, loss, 2.0)
        assert torch.equal(result.predicted, logits.argmax(1))
        assert torch.equal(result.grad_logits, without.grad_logits)
        assert_close(result.margin, without.margin + 2, logits.dtype)
        assert (without.adversarial & ~result.adversarial).any()
        assert not (result.adversarial & ~without.adversarial).any()

    @pytest.mark.parametrize("gap", [-1e-9, -1.0, math.nan, math.inf])
    def test_wrong_gaps(self, device, gap):
        with pytest.raises(RuntimeError, match="gap must be finite and not negative, got"):
            ops.attack_loss(*draw_logits(3, 2, device=device), "margin", gap)


# -------------------------------------------------------------------------------------------------------- search_step_

# Few steps and long ones. Those of ddn are longer than d: where the two could cancel, float32 and float64 would differ.
PGD = Schedule(
    rule="pgd",
    steps=2,
    step_fraction=0.6,
    last_step_fraction=0.6,
    eps_growth=1.7,
    last_eps_growth=1.7,
    eps_max=0.5,
    start=1.5,
    overshoot=1.1,
    pull_back=0.8,
)
DDN = PGD._replace(rule="ddn", steps=6, step_fraction=1.5, last_step_fraction=1.2, eps_growth=1.3, last_eps_growth=1.05)
SCHEDULES = {
    "pgd": PGD,
    "ddn": DDN,
    "deepfool": PGD._replace(rule="deepfool", steps=6),
    "given": PGD._replace(rule="given", steps=6),
}
KEEPING = [rule for rule in ops.RULES if rule != "pgd"]  # make all their steps, and keep the closest example
UNBOUNDED = (-math.inf, math.inf)


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
    margin: Tensor

    @classmethod
    def random(cls, x: Tensor, adversarial: Tensor | bool = False) -> "Feedback":
        """Of images none of which is adversarial, unless told otherwise."""
        flags = torch.zeros(len(x), dtype=torch.bool, device=x.device) | adversarial
        margin = torch.rand(len(x), dtype=torch.float64).to(x.device) + 0.05
        return cls(
            torch.randn(x.shape, dtype=torch.float64).to(x),
            flags,
            torch.randint(10, (len(x),), device=x.device),
            torch.where(flags, -margin, margin).to(accumulate_dtype(x.dtype)),
        )

    def like(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        margin = self.margin.to(x.device, accumulate_dtype(x.dtype))
        return self.grad.to(x), self.adversarial.to(x.device), self.predicted.to(x.device), margin


class Plan:
    """A pretended model: says for each sample as what its search ends, and at which evaluation.

    What is found is adversarial at that evaluation, not at the next, and so on by turns.
    """

    def __init__(self, search: Search, rule: str) -> None:
        samples = len(search.book.inputs)
        sample = torch.arange(samples, device=search.book.inputs.device)
        self.ends_as = 1 + sample % 3  # FOUND, EXHAUSTED, NO_GRADIENT
        self.ends_at = 1 + sample // 3 % 4
        self.rule = rule
        none = [torch.nan if rule == "given" else 0.0, torch.nan, torch.inf, -torch.inf]  # an iterate may be all zero
        self.no_gradient = torch.tensor(none).to(search.book.inputs)[sample // 3 % 4]

    def feedback(self, search: Search) -> Feedback:
        # Drawn per sample and not per slot, because which slot gets which sample is open on a GPU.
        table = Feedback.random(search.book.inputs)
        slots, idle = search.pool.slots.clamp(min=0), search.pool.slots < 0
        beyond = search.book.grad_evals[slots] + 1 - self.ends_at[slots]
        grad = table.grad[slots]
        if self.rule == "given":  # an iterate, of which a few elements are to be clamped
            grad = (1.2 * torch.rand(table.grad.shape, dtype=torch.float64) - 0.1).to(grad)[slots]
        # One element at least must point into the box, or the gradient counts as zero against the plan.
        first, x = grad.flatten(1)[:, :1], search.pool.x.flatten(1)[:, :1]
        first.copy_(torch.where(x <= 0, first.abs(), torch.where(x >= 1, -first.abs(), first)))
        spoilt = (beyond >= 0) & (self.ends_as[slots] == Status.NO_GRADIENT)
        grad[spoilt] = 0
        grad.flatten(1)[spoilt, -1] = self.no_gradient[slots][spoilt]
        adversarial = (beyond >= 0) & (beyond % 2 == 0) & (self.ends_as[slots] == Status.FOUND)
        # In few dimensions clamping can lead to the same point again, and rounding would decide whether it is closer.
        again = (search.pool.x == search.book.images[slots]).flatten(1).all(1) & search.book.distance[slots].isfinite()
        adversarial = adversarial & ~again | idle
        margin = torch.where(adversarial, -table.margin[slots], table.margin[slots])
        grad[idle], margin[idle] = torch.nan, torch.nan  # nobody may look at an idle slot
        return Feedback(grad, adversarial, table.predicted[slots], margin)


class Closest:
    """The closest adversarial iterate of each sample, in float64, seen from outside the op."""

    def __init__(self, search: Search) -> None:
        self.images, self.labels = search.book.images.clone(), search.book.found_labels.clone()
        self.distance = torch.full_like(search.book.distance, torch.inf, dtype=torch.float64)
        self.at_once = torch.zeros_like(search.book.grad_evals)  # gradients until an example at distance 0 was seen

    def look(self, search: Search, feedback: Feedback) -> None:
        for slot, sample in enumerate(search.pool.slots.tolist()):
            if sample < 0 or not feedback.adversarial[slot]:
                continue
            x = search.pool.x[slot]
            distance = (x.double() - search.book.inputs[sample].double()).norm()
            if distance < self.distance[sample]:
                self.images[sample], self.labels[sample] = x, feedback.predicted[slot]
                self.distance[sample] = distance
                if distance == 0:
                    self.at_once[sample] = search.book.grad_evals[sample] + 1


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
    kept = [tensor.clone() for tensor in vars(feedback).values()]
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
    for tensor, tensor_before in zip(vars(feedback).values(), kept, strict=True):
        torch.testing.assert_close(tensor, tensor_before, rtol=0, atol=0, equal_nan=True)


def check_whole_search(op, search: Search, rule: str) -> None:
    """From the first refill to the last harvest: every step as the twin makes it, every sample's end as planned."""
    schedule, plan, closest = SCHEDULES[rule], Plan(search, rule), Closest(search)
    if rule != "pgd":
        search.book.eps[::2] = 0  # to be estimated; for pgd the number of radii would depend on it
    queued = torch.zeros(len(search.book.inputs), dtype=torch.bool, device=search.queue.device)
    queued[search.queue] = True
    for step in range(100):
        if step and (search.pool.slots < 0).all():
            break
        feedback = plan.feedback(search)
        closest.look(search, feedback)
        check_search_step(op, search, feedback, schedule)
    assert (search.pool.slots < 0).all()

    book, found = search.book, queued & (plan.ends_as == Status.FOUND)
    assert torch.equal(book.status, torch.where(queued, plan.ends_as, Status.PENDING).to(torch.int8))
    # Radii 0.25, 0.425 and 0.5 of two steps each, and the evaluation that shows the last step to be in vain. The other
    # rules take no gradient at the last evaluation.
    all_steps = 7 if rule == "pgd" else schedule.steps
    ends_early = plan.ends_as == Status.NO_GRADIENT if rule != "pgd" else plan.ends_as != Status.EXHAUSTED
    evaluations = torch.where(ends_early, plan.ends_at, all_steps).to(torch.int32)
    evaluations = torch.where(closest.at_once > 0, closest.at_once, evaluations)
    assert torch.equal(book.grad_evals, evaluations * queued)
    assert torch.equal(book.images, closest.images)
    assert torch.equal(book.found_labels, closest.labels)
    assert_close(book.distance, closest.distance, accumulate_dtype(book.inputs.dtype))
    assert book.distance.isfinite().equal(found)
    # A sample that is misclassified to begin with is its own example.
    assert (book.distance[found & (plan.ends_at == 1)] == 0).all()


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
    @pytest.mark.parametrize(
        ("dtype", "shape", "rule"),
        pairs(DTYPES, [(1,), (3,), (31,), (33,), (1000,), (3, 5, 7), (3 * 32 * 32 + 1,)], ops.RULES),
    )
    def test_whole_search_matches_the_reference(self, device, dtype, shape, rule):
        samples = min(14, 2**15 // math.prod(shape))
        check_whole_search(ops.search_step_, Search.begin(5, samples, shape, device=device, dtype=dtype), rule)

    @pytest.mark.parametrize(
        ("slots", "queue"),
        [(4, []), (0, [0, 1]), (7, [5, 2]), (1, [3, 0, 4, 1]), (6, [0, 1, 2, 3, 4, 5])],
        ids=["nothing queued", "no slots", "queue shorter than the pool", "one slot", "queue as long as the pool"],
    )
    @pytest.mark.parametrize("rule", ops.RULES)
    def test_pools_and_queues(self, device, slots, queue, rule):
        search = Search.begin(slots, 7, (2, 3), queue=queue, device=device)
        if slots:
            check_whole_search(ops.search_step_, search, rule)
        else:
            check_search_step(ops.search_step_, search, Feedback.random(search.pool.x), SCHEDULES[rule])
            assert search.cursor == 0

    @pytest.mark.parametrize("rule", ops.RULES)
    def test_book_without_samples(self, device, rule):
        search = Search.begin(3, 0, (4,), device=device)
        check_search_step(ops.search_step_, search, Feedback.random(search.pool.x), SCHEDULES[rule])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_more_slots_than_a_grid_dimension_might_hold(self, device, dtype):
        search = Search.running(2**16 + 3, (3,), device=device, dtype=dtype)
        feedback, x, eps = Feedback.random(search.pool.x), search.pool.x.clone(), search.book.eps.clone()
        search.step(ops.search_step_, feedback, PGD)
        assert_close(search.pool.x, reference.pgd_step(x, x, feedback.grad, eps, 0.6, (0, 1)), dtype)
        assert (search.book.grad_evals == 1).all()

        feedback.adversarial.fill_(True)
        search.step(ops.search_step_, feedback, PGD)
        assert (search.book.status == Status.FOUND).all()
        assert (search.pool.slots == -1).all()
        assert torch.equal(search.book.images, search.pool.x)
        assert torch.equal(search.book.found_labels, feedback.predicted)

    @pytest.mark.parametrize("layout", ["channels_last", "transposed", "every second", "expanded"])
    @pytest.mark.parametrize("rule", ops.RULES)
    def test_any_layout_of_the_gradient(self, device, layout, rule):
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
        expected.step(ops.search_step_, feedback, SCHEDULES[rule])

        feedback.grad = grad
        check_search_step(ops.search_step_, search, feedback, SCHEDULES[rule])
        assert torch.equal(search.pool.x, expected.pool.x)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rule", ["pgd", "ddn"])
    def test_the_length_of_the_gradient_is_free(self, device, rule, dtype):
        search = Search.running(3, (40,), device=device, dtype=dtype)
        longer, feedback = search.copy(), Feedback.random(search.pool.x)
        search.step(ops.search_step_, feedback, SCHEDULES[rule])
        feedback.grad = feedback.grad * 2.0**8  # a power of two: nothing is rounded
        longer.step(ops.search_step_, feedback, SCHEDULES[rule])
        assert_close(longer.pool.x, search.pool.x, dtype)

    @pytest.mark.parametrize("rule", ops.RULES)
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
        schedule = Schedule(
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
        evaluations, best = torch.zeros_like(search.book.grad_evals), search.book.distance.clone()
        for _ in range(400):
            before = search.pool.slots[search.pool.slots >= 0]
            # The last look of a search with a fixed number of steps takes no gradient.
            evaluations[before] += (search.book.round_step[before] < schedule.steps) | torch.tensor(rule == "pgd")
            search.step(ops.search_step_, plan.feedback(search), schedule)
            after = search.pool.slots.tolist()
            handed_out += [sample for sample in after if sample >= 0 and sample not in before.tolist()]
            running = search.pool.slots >= 0
            x, sample = search.pool.x[running].double(), search.pool.slots[running]
            assert ((x >= 0) & (x <= 1)).all()
            if rule in ("pgd", "ddn"):
                distance = (x - search.book.inputs[sample].double()).norm(dim=1)
                assert (distance <= search.book.eps[sample] * (1 + 100 * rounding) + math.sqrt(length) * rounding).all()
                assert (search.book.eps <= max(0.1, schedule.eps_max * (1 + rounding))).all()
            assert (search.book.distance <= best).all()
            best.copy_(search.book.distance)
            if not running.any():
                break
        assert sorted(handed_out) == sorted(queue)
        assert torch.equal(search.book.grad_evals, evaluations)
        assert (search.book.status != Status.PENDING).nonzero().flatten().tolist() == sorted(queue)
        found = search.book.status == Status.FOUND
        assert torch.equal(search.book.distance.isfinite(), found)
        distance = (search.book.images.double() - search.book.inputs.double()).norm(dim=1)
        assert_close(search.book.distance[found], distance[found], dtype)

    @pytest.mark.parametrize("rule", ops.RULES)
    def test_compiles_without_a_graph_break(self, device, rule):
        def move(pool: Pool, book: Book, queue: Tensor, cursor: Tensor, *feedback: Tensor) -> Tensor:
            ops.search_step_(pool, book, queue, cursor, *feedback, SCHEDULES[rule], (0.0, 1.0))
            return pool.x * 2

        search = Search.begin(3, 5, (2, 4), device=device)
        for step in range(3):  # a refill, a step, and one with examples
            expected, feedback = search.copy(), Feedback.random(search.pool.x, step == 2)
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
        search.step(ops.search_step_, feedback, PGD)
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
            ("margin", lambda margin: margin.half(), "margin must have dtype Float, got Half"),
            ("margin", lambda margin: margin[1:], r"margin must have shape \[4\], got \[3\]"),
            ("margin", lambda margin: margin.repeat_interleave(2)[::2], "margin must be contiguous"),
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
                schedule=PGD,
                bounds=(0.0, 1.0),
            )

    @pytest.mark.parametrize(
        ("change", "bounds", "message"),
        [
            ({"steps": 0}, (0, 1), r"steps must be in \[1, 2\^31\), got 0"),
            ({"steps": 2**31}, (0, 1), r"steps must be in \[1, 2\^31\), got 2147483648"),
            ({"eps_growth": 1.0}, (0, 1), "eps_growth must be greater than 1 and finite, got 1"),
            ({"last_eps_growth": 1.0}, (0, 1), "last_eps_growth must be greater than 1 and finite, got 1"),
            ({"eps_growth": math.nan}, (0, 1), "eps_growth must be greater than 1 and finite, got nan"),
            ({"last_eps_growth": math.inf}, (0, 1), "last_eps_growth must be greater than 1 and finite, got inf"),
            (
                {"rule": "ddn", "eps_growth": 1.5},
                (0, 1),
                "eps_growth must be greater than 1 and less than 1.5, got 1.5",
            ),
            ({"pull_back": 0.0}, (0, 1), r"pull_back must be in \(0, 1\], got 0"),
            ({"pull_back": 1.01}, (0, 1), r"pull_back must be in \(0, 1\], got 1.01"),
            ({"pull_back": math.nan}, (0, 1), r"pull_back must be in \(0, 1\], got nan"),
            ({"rule": "PGD"}, (0, 1), 'rule must be "pgd", "ddn", "deepfool" or "given", got "PGD"'),
            ({"rule": ""}, (0, 1), 'rule must be "pgd", "ddn", "deepfool" or "given", got ""'),
            ({}, (1, 1), "low must be less than high, got 1 and 1"),
            ({}, (0, math.nan), "low must be less than high, got 0 and nan"),
        ],
    )
    def test_wrong_schedules_are_named(self, device, change, bounds, message):
        search = Search.begin(4, 6, (2, 3), device=device)
        with pytest.raises(RuntimeError, match=message):
            search.step(ops.search_step_, Feedback.random(search.pool.x), PGD._replace(**change), bounds)

    @pytest.mark.parametrize(
        ("rule", "field", "value"),
        pairs(
            ops.RULES,
            ["step_fraction", "last_step_fraction", "eps_max", "start", "overshoot"],
            [0.0, -1.0, math.nan, math.inf],
        ),
    )
    def test_what_must_be_positive(self, device, rule, field, value):
        search = Search.begin(4, 6, (2, 3), device=device)
        schedule = SCHEDULES[rule]._replace(**{field: value})
        with pytest.raises(RuntimeError, match=f"{field} must be positive and finite, got {value:g}"):
            search.step(ops.search_step_, Feedback.random(search.pool.x), schedule)

    @pytest.mark.parametrize("slot", [-2, 7, 10**12])
    def test_slots_that_name_no_sample_are_idle(self, device, slot):
        search = Search.begin(4, 6, (5,), queue=[3, 1], device=device)
        search.pool.slots.fill_(slot)
        search.step(ops.search_step_, Feedback.random(search.pool.x), PGD)
        assert sorted(search.pool.slots[search.pool.slots >= 0].tolist())[:2] == [1, 3]
        assert (search.book.grad_evals == 0).all()

    @pytest.mark.parametrize("entry", [-1, 6, 10**12])
    def test_queue_entries_that_are_no_rows_are_refused(self, entry):
        """On a CPU; a GPU kernel cannot raise, and passes them over."""
        search = Search.begin(4, 6, (5,), queue=[2, entry])
        with pytest.raises(RuntimeError, match=r"queue must hold rows of the book, \[0, 6\), got"):
            search.step(ops.search_step_, Feedback.random(search.pool.x), PGD)
        search.cursor.fill_(-1)
        with pytest.raises(RuntimeError, match="cursor must not be negative"):
            search.step(ops.search_step_, Feedback.random(search.pool.x), PGD)

    def test_arguments_that_share_memory_are_refused(self, device):
        search = Search.running(4, (5,), device=device)
        search.book = search.book._replace(images=search.book.inputs)
        with pytest.raises(RuntimeError, match="must not share memory"):
            search.step(ops.search_step_, Feedback.random(search.pool.x), PGD)

    def test_x_that_requires_grad_is_refused(self, device):
        search = Search.running(4, (5,), device=device)
        search.pool.x.requires_grad_()
        with pytest.raises(RuntimeError, match="x must not require grad"):
            search.step(ops.search_step_, Feedback.random(search.pool.x.detach()), PGD)


class TestPgd:
    SCHEDULE = PGD._replace(steps=3, step_fraction=0.75, eps_growth=2.0, eps_max=1.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_one_step_has_the_length_of_the_step(self, device, dtype):
        search = Search.running(9, (3, 7, 7), eps=0.5, device=device, dtype=dtype)
        feedback = Feedback.random(search.pool.x)
        search.step(ops.search_step_, feedback, self.SCHEDULE, UNBOUNDED)
        moved = (search.pool.x - search.book.inputs).flatten(1)
        assert_close(moved, 0.75 * 0.5 * directions(feedback.grad.flatten(1)), dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_the_second_step_ends_on_the_radius(self, device, dtype):
        search = Search.running(9, (3, 7, 7), eps=0.5, device=device, dtype=dtype)
        feedback = Feedback.random(search.pool.x)
        for _ in range(2):
            search.step(ops.search_step_, feedback, self.SCHEDULE, UNBOUNDED)
        moved = (search.pool.x - search.book.inputs).flatten(1)
        assert_close(moved, 0.5 * directions(feedback.grad.flatten(1)), dtype)

    def test_the_radius_grows_up_to_the_last(self, device):
        search = Search.running(1, (5,), eps=0.1, device=device)
        schedule, radii = self.SCHEDULE._replace(step_fraction=0.5, eps_max=0.7), []
        while search.book.status == Status.PENDING:
            search.step(ops.search_step_, Feedback.random(search.pool.x), schedule)
            radii.append(round(search.book.eps.item(), 6))
        # The last evaluation finds that no radius is left.
        assert radii == [0.1] * 3 + [0.2] * 3 + [0.4] * 3 + [0.7] * 4
        assert search.book.status == Status.EXHAUSTED
        assert search.book.grad_evals == 13

    @pytest.mark.parametrize("eps", [0.0, 0.25])
    def test_a_radius_that_rounding_keeps_from_growing_is_the_last(self, device, eps):
        search = Search.running(3, (5,), device=device, eps=eps)
        schedule = PGD._replace(steps=2, step_fraction=0.1, eps_growth=1 + 1e-9)
        for _ in range(3):
            search.step(ops.search_step_, Feedback.random(search.pool.x), schedule)
        assert (search.book.status == Status.EXHAUSTED).all()


class Plane:
    """A model of two classes with a flat boundary, one for each image [B, D]: margin(x) = left - <normal, x - x0>."""

    def __init__(self, search: Search) -> None:
        self.x0 = search.book.inputs.double()
        self.normal, self.left = torch.randn_like(self.x0), 0.1 + torch.rand_like(self.x0[:, 0])

    def margin(self, x: Tensor) -> Tensor:
        return self.left - ((x.double() - self.x0) * self.normal).sum(1)

    def feedback(self, x: Tensor) -> Feedback:
        margin = self.margin(x)
        return Feedback(self.normal.to(x), margin <= 0, (margin <= 0).long(), margin.to(accumulate_dtype(x.dtype)))


def on_the_bounds(search: Search, grad: Tensor, bounds=(0.0, 1.0)) -> Tensor:
    """Puts two thirds of the iterates' elements on the bounds; those of them at which `grad` points out of the box."""
    x, drawn = search.pool.x, torch.rand(search.pool.x.shape, device=grad.device)
    x[drawn < 1 / 3], x[drawn > 2 / 3] = bounds[0], bounds[1]
    low, high = torch.tensor(bounds, dtype=x.dtype, device=x.device)
    return (x == low) & (grad < 0) | (x == high) & (grad > 0)


class TestClosestExample:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rule", KEEPING)
    def test_of_the_adversarial_iterates_the_closest_is_kept(self, device, rule, dtype):
        """The iterates are set from outside, far and near by turns."""
        schedule, samples = SCHEDULES[rule], 200
        search = Search.running(samples, (20,), device=device, dtype=dtype)
        looks, row = schedule.steps + 1, torch.arange(samples, device=device)
        radius = 0.05 * (1 + torch.rand(looks, samples, device=device).argsort(0))
        x = search.book.inputs + radius[..., None] * F.normalize(torch.randn(looks, samples, 20, device=device), dim=2)
        x, adversarial = x.to(dtype), torch.rand(looks, samples, device=device) < 0.5
        feedback = [Feedback.random(x[look], adversarial[look]) for look in range(looks)]
        for look in range(looks):
            search.pool.x.copy_(x[look])
            search.step(ops.search_step_, feedback[look], schedule, UNBOUNDED)

        distance = (x.double() - search.book.inputs.double()).norm(dim=2).masked_fill(~adversarial, torch.inf)
        distance, at = distance.min(0)
        found = distance.isfinite()
        assert at[found].unique().tolist() == list(range(looks))  # also neither the first nor the last of several
        expected = torch.where(found[:, None], x[at, row], search.book.inputs)
        assert torch.equal(search.book.images, expected)
        predicted = torch.stack([answer.predicted for answer in feedback])[at, row]
        assert torch.equal(search.book.found_labels, torch.where(found, predicted, -1))
        assert_close(search.book.distance, distance, accumulate_dtype(dtype))
        assert torch.equal(search.book.status, torch.where(found, Status.FOUND, Status.EXHAUSTED).to(torch.int8))
        assert (search.book.grad_evals == schedule.steps).all()

    @pytest.mark.parametrize("rule", ops.RULES)
    def test_a_farther_one_replaces_nothing(self, device, rule):
        search = Search.running(6, (5,), device=device)
        search.book.images.fill_(0.5)
        search.book.distance.fill_(0.1)
        search.pool.x.copy_(search.book.inputs + 0.2)
        search.step(ops.search_step_, Feedback.random(search.pool.x, True), SCHEDULES[rule], UNBOUNDED)
        assert (search.book.images == 0.5).all()
        assert (search.book.distance == 0.1).all()
        assert (search.book.found_labels == -1).all()
        assert (search.book.status == (Status.FOUND if rule == "pgd" else Status.PENDING)).all()

    @pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, 1.0])
    @pytest.mark.parametrize("rule", KEEPING)
    def test_the_last_evaluation_only_looks(self, device, rule, value):
        search, schedule = Search.running(6, (5,), device=device), SCHEDULES[rule]
        search.book.round_step.fill_(schedule.steps)
        search.pool.x.copy_(search.book.inputs + 0.1)
        x, adversarial = search.pool.x.clone(), torch.arange(6, device=device) % 2 == 1
        feedback = Feedback.random(search.pool.x, adversarial)
        feedback.grad.fill_(value)
        feedback.margin.fill_(value)
        search.step(ops.search_step_, feedback, schedule)
        assert torch.equal(search.book.status == Status.FOUND, adversarial)
        assert torch.equal(search.book.status == Status.EXHAUSTED, ~adversarial)
        assert torch.equal(search.book.images[adversarial], x[adversarial])
        assert torch.equal(search.pool.x, x)
        assert (search.book.grad_evals == 0).all()
        assert (search.book.round_step == schedule.steps).all()
        assert (search.pool.slots == -1).all()

    @pytest.mark.parametrize(
        ("rule", "spoilt"),
        [(rule, value) for rule in KEEPING for value in (0.0, torch.nan, torch.inf) if value or rule != "given"],
    )
    def test_outlives_its_gradient(self, device, rule, spoilt):
        search, schedule = Search.running(6, (5,), device=device), SCHEDULES[rule]
        search.pool.x.copy_(search.book.inputs + 0.1)
        x, adversarial = search.pool.x.clone(), torch.arange(6, device=device) % 2 == 1
        search.step(ops.search_step_, Feedback.random(search.pool.x, adversarial), schedule, UNBOUNDED)
        assert (search.book.status == Status.PENDING).all()
        feedback = Feedback.random(search.pool.x)
        feedback.grad.fill_(spoilt)
        search.step(ops.search_step_, feedback, schedule, UNBOUNDED)
        assert torch.equal(search.book.status == Status.FOUND, adversarial)
        assert torch.equal(search.book.status == Status.NO_GRADIENT, ~adversarial)
        assert torch.equal(search.book.images[adversarial], x[adversarial])
        assert (search.book.grad_evals == 2).all()

    @pytest.mark.parametrize("eps", [0.0, 0.25])
    @pytest.mark.parametrize("rule", ops.RULES)
    def test_a_margin_that_is_no_number(self, device, rule, eps):
        """No gradient, but to "given", which does not look at it."""
        search = Search.running(6, (5,), device=device, eps=eps)
        feedback = Feedback.random(search.pool.x)
        feedback.margin[2:4] = torch.nan
        check_search_step(ops.search_step_, search, feedback, SCHEDULES[rule])
        expected = torch.full((6,), Status.PENDING)
        expected[2:4] = Status.PENDING if rule == "given" else Status.NO_GRADIENT
        assert search.book.status.tolist() == expected.tolist()
        assert search.pool.x.isfinite().all()


class TestFirstRadius:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rule", ["pgd", "ddn", "deepfool"])
    def test_is_estimated_from_margin_and_gradient(self, device, rule, dtype):
        search, schedule = Search.running(200, (30,), device=device, dtype=dtype, eps=0), SCHEDULES[rule]
        feedback = Feedback.random(search.pool.x)
        feedback.margin.copy_(10 ** (12 * torch.rand(200, device=device) - 9))
        feedback.margin[0], feedback.margin[1] = 0, -1
        grad, outward = feedback.grad.double(), on_the_bounds(search, feedback.grad)
        assert outward.any()
        if rule != "pgd":
            grad[outward] = 0
        # Steps that are less than 16 roundings of the iterate may not move it.
        wide = accumulate_dtype(dtype)
        shortest = 16 * torch.finfo(wide).eps * search.pool.x.double().norm(dim=1)
        search.step(ops.search_step_, feedback, schedule)
        expected = (1.5 * feedback.margin.double() / grad.norm(dim=1)).clamp(min=shortest).clamp(max=0.5)
        assert_close(search.book.eps / expected, torch.ones(200), wide)
        assert (search.book.eps[:2] / shortest[:2] - 1 < 1e-5).all()
        assert (expected == 0.5).any()

        search.step(ops.search_step_, Feedback.random(search.pool.x), schedule)  # and once only
        change = 1 + 0.3 * (0.05 / 0.3) ** (1 / 5) if rule == "ddn" else 1
        assert_close(search.book.eps, (expected * change).clamp(max=0.5), accumulate_dtype(dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("rule", ["pgd", "ddn", "deepfool"])
    def test_a_tie_that_the_label_wins_still_moves(self, device, rule, dtype):
        schedule, eps = SCHEDULES[rule], torch.finfo(dtype).eps
        for size in (0.0, 1e-3):  # of the image: a rounding of the logits and one of the image
            search = Search.running(1, (16,), device=device, dtype=dtype, eps=0)
            search.book.inputs.fill_(size)
            search.pool.x.fill_(size)
            attack = ops.attack_loss(torch.ones(1, 3, device=device, dtype=dtype), torch.zeros_like(search.cursor))
            assert (attack.margin, attack.predicted, attack.adversarial) == (eps, 0, False)
            grad = directions(torch.randn_like(search.pool.x)) / 3
            feedback = Feedback(grad, attack.adversarial, attack.predicted, attack.margin)
            search.step(ops.search_step_, feedback, schedule, (-1.0, 1.0))
            estimate = 3 * eps * (schedule.overshoot if rule == "deepfool" else schedule.start)
            length = max(estimate, 16 * eps * 4 * size) * (schedule.step_fraction if rule == "pgd" else 1)
            moved = (search.pool.x - search.book.inputs) / length
            torch.testing.assert_close(moved, 3 * grad, rtol=0, atol=1e-5 if size == 0 else 0.05)


class TestDdn:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_every_iterate_lies_on_its_radius(self, device, dtype):
        search = Search.running(30, (3, 5, 5), device=device, dtype=dtype)
        schedule = DDN._replace(steps=9, step_fraction=1.0, last_step_fraction=0.1)
        for step in range(9):
            feedback = Feedback.random(search.pool.x, torch.rand(30, device=device) < min(step, 0.5))
            search.step(ops.search_step_, feedback, schedule, UNBOUNDED)
            distance = (search.pool.x - search.book.inputs).flatten(1).norm(dim=1)
            assert_close(distance / search.book.eps, torch.ones(30), dtype)
            assert (search.book.eps <= 0.5).all()
        assert (search.book.eps < 0.1).any()

    def test_radius_and_step_follow_their_schedules(self, device):
        """Of samples that never become adversarial."""
        search = Search.running(5, (30,), eps=0.1, device=device, dtype=torch.float64)
        schedule = DDN._replace(steps=7, step_fraction=0.8, last_step_fraction=0.05, last_eps_growth=1.02, eps_max=0.15)
        for step in range(7):
            d, eps = search.pool.x - search.book.inputs, search.book.eps.clone()
            feedback = Feedback.random(search.pool.x)
            search.step(ops.search_step_, feedback, schedule, UNBOUNDED)
            fraction = math.exp(math.log(0.8) + step / 6 * math.log(0.05 / 0.8))
            change = math.exp(math.log(0.3) + step / 6 * math.log(0.02 / 0.3)) if step else 0
            aimed = d + fraction * eps[:, None] * directions(feedback.grad)
            expected = (eps * (1 + change)).clamp(max=0.15)
            assert_close(search.book.eps, expected, torch.float64)
            assert_close(search.pool.x - search.book.inputs, expected[:, None] * directions(aimed), torch.float64)
        assert (search.book.eps == 0.15).all()

    @pytest.mark.parametrize("closer", [1.0, 0.7], ids=["best so far", "a closer one is known"])
    def test_from_an_example_the_radius_shrinks_to_the_boundary(self, device, closer):
        search, step = Search.running(300, (30,), eps=0.2, device=device, dtype=torch.float64), 2
        plane, schedule = Plane(search), DDN._replace(step_fraction=0.8, last_step_fraction=0.1, overshoot=1.0)
        search.book.round_step.fill_(step)
        d = 0.2 * directions(directions(plane.normal) + 0.1 * torch.randn_like(plane.normal))
        search.pool.x.copy_(search.book.inputs + d)
        if closer < 1:
            search.book.distance.fill_(closer * 0.2)

        fraction, change = 0.8 * (0.1 / 0.8) ** (step / 5), 0.3 * (0.05 / 0.3) ** (step / 5)
        ahead = directions(d + fraction * 0.2 * directions(plane.normal))
        # Where the boundary is met on the way, from well before the range that is trusted to well after it.
        crossing = closer * 0.2 * (1 - 4 * change * torch.rand(300, device=device, dtype=torch.float64))
        plane.left = crossing * (ahead * plane.normal).sum(1)
        feedback = plane.feedback(search.pool.x)
        feedback.adversarial.fill_(True)
        search.step(ops.search_step_, feedback, schedule, UNBOUNDED)

        least, most = closer * 0.2 * (1 - 2 * change), closer * 0.2 * (1 - change)
        assert_close(search.book.eps, crossing.clamp(least, most), torch.float64)
        assert_close(search.pool.x - search.book.inputs, search.book.eps[:, None] * ahead, torch.float64)
        exact = (crossing > least) & (crossing < most)
        assert exact.any()
        assert ((crossing < least).any(), (crossing > most).any()) == (True, True)
        assert_close(plane.margin(search.pool.x)[exact], torch.zeros(int(exact.sum())), torch.float64)

    def test_from_an_example_with_the_boundary_behind_it_the_radius_shrinks_a_little(self, device):
        search = Search.running(5, (30,), eps=0.2, device=device, dtype=torch.float64)
        search.book.round_step.fill_(5)
        feedback = Feedback.random(search.pool.x, True)
        search.pool.x.copy_(search.book.inputs - 0.2 * directions(feedback.grad))
        search.step(ops.search_step_, feedback, DDN._replace(last_step_fraction=0.1), UNBOUNDED)
        assert_close(search.book.eps / (0.2 * 0.95), torch.ones(5), torch.float64)
        expected = search.book.inputs - 0.2 * 0.95 * directions(feedback.grad)
        assert_close(search.pool.x, expected, torch.float64)

    def test_a_step_that_cancels_d(self, device):
        """Then there is no direction to stretch: back to the original."""
        for adversarial in (False, True):
            search = Search.running(3, (4,), eps=0.25, device=device)
            search.book.inputs.fill_(0.5)
            search.book.round_step.fill_(1)
            search.pool.x.fill_(0.5)[:, 1] = 0.25
            feedback = Feedback.random(search.pool.x, adversarial)
            feedback.grad.zero_()[:, 1] = 2.0
            schedule = DDN._replace(step_fraction=1.0, last_step_fraction=1.0)
            check_search_step(ops.search_step_, search, feedback, schedule)
            assert torch.equal(search.pool.x, search.book.inputs)
            assert ((search.book.eps > 0.1) & (search.book.eps < 0.4)).all()

    def test_a_growth_that_rounding_swallows(self, device):
        search = Search.running(3, (4,), eps=0.25, device=device)
        schedule = DDN._replace(eps_growth=1 + 1e-9, last_eps_growth=1 + 1e-12)
        for _ in range(6):
            check_search_step(ops.search_step_, search, Feedback.random(search.pool.x), schedule)
            assert (search.book.eps == 0.25).all()
        assert (search.book.grad_evals == 6).all()


class TestInward:
    """What ddn and deepfool make of gradients that point out of the box."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rule", ["ddn", "deepfool"])
    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.3, 0.7)], ids=str)
    def test_elements_that_point_outwards_count_as_zero(self, device, rule, dtype, bounds):
        """Also where the bounds are no numbers of the dtype, and the iterates beside them."""
        search = Search.running(40, (30,), device=device, dtype=dtype)
        search.book.inputs.clamp_(*bounds)
        search.pool.x.copy_((search.book.inputs + 0.1 * torch.randn_like(search.pool.x)).clamp(*bounds))
        search.book.round_step.fill_(1)
        feedback = Feedback.random(search.pool.x, torch.arange(40, device=device) % 2 == 1)
        outward = on_the_bounds(search, feedback.grad, bounds)
        assert outward.any()
        expected, zeroed = search.copy(), Feedback(**vars(feedback))
        search.step(ops.search_step_, feedback, SCHEDULES[rule], bounds)
        zeroed.grad = feedback.grad.masked_fill(outward, 0)
        expected.step(ops.search_step_, zeroed, SCHEDULES[rule], bounds)
        assert torch.equal(search.pool.x, expected.pool.x)
        assert torch.equal(search.book.eps, expected.book.eps)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rule", ["ddn", "deepfool"])
    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.3, 0.7)], ids=str)
    def test_with_nowhere_to_go_there_is_no_gradient(self, device, rule, dtype, bounds):
        search = Search.running(2, (30,), device=device, dtype=dtype)
        search.pool.x[0], search.pool.x[1] = bounds
        feedback = Feedback.random(search.pool.x)
        feedback.grad = feedback.grad.abs() * torch.tensor([[-1.0], [1.0]]).to(feedback.grad)
        check_search_step(ops.search_step_, search.copy(), feedback, SCHEDULES[rule], search.pool.x[:, 0].tolist())
        search.step(ops.search_step_, feedback, SCHEDULES[rule], bounds)
        assert (search.book.status == Status.NO_GRADIENT).all()

    @pytest.mark.parametrize("rule", ["pgd", "given"])
    def test_the_others_take_it_as_it_is(self, device, rule):
        search = Search.running(2, (30,), device=device)
        search.pool.x[0], search.pool.x[1] = 0, 1
        feedback = Feedback.random(search.pool.x)
        feedback.grad = feedback.grad.abs() * torch.tensor([[-1.0], [1.0]]).to(feedback.grad)
        search.step(ops.search_step_, feedback, SCHEDULES[rule])
        assert (search.book.status == Status.PENDING).all()


class TestDeepfool:
    @pytest.mark.parametrize("overshoot", [1.0, 1.3])
    @pytest.mark.parametrize("where", ["the original", "before the boundary", "beyond the boundary"])
    def test_one_step_leads_to_a_flat_boundary(self, device, where, overshoot):
        search = Search.running(50, (30,), device=device, dtype=torch.float64)
        plane = Plane(search)
        schedule = SCHEDULES["deepfool"]._replace(overshoot=overshoot, pull_back=0.6)
        if where != "the original":
            search.pool.x.add_(0.1 * torch.randn_like(search.pool.x))
            plane.left += plane.left - plane.margin(search.pool.x)  # so that x is as far from it as x0 was
            plane.left -= 0.0 if where == "before the boundary" else 2.0
        feedback = plane.feedback(search.pool.x)
        assert (feedback.adversarial == (where == "beyond the boundary")).all()
        d = search.pool.x - search.book.inputs
        pulled = search.book.inputs + (0.6 if where == "beyond the boundary" else 1) * d
        search.step(ops.search_step_, feedback, schedule, UNBOUNDED)

        moved = search.pool.x - pulled
        assert_close(plane.margin(search.pool.x), (1 - overshoot) * plane.margin(pulled), torch.float64)
        # Along the normal, which is the shortest way.
        along = plane.margin(pulled) / plane.normal.norm(dim=1) * overshoot
        assert_close(moved, along[:, None] * directions(plane.normal), torch.float64)

    def test_in_a_box_that_binds(self, device):
        search = Search.running(50, (30,), device=device, dtype=torch.float64)
        plane = Plane(search)
        outward = on_the_bounds(search, plane.normal)
        search.book.inputs.copy_(search.pool.x)
        plane.x0 = search.pool.x.clone()
        inwards = plane.normal.masked_fill(outward, 0).norm(dim=1)
        inside = (plane.x0 > 0) & (plane.x0 < 1)
        search.pool.x[inside] = search.book.inputs[inside] = plane.x0[inside] = 0.5  # so that nothing is clamped
        plane.left = 0.4 * torch.rand_like(plane.left) * inwards**2 / plane.normal.abs().amax(1)
        search.step(ops.search_step_, plane.feedback(search.pool.x), SCHEDULES["deepfool"]._replace(overshoot=1.0))
        assert_close(plane.margin(search.pool.x), torch.zeros(50), torch.float64)
        assert torch.equal(search.pool.x[outward], search.book.inputs[outward])
        distance = (search.pool.x - search.book.inputs).norm(dim=1)
        assert_close(distance, plane.left / inwards, torch.float64)

    @pytest.mark.parametrize("adversarial", [False, True])
    @pytest.mark.parametrize(("grad", "margin"), [(1e-21, 1.0), (1.0, torch.inf), (1.0, 1e38), (3e-22, 1e-3)], ids=str)
    def test_a_boundary_that_is_out_of_sight(self, device, grad, margin, adversarial):
        """The corner of the box, and no NaN where the gradient is 0."""
        search = Search.running(4, (6,), device=device)
        feedback = Feedback.random(search.pool.x, adversarial)
        feedback.margin.fill_(-margin if adversarial else margin)
        search.pool.x.copy_(x := torch.full_like(search.pool.x, 0.5))
        search.book.inputs.copy_(x - 0.25)
        feedback.grad.copy_(grad * torch.tensor([1.0, -1.0, 0.0, 1.0, 1.0, 0.0]))
        search.step(ops.search_step_, feedback, SCHEDULES["deepfool"]._replace(pull_back=1.0))
        ends = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 0.5], device=device)
        assert torch.equal(search.pool.x, (1 - ends if adversarial else ends).expand(4, 6))

    def test_a_sample_that_is_not_adversarial_never_goes_back(self, device):
        """By what a caller calls so: attack_loss has no negative margin there."""
        search = Search.running(4, (6,), device=device, dtype=torch.float64)
        feedback = Feedback.random(search.pool.x)
        feedback.margin.fill_(-1.0)
        check_search_step(ops.search_step_, search, feedback, SCHEDULES["deepfool"], UNBOUNDED)
        ahead = ((search.pool.x - search.book.inputs) * feedback.grad).sum(1)
        assert (ahead > 0).all()


class TestGiven:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.3, 0.4)], ids=str)
    def test_is_the_next_iterate(self, device, dtype, bounds):
        search, schedule = Search.running(7, (3, 4), device=device, dtype=dtype), SCHEDULES["given"]
        for step in range(schedule.steps):
            feedback = Feedback.random(search.pool.x, torch.arange(7, device=device) % 2 == step % 2)
            feedback.grad[0] = 0  # a black image is an iterate like any other
            feedback.adversarial[0] = False
            # None of the originals, at which a search ends.
            search.pool.x[1:] = torch.where(search.pool.x == search.book.inputs, 2, search.pool.x)[1:]
            search.step(ops.search_step_, feedback, schedule, bounds)
            assert torch.equal(search.pool.x, feedback.grad.clamp(*bounds))
            assert (search.book.round_step == step + 1).all()
            assert (search.book.grad_evals == step + 1).all()
            assert (search.book.status == Status.PENDING).all()
        assert (search.book.eps == 0.25).all()

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_an_iterate_that_is_not_finite_is_refused(self, device, value):
        search = Search.running(7, (3, 4), device=device)
        feedback, x = Feedback.random(search.pool.x), search.pool.x.clone()
        feedback.grad[::2, 1, 2] = value
        search.step(ops.search_step_, feedback, SCHEDULES["given"], UNBOUNDED)
        assert (search.book.status[::2] == Status.NO_GRADIENT).all()
        assert (search.book.status[1::2] == Status.PENDING).all()
        assert torch.equal(search.pool.x[::2], x[::2])
        assert torch.equal(search.pool.x[1::2], feedback.grad[1::2])
        assert (search.pool.slots[::2] == -1).all()
        assert (search.book.grad_evals == 1).all()

    def test_the_radius_is_the_callers(self, device):
        search = Search.running(3, (4,), device=device, eps=0)
        search.step(ops.search_step_, Feedback.random(search.pool.x), SCHEDULES["given"])
        assert (search.book.eps == 0).all()


# -------------------------------------------------------------------------------------------------------- registration


def opcheck_attack_loss(device: str):
    logits, labels = draw_logits(5, 4, device=device, dtype=torch.float32)
    for loss in ops.LOSSES:
        yield (logits, labels, loss, 0.5), {}


def opcheck_search_step(device: str):
    running, idle = Search.running(3, (2, 4), device=device), Search.begin(3, 5, (2, 4), device=device)
    for search, rule in [(idle, "pgd"), *((running, rule) for rule in ops.RULES)]:
        flags = torch.arange(3, device=device) == 1
        tensors = fields(search, Feedback.random(search.pool.x, flags))
        pool = [tensors.pop(field) for field in Pool._fields]
        feedback = [tensors.pop(field) for field in vars(Feedback.random(search.pool.x))]
        yield (*pool, *feedback, *tensors.values()), {**SCHEDULES[rule]._asdict(), "low": 0.0, "high": 1.0}


def opcheck_masked_sgd(device: str):
    params = [torch.randn(shape).to(device) for shape in ((3, 4), (5,), ())]
    masks = [torch.rand(param.shape, device=device) < 0.5 for param in params]
    grads, buffers = ([torch.randn_like(param) for param in params] for _ in range(2))
    flags = dict.fromkeys(("maximize", "first", "gradient_only"), False)
    yield (params, grads, buffers, masks, 0.1, 0.9, 0.0, 0.1), {"nesterov": True, **flags}
    yield (params, grads, [], [], 0.1, 0.0, 0.0, 0.1), {"nesterov": False, **flags}


def opcheck_sm_taylor_softmax(device: str):
    for shape, floor in (((5, 4), -math.inf), ((2, 3, 5, 4), 1e-3)):
        logits, labels = torch.randn(shape).to(device), torch.randint(4, (5,)).to(device)
        yield (logits, labels, 4, 0.6, 2.0, floor), {}


OPCHECK = {
    "attack_loss": opcheck_attack_loss,
    "search_step_": opcheck_search_step,
    "masked_sgd_": opcheck_masked_sgd,
    "sm_taylor_softmax": opcheck_sm_taylor_softmax,
}
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
