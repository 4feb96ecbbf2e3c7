"""sm_taylor_softmax against its twin, values by hand, and what it refuses."""

import math

import pytest
import torch
from op_tools import DTYPES, draw_logits
from pairs import pairs
from torch import Tensor

import amun_ext
from amun_ext import ops, reference
from amun_ext.ops import accumulate_dtype

ROUNDINGS = 40  # that may add up, of the sizes of what is added
# Around the lanes of a row on a GPU, and where the CPU changes its ways.
CLASSES = [2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 31, 33, 47, 48, 64, 65, 128, 129, 200, 1000, 1003, 1024, 1025, 2051]
SPOILT = ["a NaN at the label", "a NaN elsewhere", "label C", "label -1"]


def error_bound(
    logits: Tensor, labels: Tensor, order: int, margin: float, temperature: float, floor: float | None, want: Tensor
) -> Tensor:
    """Of the result `want`, [..., N] float64: terms of either sign are added, and may leave next to nothing."""
    z = logits.double() / temperature  # [..., N, C]
    index = labels.expand(z.shape[:-1])[..., None]

    def total(z: Tensor, margin: float, absolute: bool) -> Tensor:
        """What stands below the line of the fraction, all its parts taken as positive if `absolute`."""

        def taylor(z: Tensor) -> Tensor:
            powers = [(z.abs() if absolute else z) ** k / math.factorial(k) for k in range(order)]
            return torch.stack(powers).sum(0).clamp(min=-math.inf if floor is None or absolute else floor)

        own = z.gather(-1, index)[..., 0]
        own = own.abs() + abs(margin) if absolute else own - margin
        return taylor(z).scatter(-1, index, 0.0).sum(-1) + taylor(own)

    eps = torch.finfo(accumulate_dtype(logits.dtype)).eps
    return ROUNDINGS * eps * (1 + want.abs()) * total(z, margin, True) / total(z, margin, False).abs()


def check_sm_taylor(
    logits: Tensor,
    labels: Tensor,
    order: int = 4,
    margin: float = 0.6,
    temperature: float = 2.0,
    floor: float | None = None,
) -> Tensor:
    """The op gives what its twin gives in the same dtype and in float64, as far as rounding lets it."""
    rule = (order, margin, temperature, floor)
    result = ops.sm_taylor_softmax(logits, labels, *rule)
    assert result.shape == logits.shape[:-1]
    assert result.dtype == accumulate_dtype(logits.dtype)
    want = reference.sm_taylor_softmax(logits.double(), labels, *rule)
    known = labels.where((labels >= 0) & (labels < logits.shape[-1]), 0)
    bound = error_bound(logits, known, *rule, want)
    for expected in (want, reference.sm_taylor_softmax(logits, labels, *rule).double()):
        assert torch.equal(result.isnan(), expected.isnan())
        assert ((result.double() - expected).abs() <= bound)[~expected.isnan()].all()
    return result


