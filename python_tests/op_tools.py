"""What the tests of the ops share: inputs, tolerances, and the comparisons with the twins in plain PyTorch."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from amun_ext import ops, reference
from amun_ext.ops import AttackLoss, Feedback, SampleTable, SlotBatch, Status, StepConfig, accumulate_dtype

# Relative, and absolute for values around one: a few rounding errors of the dtype that is written.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in TOLERANCE]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected.to(actual), rtol=tolerance, atol=tolerance, equal_nan=True)


def directions(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def unaligned(tensor: Tensor) -> Tensor:
    """The same, but beginning where no 16 bytes do."""
    return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)


# -------------------------------------------------------------------------------------------------------- attack_loss


def draw_logits(
    rows: int, classes: int, scale: float = 3.0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    logits = scale * torch.randn(rows, classes, dtype=torch.float64)
    return logits.to(device, dtype), torch.randint(classes, (rows,)).to(device)


def check_attack_loss(logits: Tensor, labels: Tensor, loss: str, min_margin: float = 0.0) -> AttackLoss:
    """The op gives what its twin gives in the same dtype and in float64, and on a GPU what it gives on the CPU."""
    result = ops.attack_loss(logits, labels, loss, min_margin)
    expectations = [reference.attack_loss(wide, labels, loss, min_margin) for wide in (logits, logits.double())]
    if logits.is_cuda:
        expectations.append(ops.attack_loss(logits.cpu(), labels.cpu(), loss, min_margin))
    # The margin is a difference of two logits of the dtype: exact up to the accumulator's rounding.
    # At a tie that the label wins it is a rounding of the logits, in whatever type they are.
    rounding = 2 * torch.finfo(result.margin.dtype).eps * logits.double().abs().amax(1)
    tied = (result.margin > 0) & (result.margin <= rounding) & rounding.isfinite()
    for expected in expectations:
        assert torch.equal(result.adversarial, expected.adversarial.to(logits.device))
        assert torch.equal(result.predicted, expected.predicted.to(logits.device))
        assert (expected.margin.to(rounding)[tied] <= rounding[tied]).all()
        assert_close(result.margin[~tied], expected.margin.to(result.margin)[~tied], accumulate_dtype(logits.dtype))
        assert_close(result.grad_logits, expected.grad_logits, logits.dtype)
    return result


# -------------------------------------------------------------------------------------------------------- search_step_

# Few steps and long ones. Those of ddn are longer than d: where the two could cancel, float32 and float64 would differ.
PGD = StepConfig(
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
DEEPFOOL, EXTERNAL = (PGD._replace(rule=rule, steps=6) for rule in ("deepfool", "external"))
CONFIGS = {config.rule: config for config in (PGD, DDN, DEEPFOOL, EXTERNAL)}
UNBOUNDED = (-torch.inf, torch.inf)


def draw_feedback(x: Tensor, adversarial: Tensor | bool = False) -> Feedback:
    """What a model might say of images [B, ...], none of which is adversarial unless told otherwise."""
    flags = torch.zeros(len(x), dtype=torch.bool, device=x.device) | adversarial
    margin = torch.rand(len(x), dtype=torch.float64).to(x.device) + 0.05
    return Feedback(
        grad=torch.randn(x.shape, dtype=torch.float64).to(x),
        adversarial=flags,
        predicted=torch.randint(10, (len(x),), device=x.device),
        margin=torch.where(flags, -margin, margin).to(accumulate_dtype(x.dtype)),
    )


@dataclass
class Search:
    """Everything that a step works on."""

    batch: SlotBatch
    table: SampleTable
    queue: Tensor
    queue_position: Tensor

    @classmethod
    def begin(
        cls, slots: int, samples: int, shape, queue=None, eps=0.25, device="cpu", dtype=torch.float32
    ) -> "Search":
        """A search about to begin: images in [0, 1], every slot idle, and all samples queued in random order."""
        inputs = torch.rand(samples, *shape, dtype=torch.float64).to(device, dtype)

        def column(dtype: torch.dtype, value: float = 0) -> Tensor:
            return torch.full((samples,), value, dtype=dtype, device=device)

        real = accumulate_dtype(dtype)
        table = SampleTable(
            inputs=inputs,
            labels=torch.randint(10, (samples,)).to(device),
            images=inputs.clone(),
            found_labels=column(torch.int64, -1),
            eps=column(real, eps),
            distance=column(real, torch.inf),
            step_count=column(torch.int32),
            grad_evals=column(torch.int32),
            status=column(torch.int8, Status.PENDING),
        )
        batch = SlotBatch(
            x=torch.rand(slots, *shape, dtype=torch.float64).to(inputs),
            sample_index=torch.full((slots,), -1, device=device),
            slot_labels=torch.full((slots,), -1, device=device),
        )
        queue = torch.randperm(samples) if queue is None else torch.as_tensor(queue, dtype=torch.int64)
        return cls(batch, table, queue.to(device), torch.zeros(1, dtype=torch.int64, device=device))

    @classmethod
    def running(cls, samples: int, shape, **kind) -> "Search":
        """A search with sample b in slot b and nothing queued."""
        search = cls.begin(samples, samples, shape, queue=[], **kind)
        search.batch.sample_index.copy_(torch.arange(samples))
        search.batch.slot_labels.copy_(search.table.labels)
        search.batch.x.copy_(search.table.images)
        return search

    @property
    def idle(self) -> Tensor:
        return self.batch.sample_index < 0

    def copy(self, device=None, double: bool = False) -> "Search":
        def one(tensor: Tensor) -> Tensor:
            dtype = torch.float64 if double and tensor.is_floating_point() else tensor.dtype
            return tensor.to(device, dtype, copy=True)

        lists = SlotBatch(*map(one, self.batch)), SampleTable(*map(one, self.table))
        return Search(*lists, one(self.queue), one(self.queue_position))

    def step(self, feedback: Feedback, config: StepConfig, bounds=(0.0, 1.0), op=None) -> None:
        x = self.batch.x
        grad, adversarial, predicted, margin = (each.to(x.device) for each in feedback)
        feedback = Feedback(grad.to(x), adversarial, predicted, margin.to(accumulate_dtype(x.dtype)))
        op = ops.search_step_ if op is None else op
        op(self.batch, feedback, self.table, self.queue, self.queue_position, config, bounds)

    def tensors(self, feedback: Feedback) -> dict[str, Tensor]:
        """All tensors of a step by name."""
        queue = {"queue": self.queue, "queue_position": self.queue_position}
        return self.batch._asdict() | feedback._asdict() | self.table._asdict() | queue


class Plan:
    """A pretended model: says for each sample as what its search ends, and at which evaluation.

    What is found is adversarial at that evaluation, not at the next, and so on by turns.
    """

    def __init__(self, search: Search, rule: str) -> None:
        samples = len(search.table.inputs)
        sample = torch.arange(samples, device=search.table.inputs.device)
        self.ends_as = 1 + sample % 3  # FOUND, EXHAUSTED, NO_GRADIENT
        self.ends_at = 1 + sample // 3 % 4
        self.rule = rule
        none = [torch.nan if rule == "external" else 0.0, torch.nan, torch.inf, -torch.inf]  # an iterate may be all 0
        self.no_gradient = torch.tensor(none).to(search.table.inputs)[sample // 3 % 4]

    def feedback(self, search: Search) -> Feedback:
        # Drawn per sample and not per slot, because which slot gets which sample is open on a GPU.
        drawn = draw_feedback(search.table.inputs)
        sample, idle = search.batch.sample_index.clamp(min=0), search.idle
        beyond = search.table.grad_evals[sample] + 1 - self.ends_at[sample]
        grad = drawn.grad[sample]
        if self.rule == "external":  # an iterate, of which a few elements are to be clamped
            grad = (1.2 * torch.rand(drawn.grad.shape, dtype=torch.float64) - 0.1).to(grad)[sample]
        # One element at least must point into the box, or the gradient counts as zero against the plan.
        first, x = grad.flatten(1)[:, :1], search.batch.x.flatten(1)[:, :1]
        first.copy_(torch.where(x <= 0, first.abs(), torch.where(x >= 1, -first.abs(), first)))
        spoilt = (beyond >= 0) & (self.ends_as[sample] == Status.NO_GRADIENT)
        grad[spoilt] = 0
        grad.flatten(1)[spoilt, -1] = self.no_gradient[sample][spoilt]
        adversarial = (beyond >= 0) & (beyond % 2 == 0) & (self.ends_as[sample] == Status.FOUND)
        # In few dimensions clamping can lead to the same point again, and rounding would decide whether it is closer.
        kept = search.table.images[sample], search.table.distance[sample]
        again = (search.batch.x == kept[0]).flatten(1).all(1) & kept[1].isfinite()
        adversarial = adversarial & ~again | idle
        margin = torch.where(adversarial, -drawn.margin[sample], drawn.margin[sample])
        grad[idle], margin[idle] = torch.nan, torch.nan  # nobody may look at an idle slot
        return Feedback(grad, adversarial, drawn.predicted[sample], margin)


class Closest:
    """The closest adversarial iterate of each sample, in float64, seen from outside the op."""

    def __init__(self, search: Search) -> None:
        self.images, self.labels = search.table.images.clone(), search.table.found_labels.clone()
        self.distance = torch.full_like(search.table.distance, torch.inf, dtype=torch.float64)
        self.at_once = torch.zeros_like(search.table.grad_evals)  # gradients until an example at distance 0 was seen

    def look(self, search: Search, feedback: Feedback) -> None:
        for slot, sample in enumerate(search.batch.sample_index.tolist()):
            if sample < 0 or not feedback.adversarial[slot]:
                continue
            x = search.batch.x[slot]
            distance = (x.double() - search.table.inputs[sample].double()).norm()
            if distance < self.distance[sample]:
                self.images[sample], self.labels[sample] = x, feedback.predicted[slot]
                self.distance[sample] = distance
                if distance == 0:
                    self.at_once[sample] = search.table.grad_evals[sample] + 1


def assert_same_search(actual: Search, expected: Search, dtype: torch.dtype) -> None:
    """Equal per sample; which slot works on which sample is open."""
    for name, column, column_expected in zip(SampleTable._fields, actual.table, expected.table, strict=True):
        if column.is_floating_point():
            assert_close(column, column_expected, dtype)
        else:
            assert torch.equal(column, column_expected.to(column.device)), name
    order, order_expected = actual.batch.sample_index.argsort(), expected.batch.sample_index.argsort()
    sample = actual.batch.sample_index[order]
    assert torch.equal(sample, expected.batch.sample_index[order_expected].to(sample.device))
    for rows, rows_expected in zip(actual.batch, expected.batch, strict=True):
        assert_close(rows[order][sample >= 0], rows_expected[order_expected].to(rows.device)[sample >= 0], dtype)
    # On a GPU the counter runs past the end of the queue.
    handed_out = (each.queue_position.cpu().clamp(max=len(each.queue)) for each in (actual, expected))
    assert torch.equal(*handed_out)


def check_search_step(search: Search, feedback: Feedback, config: StepConfig, bounds=(0.0, 1.0)) -> None:
    """The op does what its twin does in the same dtype and in float64, on a GPU what it does on the CPU; no more."""
    dtype, before = search.batch.x.dtype, search.copy()
    kept = [tensor.clone() for tensor in feedback]
    search.step(feedback, config, bounds)

    expectations = [(reference.search_step_, before.copy()), (reference.search_step_, before.copy(double=True))]
    if search.queue.is_cuda:
        expectations.append((ops.search_step_, before.copy(device="cpu")))
    for op, expected in expectations:
        expected.step(feedback, config, bounds, op)
        assert_same_search(search, expected, dtype)

    assert torch.equal(search.batch.x[search.idle], before.batch.x[search.idle])
    absent = torch.ones(len(search.table.inputs), dtype=torch.bool, device=search.idle.device)
    absent[before.batch.sample_index[~before.idle]] = False
    for column, column_before in zip(search.table, before.table, strict=True):
        assert torch.equal(column[absent], column_before[absent])
    for name in ("inputs", "labels"):
        assert torch.equal(getattr(search.table, name), getattr(before.table, name))
    assert torch.equal(search.queue, before.queue)
    torch.testing.assert_close(list(feedback), kept, rtol=0, atol=0, equal_nan=True)


def check_whole_search(search: Search, rule: str) -> None:
    """From the first refill to the last example: every step as the twin makes it, every sample's end as planned."""
    config, plan, closest = CONFIGS[rule], Plan(search, rule), Closest(search)
    if rule != "pgd":
        search.table.eps[::2] = 0  # to be estimated; for pgd the number of radii would depend on it
    queued = torch.zeros(len(search.table.inputs), dtype=torch.bool, device=search.queue.device)
    queued[search.queue] = True
    for step in range(100):
        if step and search.idle.all():
            break
        feedback = plan.feedback(search)
        closest.look(search, feedback)
        check_search_step(search, feedback, config)
    assert search.idle.all()

    table, found = search.table, queued & (plan.ends_as == Status.FOUND)
    assert torch.equal(table.status, torch.where(queued, plan.ends_as, Status.PENDING).to(torch.int8))
    # Radii 0.25, 0.425 and 0.5 of two steps each, and the evaluation that shows the last step to be in vain. The other
    # rules take no gradient at the last evaluation.
    all_steps = 7 if rule == "pgd" else config.steps
    ends_early = plan.ends_as == Status.NO_GRADIENT if rule != "pgd" else plan.ends_as != Status.EXHAUSTED
    evaluations = torch.where(ends_early, plan.ends_at, all_steps).to(torch.int32)
    evaluations = torch.where(closest.at_once > 0, closest.at_once, evaluations)
    assert torch.equal(table.grad_evals, evaluations * queued)
    assert torch.equal(table.images, closest.images)
    assert torch.equal(table.found_labels, closest.labels)
    assert_close(table.distance, closest.distance, accumulate_dtype(table.inputs.dtype))
    assert table.distance.isfinite().equal(found)
    # A sample that is misclassified to begin with is its own example.
    assert (table.distance[found & (plan.ends_at == 1)] == 0).all()
