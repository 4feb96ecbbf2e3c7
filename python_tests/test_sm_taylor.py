"""sm_taylor_softmax against its twin, values by hand and its own formula in float64; and the table of signals."""

import math

import pytest
import torch
from op_tools import DTYPES, draw_logits
from pairs import pairs
from torch import Tensor

import amun_ext
from amun_ext import InputError, ops, reference
from amun_ext.metrics import log_odds
from amun_ext.metrics.signals import SIGNALS
from amun_ext.ops import accumulate_dtype

ROUNDINGS = 40  # that may add up, of the sizes of what is added
# Around the lanes of a row on a GPU, and where the CPU changes its ways.
CLASSES = [2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 31, 33, 47, 48, 64, 65, 128, 129, 200, 1000, 1003]
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
    def test_is_no_probability_as_published_and_one_where_clamped(self, device, dtype):
        logits, labels = draw_logits(5000, 10, 4.0, device=device, dtype=dtype)
        published, clamped = (ops.sm_taylor_softmax(logits, labels, floor=floor) for floor in (None, 1e-3))
        assert (published < 0).any()
        assert (published > 1).any()
        assert ((clamped > 0) & (clamped <= 1)).all()
        nothing_to_clamp = logits.amin(1) > -1.5
        assert nothing_to_clamp.any()
        assert torch.equal(published[nothing_to_clamp], clamped[nothing_to_clamp])

    @pytest.mark.parametrize(("dtype", "classes", "floor", "spoilt"), pairs(DTYPES, [9, 60], [None, 1e-3], SPOILT))
    def test_a_row_without_an_answer_leaves_the_others_alone(self, backend, dtype, classes, floor, spoilt):
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

    def test_whole_numbers_are_no_logits(self, device):
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


# ------------------------------------------------------------------------------------------------------------ signals


def formula(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    """A signal with its defaults, as the head of amun_ext.metrics.signals has it; logits [N, C], not large."""
    z, rows = logits.double(), torch.arange(len(logits))
    temperature, margin = (2.0, 0.6) if name.startswith(("sm-", "soft-margin")) else (1.0, 0.0)

    def grow(z: Tensor) -> Tensor:
        t = 1 + z + z**2 / 2 + z**3 / 6 if "taylor" in name else z.exp()
        return t.clamp(min=1e-3) if name.endswith("clamped") else t

    own = grow(z[rows, labels] / temperature - margin)
    terms = grow(z / temperature)
    others = terms.sum(1) - terms[rows, labels]
    return (own / others).log() if name == "log-odds" else own / (own + others)


@pytest.mark.parametrize("name", SIGNALS)
class TestSignals:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("classes", [2, 10, 200])
    def test_is_its_formula(self, name, dtype, classes):
        logits, labels = (
            (torch.rand(300, classes, dtype=torch.float64) * 6 - 1.5).to(dtype),
            torch.arange(300) % classes,
        )
        result = SIGNALS[name](logits, labels)
        assert result.dtype == accumulate_dtype(dtype)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(result.double(), formula(name, logits, labels), rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("integer", [torch.int64, torch.int32, torch.uint8], ids=str)
    def test_models_share_the_labels(self, name, integer):
        logits, labels = torch.rand(3, 2, 50, 7), torch.randint(7, (50,))
        result = SIGNALS[name](logits, labels.to(integer))
        assert result.shape == (3, 2, 50)
        for model in ((0, 0), (2, 1)):
            torch.testing.assert_close(result[model], SIGNALS[name](logits[model], labels))

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 4, 5)], ids=str)
    def test_nothing_to_do(self, name, shape):
        assert SIGNALS[name](torch.zeros(shape), torch.zeros(shape[-2], dtype=torch.int64)).shape == shape[:-1]

    def test_is_larger_where_the_model_is_surer(self, name):
        logits = torch.zeros(200, 5)
        logits[:, 2] = torch.linspace(-2, 6, 200)
        signal = SIGNALS[name](logits, torch.full((200,), 2))
        assert (signal.diff() >= 0).all()
        assert signal[-1] > signal[0] + 0.5

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_logits_that_are_not_finite(self, name, bad):
        logits = torch.zeros(2, 3, 4)
        logits[1, 2, 0] = bad
        with pytest.raises(InputError, match="logits must be finite, got 1 of 24 not finite"):
            SIGNALS[name](logits, torch.zeros(3, dtype=torch.int64))

    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            (torch.zeros(3), [0, 0, 0], r"logits must be \[..., N, C\] with C >= 2, got shape \(3,\)"),
            (torch.zeros(2, 3, 1), [0, 0, 0], r"logits must be \[..., N, C\] with C >= 2, got shape \(2, 3, 1\)"),
            (torch.zeros(3, 2).int(), [0, 0, 0], "logits must be floating point, got torch.int32"),
            (torch.zeros(2, 3, 4), [0, 0], r"labels must be of shape \(3,\), one per input, got shape \(2,\)"),
            (torch.zeros(2, 3, 4), [0, 4, 0], r"labels must be in \[0, 4\), got values from 0 to 4"),
            (torch.zeros(2, 3, 4), [0.0, 0.0, 0.0], "labels must be integers, got torch.float32"),
        ],
    )
    def test_wrong_tensors_are_named(self, name, logits, labels, message):
        with pytest.raises(InputError, match=message):
            SIGNALS[name](logits, torch.tensor(labels))

    def test_something_that_is_no_tensor(self, name):
        with pytest.raises(InputError, match=r"logits must be a tensor \[..., N, C\], got list"):
            SIGNALS[name]([[0.0, 1.0]], torch.tensor([0]))