class TestSmTaylorSoftmax:
    @pytest.mark.parametrize(("dtype", "classes"), pairs(DTYPES, CLASSES))
    def test_numbers_of_classes(self, backend, dtype, classes):
        check_sm_taylor(*draw_logits(31, classes, device=backend, dtype=dtype))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "shape",
        [(1, 2), (5000, 10), (300, 201), (5, 700, 10), (2, 3, 40, 7), (7, 90, 60), (0, 10), (3, 0, 10), (0, 3, 10)],
        ids=str,
    )
    def test_shapes(self, backend, dtype, shape):
        logits = (3 * torch.randn(shape, dtype=torch.float64)).to(backend, dtype)
        labels = torch.randint(shape[-1], shape[-2:-1], device=backend)
        check_sm_taylor(logits, labels)

    @pytest.mark.parametrize(("dtype", "floor", "order"), pairs(DTYPES, [None, 1e-3, 0.5], ops.TAYLOR_ORDERS))
    def test_orders(self, backend, dtype, order, floor):
        for classes in (10, 60):
            logits, labels = draw_logits(50, classes, device=backend, dtype=dtype)
            for margin, temperature in ((0.6, 2.0), (-0.4, 1.0), (0.0, 3.0)):
                check_sm_taylor(logits, labels, order, margin, temperature, floor)

    @pytest.mark.parametrize(
        ("row", "rule", "expected"),
        [
            ([2.0, 0.0], {"order": 2}, 3 / 4),
            ([2.0, 0.0], {"order": 3}, 5 / 6),
            ([2.0, 0.0], {"order": 4}, 19 / 22),
            ([2.0, 0.0], {"order": 5}, 7 / 8),
            ([2.0, 0.0], {"order": 4, "margin": 1.0}, 8 / 11),
            ([2.0, 0.0], {"order": 4, "temperature": 2.0}, 8 / 11),
            ([2.0, 1.0, 0.0], {"order": 4, "margin": 2.0}, 3 / 14),  # the margin is the true class's alone
            ([0.0, -3.0], {"order": 4}, -1.0),  # the cubic of -3 is -2
            ([2.0, -3.0], {"order": 4}, 19 / 13),
            ([-3.0, 0.0], {"order": 4}, 2.0),
            ([0.0, -3.0], {"order": 4, "floor": 0.5}, 2 / 3),
            ([-3.0, 0.0], {"order": 4, "floor": 0.5}, 1 / 3),
            ([0.0, -3.0], {"order": 5}, 8 / 19),
        ],
    )
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_by_hand(self, device, dtype, row, rule, expected):
        logits, labels = torch.tensor([row], device=device, dtype=dtype), torch.tensor([0], device=device)
        result = ops.sm_taylor_softmax(logits, labels, **{"margin": 0.0, "temperature": 1.0, **rule})
        assert result.item() == pytest.approx(expected, rel=1e-6)

    def test_defaults_are_those_of_the_paper(self, device):
        logits, labels = draw_logits(50, 10, device=device)
        result = amun_ext.sm_taylor_softmax(logits, labels)
        assert torch.equal(result, ops.sm_taylor_softmax(logits, labels, 4, 0.6, 2.0, None))

    def test_is_the_softmax_where_the_series_has_converged(self, device):
        logits, labels = draw_logits(100, 10, 0.1, device=device, dtype=torch.float64)
        expected = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        for order, converged in ((8, True), (2, False)):
            result = ops.sm_taylor_softmax(logits, labels, order, margin=0.0, temperature=1.0)
            assert torch.allclose(result, expected, rtol=1e-6, atol=0) == converged

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_a_probability_only_if_clamped(self, device, dtype):
        logits, labels = draw_logits(5000, 10, 4.0, device=device, dtype=dtype)
        published, clamped = (ops.sm_taylor_softmax(logits, labels, floor=floor) for floor in (None, 1e-3))
        assert (published < 0).any()
        assert (published > 1).any()
        assert ((clamped > 0) & (clamped <= 1)).all()
        nothing_to_clamp = logits.amin(1) > -1.5
        assert nothing_to_clamp.any()
        assert torch.equal(published[nothing_to_clamp], clamped[nothing_to_clamp])

    @pytest.mark.parametrize(("dtype", "classes", "floor", "spoilt"), pairs(DTYPES, [9, 60], [None, 1e-3], SPOILT))
    def test_a_row_with_nan_does_not_change_the_others(self, backend, dtype, classes, floor, spoilt):
        logits, labels = draw_logits(50, classes, device=backend, dtype=dtype)
        expected = ops.sm_taylor_softmax(logits, labels, floor=floor)
        rows = torch.arange(50, device=backend) % 3 == 1
        if "NaN" in spoilt:
            logits[rows, labels[rows] if "label" in spoilt else (labels[rows] + 1) % classes] = torch.nan
        else:
            labels[rows] = classes if spoilt == "label C" else -1
        result = check_sm_taylor(logits, labels, floor=floor)
        assert result[rows].isnan().all()
        assert torch.equal(result[~rows], expected[~rows])

    def test_a_label_far_out_of_range(self, device):
        labels = torch.tensor([2**62, -(2**63)], device=device)
        assert ops.sm_taylor_softmax(torch.zeros(2, 10, device=device), labels).isnan().all()

    @pytest.mark.parametrize("classes", [2, 10, 33, 1003])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_row_does_not_depend_on_its_neighbours(self, device, dtype, classes):
        logits, labels = draw_logits(70, classes, device=device, dtype=dtype)
        each = [ops.sm_taylor_softmax(logits[i : i + 1], labels[i : i + 1]) for i in range(70)]
        assert torch.equal(torch.cat(each), ops.sm_taylor_softmax(logits, labels))

    @pytest.mark.parametrize("classes", [2, 10, 60])
    def test_leading_dimensions_share_the_labels(self, device, classes):
        logits, labels = torch.randn(3, 4, 700, classes).to(device), torch.randint(classes, (700,)).to(device)
        result = ops.sm_taylor_softmax(logits, labels)
        for i in range(3):
            for j in range(4):
                assert torch.equal(result[i, j], ops.sm_taylor_softmax(logits[i, j], labels))

    @pytest.mark.parametrize("classes", [10, 60])
    def test_any_layout(self, device, classes):
        logits, labels = draw_logits(12, classes, device=device)
        expected = ops.sm_taylor_softmax(logits, labels)
        wide = torch.zeros(12, 2 * classes, device=device)
        wide[:, ::2] = logits
        sparse_labels = labels.repeat_interleave(2)[::2]
        for same in (logits.t().contiguous().t(), wide[:, ::2]):
            assert not same.is_contiguous()
            assert torch.equal(ops.sm_taylor_softmax(same, sparse_labels), expected)
        models = logits.expand(4, 12, classes)
        assert torch.equal(ops.sm_taylor_softmax(models, labels), expected.expand(4, 12))
        one_row = ops.sm_taylor_softmax(logits[:1].expand(5, classes), labels[:1].expand(5))
        assert torch.equal(one_row, expected[:1].expand(5))
        samples_first = models.transpose(0, 1).contiguous().transpose(0, 1)
        assert torch.equal(ops.sm_taylor_softmax(samples_first, labels), expected.expand(4, 12))

    def test_changes_nothing(self, device):
        logits, labels = draw_logits(40, 10, device=device)
        before = logits.clone(), labels.clone()
        ops.sm_taylor_softmax(logits, labels)
        assert torch.equal(logits, before[0])
        assert torch.equal(labels, before[1])

    @pytest.mark.parametrize("floor", [None, 1e-3])
    def test_compiles_without_a_graph_break(self, device, floor):
        def scored(images: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            return 2 * ops.sm_taylor_softmax(images @ weight, labels, floor=floor)

        arguments = torch.randn(2, 6, 8).to(device), torch.randn(8, 5).to(device), torch.randint(5, (6,)).to(device)
        compiled = torch.compile(scored, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(*arguments), scored(*arguments))

    def test_refuses_logits_that_require_grad(self, device):
        logits, labels = draw_logits(4, 3, device=device)
        with pytest.raises(RuntimeError, match="logits must not require grad: the signal has no gradient"):
            ops.sm_taylor_softmax(logits.requires_grad_(), labels)
        assert not ops.sm_taylor_softmax(logits.detach(), labels).requires_grad

    @pytest.mark.parametrize(
        ("shape", "labels", "message"),
        [
            ((3,), [0, 0, 0], r"logits must have shape \[..., N, C\], got \[3\]"),
            ((2, 3, 1), [0, 0, 0], r"at least two classes .*, got \[2, 3, 1\]"),
            ((3, 2), [0.0, 0.0, 0.0], "labels must have dtype Long, got Float"),
            ((4, 3, 2), [0, 0, 0, 0], r"labels must have shape \[3\], got \[4\]"),
            ((4, 3, 2), [[0, 0, 0]], r"labels must have shape \[3\], got \[1, 3\]"),
        ],
    )
    def test_wrong_tensors_are_named(self, device, shape, labels, message):
        with pytest.raises(RuntimeError, match=message):
            ops.sm_taylor_softmax(torch.zeros(shape, device=device), torch.tensor(labels, device=device))

    def test_integer_logits_are_refused(self, device):
        logits, labels = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)
        with pytest.raises(RuntimeError, match=r"logits must be float32, .*, got Int"):
            ops.sm_taylor_softmax(logits.to(device), labels.to(device))

    @pytest.mark.parametrize(
        ("option", "values", "must_be"),
        [
            ("order", (-1, 0, 1, 9), r"in \[2, 8\]"),
            ("margin", (math.nan, math.inf), "finite"),
            ("temperature", (0.0, -1.0, math.inf, math.nan), "positive and finite"),
            ("floor", (0.0, -1.0, math.inf, math.nan), "positive and finite, or -inf for none"),
        ],
    )
    def test_wrong_options_are_named(self, device, option, values, must_be):
        logits, labels = draw_logits(3, 2, device=device)
        for value in values:
            with pytest.raises(RuntimeError, match=f"{option} must be {must_be}, got"):
                ops.sm_taylor_softmax(logits, labels, **{option: value})
