"""Accuracy and membership inference against closed forms and brute force."""

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from amun_ext import InputError
from amun_ext.metrics import MEASURES, auc, gap, log_odds
from amun_ext.models import accuracy, predict


class Recorder(nn.Module):
    """Logits from the pixels, the mode of every call noted."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
        self.seen = []

    def forward(self, images):
        self.seen.append((self.training, torch.is_grad_enabled(), len(images)))
        return self.features(images)


class Returns(nn.Module):
    """Whatever `answer` makes of a batch."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer(images)


class TestPredict:
    def test_answers_in_batches_in_eval_mode_without_gradients(self):
        model, images = Recorder().train(), torch.rand(5, 1, 2, 3)
        logits = predict(model, images, batch_size=2)
        assert model.seen == [(False, False, 2), (False, False, 2), (False, False, 1)]
        assert logits.dtype == torch.float32
        assert not logits.requires_grad
        torch.testing.assert_close(logits, model.eval().features(images).detach())

    def test_leaves_the_modes_and_buffers_of_every_module(self):
        """Also when it fails."""
        model = Recorder().train()
        model.features[1].eval()  # a frozen layer
        modes = [module.training for module in model.modules()]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for width, outcome in ((6, contextlib.nullcontext()), (7, pytest.raises(RuntimeError))):
            with outcome:
                predict(model, torch.rand(4, width))
            assert [module.training for module in model.modules()] == modes
            assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())

    def test_is_float32_whatever_the_model_computes_in(self):
        assert predict(Returns(lambda x: x.flatten(1).double()), torch.rand(2, 3)).dtype == torch.float32

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda x: x.flatten(), r"model must be .* got shape \(12,\)"),
            (lambda x: x[:1], r"model must be .* got shape \(1, 3\)"),
            (lambda x: x[:, :1], "K >= 2"),
            (lambda x: (x, x), "got tuple"),
            (lambda x: x.log(), "got 12 of 12 not finite"),
        ],
    )
    def test_refuses_what_are_no_logits_and_no_images(self, answer, message):
        with pytest.raises(InputError, match=message):
            predict(Returns(answer), torch.zeros(4, 3))
        with pytest.raises(InputError, match="images must be"):
            predict(Recorder(), torch.rand(0, 6))


class TestAccuracy:
    def test_is_the_percentage_of_right_answers(self):
        logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 2.0], [0.0, 9.0]])
        assert accuracy(logits, torch.tensor([1, 0, 1, 1])) == 75.0

    @pytest.mark.parametrize("labels", [torch.tensor([0, 2]), torch.tensor([0, -1]), torch.tensor([0]), torch.ones(2)])
    def test_refuses_labels_that_do_not_fit(self, labels):
        with pytest.raises(InputError, match="labels must be"):
            accuracy(torch.zeros(2, 2), labels)


class TestLogOdds:
    @pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0, 1e4])
    def test_is_the_closed_form_at_every_scale(self, scale):
        logits, labels = torch.randn(64, 10) * scale, torch.randint(10, (64,))
        expected = []
        for row, label in zip(logits.numpy().astype(np.longdouble), labels.tolist(), strict=True):
            others = np.delete(row, label)
            expected.append(row[label] - others.max() - np.log(np.exp(others - others.max()).sum()))
        np.testing.assert_allclose(log_odds(logits, labels).numpy(), np.array(expected, float), rtol=1e-12, atol=1e-12)

    def test_stays_finite_and_exact_where_the_softmax_is_one_or_zero(self):
        logits = torch.tensor([[3e38, -3e38], [500.0, 0.0]])
        assert log_odds(logits, torch.tensor([0, 1])).tolist() == [2 * float(logits[0, 0]), -500.0]

    @pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
    def test_refuses_logits_that_are_not_finite_and_counts_them(self, bad):
        with pytest.raises(InputError, match="logits must be finite, got 1 of 4 not finite"):
            log_odds(torch.tensor([[0.0, bad], [0.0, 1.0]]), torch.tensor([0, 1]))

    def test_refuses_a_single_class(self):
        with pytest.raises(InputError, match="K >= 2"):
            log_odds(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


def brute_force(members, nonmembers):
    """AUC and DeLong's standard error from all N x M pairs, in percent."""
    wins = np.array([[(m > n) + 0.5 * (m == n) for n in nonmembers] for m in members])
    variance = sum(np.var(wins.mean(axis=axis), ddof=1) / wins.shape[1 - axis] for axis in (0, 1))
    return 100 * wins.mean(), 100 * math.sqrt(variance)


# Few values, so that ties and infinities are common.
scores = st.lists(st.sampled_from([-math.inf, -1.5, 0.0, 1e-300, 2.0, 1e300, math.inf]), min_size=2, max_size=12)


class TestAuc:
    @given(scores, scores)
    def test_is_the_share_of_pairs_and_delongs_error(self, members, nonmembers):
        measured = auc(members, nonmembers)
        assert (measured.value, measured.standard_error) == pytest.approx(brute_force(members, nonmembers))

    @pytest.mark.parametrize(
        ("members", "nonmembers", "value", "error"),
        [
            ([2.0, 3.0], [0.0, 1.0], 100.0, 0.0),
            ([0.0, 1.0], [2.0, 3.0], 0.0, 0.0),
            ([7.0, 7.0], [7.0, 7.0, 7.0], 50.0, 0.0),
            ([0.0, 3.0], [1.0, 2.0], 50.0, 50.0),
        ],
    )
    def test_known_answers(self, members, nonmembers, value, error):
        measured = auc(torch.tensor(members), torch.tensor(nonmembers))
        assert (measured.value, measured.standard_error) == pytest.approx((value, error))

    def test_the_error_is_the_spread_over_repeated_draws(self):
        """But for a chance of 10^-11: the variance of 800 areas follows chi-square."""
        draws = [auc(np.random.normal(0.5, 1, 100), np.random.normal(0, 1, 150)) for _ in range(800)]
        spread = np.std([draw.value for draw in draws], ddof=1)
        assert np.mean([draw.standard_error for draw in draws]) == pytest.approx(spread, rel=0.2)

    @pytest.mark.parametrize(("members", "nonmembers"), [([1.0], [0.0, 2.0]), ([0.0, 2.0], [1.0]), ([1.0], [1.0])])
    def test_has_no_error_for_one_sample_on_a_side(self, members, nonmembers):
        measured = auc(members, nonmembers)
        assert measured.value == 50.0
        assert math.isnan(measured.standard_error)

    @pytest.mark.parametrize("bad", [[], [math.nan], [[1.0]]])
    def test_refuses_no_scores_and_nan(self, bad):
        with pytest.raises(InputError, match=r"^nonmembers must be"):
            auc([1.0], bad)


def test_gap_is_the_papers_mean_over_four_cells():
    row = {"UA": 95.45, "RA": 99.57, "TA": 93.45, "FT AUC": 50.18, "seconds": 1.0}
    retrain = {"UA": 94.49, "RA": 100.0, "TA": 94.33, "FT AUC": 50.0, "seconds": 9.0}
    assert gap(row, retrain) == pytest.approx((0.96 + 0.43 + 0.88 + 0.18) / 4)
    assert [column.name for column in MEASURES if column.in_gap] == ["UA", "RA", "TA", "FT AUC"]
