"""The rule by which an audit judges: each answer, at its edges, and how many ids would do."""

import math

import numpy as np
import pytest
from scipy.stats import t

from amun_ext.auditing.verdict import (
    CANNOT_TELL,
    FORGOTTEN,
    NOT_FORGOTTEN,
    OVER_FORGOTTEN,
    Verdict,
    judge,
    required_ids,
    worst,
)
from amun_ext.metrics.auc import AucDifference, auc_difference


def difference(value: float, standard_error: float) -> AucDifference:
    return AucDifference(value, standard_error**2, 0.0)


@pytest.mark.parametrize("freedom", [2.0, 9.0, math.inf])
def test_one_sided_tests_are_at_the_5_percent_level(freedom: float) -> None:
    low, high = judge("FT AUC", AucDifference(1.0, 4.0, 0.0, 0.0, freedom), "50", ids=100).interval
    assert t.cdf((high - 1.0) / 2.0, freedom) == pytest.approx(0.95, abs=1e-9)
    assert (low + high) / 2 == pytest.approx(1.0)


def test_too_few_ids_cannot_tell() -> None:
    """Their variance is hardly known, and may be 0 by chance."""
    seen = judge("FT AUC", AucDifference(0.0, 0.0, 0.0), "50", ids=9)
    assert (seen.answer, seen.required_ids) == (CANNOT_TELL, 10)
    assert judge("FT AUC", AucDifference(0.0, 0.0, 0.0), "50", ids=10).answer == FORGOTTEN


def test_a_retrained_model_is_rarely_called_not_forgotten() -> None:
    """Few ids and few retrained models: at most a tenth of the answers may be not or over-forgotten, without margin."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(600):
        ids, others = 12, 3
        models = [(random.normal(size=ids), random.normal(size=300)) for _ in range(1 + others)]
        answer = judge("FT AUC", auc_difference(*models), "theirs", ids=ids, margin=0.01).answer
        wrong += answer in (NOT_FORGOTTEN, OVER_FORGOTTEN)
    assert wrong / 600 < 0.14  # three deviations above a tenth


@pytest.mark.parametrize(
    ("value", "standard_error", "answer"),
    [
        (0.0, 1.0, FORGOTTEN),
        (3.3, 1.0, FORGOTTEN),
        (3.4, 1.0, CANNOT_TELL),
        (-3.3, 1.0, FORGOTTEN),
        (-3.4, 1.0, CANNOT_TELL),
        (6.6, 1.0, CANNOT_TELL),
        (6.7, 1.0, NOT_FORGOTTEN),
        (-6.6, 1.0, CANNOT_TELL),
        (-6.7, 1.0, OVER_FORGOTTEN),
        (0.0, 3.0, FORGOTTEN),
        (0.0, 3.1, CANNOT_TELL),
        (20.0, 10.0, CANNOT_TELL),
        (0.0, math.nan, CANNOT_TELL),
    ],
)
def test_answers(value: float, standard_error: float, answer: str) -> None:
    verdict = judge("FT AUC", difference(value, standard_error), "50", ids=100)
    assert verdict.answer == answer
    assert "50" in verdict.reason
    assert verdict.difference == value


def test_the_margin_is_an_argument() -> None:
    assert judge("FT AUC", difference(6.7, 1.0), "50", ids=100, margin=10.0).answer == FORGOTTEN
    assert judge("FT AUC", difference(1.0, 1.0), "50", ids=100, margin=2.0).answer == CANNOT_TELL


def test_no_baseline() -> None:
    verdict = judge("FT AUC", None, "there are no references", ids=100)
    assert (verdict.answer, verdict.reason) == (CANNOT_TELL, "there are no references")
    assert all(map(math.isnan, (verdict.difference, *verdict.interval, verdict.required_ids)))


@pytest.mark.parametrize("value", [0.0, 3.0, -4.0, 6.0, -9.0])
@pytest.mark.parametrize("test_variance", [0.0, 0.05])
def test_required_ids_are_the_smallest_number_that_decides(value: float, test_variance: float) -> None:
    def answer(ids: int) -> str:
        return judge("FT AUC", AucDifference(value, 900.0 / ids, test_variance), "50", ids=ids).answer

    count = required_ids(AucDifference(value, 90.0, test_variance), 10)
    assert answer(int(count)) != CANNOT_TELL
    assert answer(int(count) - 1) == CANNOT_TELL


def test_too_few_test_samples_for_any_number_of_ids() -> None:
    assert required_ids(AucDifference(4.0, 90.0, 1.0), 10) == math.inf
    assert required_ids(AucDifference(5.0, 90.0, 0.0), 10) == math.inf


def test_a_model_has_forgotten_where_all_attacks_say_so() -> None:
    said = {
        answer: Verdict(answer, "", 0.0, (0.0, 0.0), 5.0, 1.0)
        for answer in (FORGOTTEN, NOT_FORGOTTEN, OVER_FORGOTTEN, CANNOT_TELL)
    }
    assert worst([said["forgotten"], said["forgotten"]]).answer == "forgotten"
    for answer in ("cannot tell", "over-forgotten", "not forgotten"):
        assert worst([said["forgotten"], said[answer]]).answer == answer
    assert worst([said["cannot tell"], said["not forgotten"], said["over-forgotten"]]).answer == "not forgotten"