class TestSignalOptions:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
    def test_softmax_is_that_of_torch(self, temperature):
        logits, labels = draw_logits(500, 10)
        expected = (logits.double() / temperature).softmax(1).gather(1, labels[:, None])[:, 0]
        result = SIGNALS["softmax"](logits, labels, temperature=temperature)
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-7)

    def test_log_odds_are_those_of_the_attack_without_references(self):
        logits, labels = draw_logits(200, 10)
        assert torch.equal(SIGNALS["log-odds"](logits.double(), labels), log_odds(logits, labels))

    def test_soft_margin_is_sm_taylor_with_the_whole_series(self):
        logits, labels = draw_logits(200, 10, 0.1, dtype=torch.float64)
        options = {"margin": 0.3, "temperature": 1.5}
        whole = SIGNALS["soft-margin"](logits, labels, **options)
        torch.testing.assert_close(SIGNALS["sm-taylor"](logits, labels, order=8, **options), whole, rtol=1e-5, atol=0)

    def test_soft_margin_does_not_overflow(self):
        logits = torch.tensor([[1000.0, 0.0], [1000.0, 999.0], [0.0, 1000.0], [-1000.0, -1000.0]])
        signal = SIGNALS["soft-margin"](logits, torch.zeros(4, dtype=torch.int64), margin=1.0, temperature=1.0)
        torch.testing.assert_close(signal, torch.tensor([1.0, 0.5, 0.0, 1 / (1 + math.e)]))

    @pytest.mark.parametrize("order", ops.TAYLOR_ORDERS)
    def test_the_options_reach_the_op(self, order):
        logits, labels = draw_logits(100, 10)
        options = {"order": order, "margin": 0.2, "temperature": 3.0}
        plain, clamped = (SIGNALS[name](logits, labels, **options) for name in ("sm-taylor", "sm-taylor-clamped"))
        assert torch.equal(plain, ops.sm_taylor_softmax(logits, labels, **options))
        assert torch.equal(clamped, ops.sm_taylor_softmax(logits, labels, **options, floor=1e-3))
        bare = SIGNALS["taylor"](logits, labels, order=order)
        assert torch.equal(bare, ops.sm_taylor_softmax(logits, labels, order, 0.0, 1.0))

    @pytest.mark.parametrize(
        ("option", "values", "must_be"),
        [
            ("temperature", (0.0, -1.0, math.inf, math.nan), "positive and finite"),
            ("margin", (math.inf, math.nan), "finite"),
            ("order", (1, 9), r"in \[2, 8\]"),
        ],
    )
    def test_wrong_options_are_named(self, option, values, must_be):
        takes = {
            "temperature": ("softmax", "soft-margin", "sm-taylor", "sm-taylor-clamped"),
            "margin": ("soft-margin", "sm-taylor", "sm-taylor-clamped"),
            "order": ("taylor", "sm-taylor", "sm-taylor-clamped"),
        }
        for name in takes[option]:
            for value in values:
                with pytest.raises(InputError, match=f"{option} must be {must_be}, got {value}"):
                    SIGNALS[name](*draw_logits(3, 2), **{option: value})
