"""The table of signals: each against its formula, and what it refuses."""

import math

import pytest
import torch
from op_tools import DTYPES, draw_logits
from torch import Tensor

from amun_ext import InputError, ops
from amun_ext.metrics import log_odds
from amun_ext.metrics.signals import SIGNALS
from amun_ext.ops import accumulate_dtype


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
    def test_empty_inputs(self, name, shape):
        assert SIGNALS[name](torch.zeros(shape), torch.zeros(shape[-2], dtype=torch.int64)).shape == shape[:-1]

    def test_grows_with_the_confidence(self, name):
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

    def test_other_types(self, name):
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
