"""The rule by which an audit judges: each answer, at its edges, and how many ids would do."""

import math

import pytest
from scipy.stats import norm

from amun_ext.audit.verdict import (
    CANNOT_TELL,
    FORGOTTEN,
    NOT_FORGOTTEN,
    OVER_FORGOTTEN,
    Verdict,
    Z,
    enough,
    judge,
    worst,
)
from amun_ext.evaluation.roc import AucDifference


def difference(value: float, standard_error: float) -> AucDifference:
    return AucDifference(value, standard_error**2, 0.0)


def test_its_tests_are_at_95_percent() -> None:
    assert norm.cdf(Z) == pytest.approx(0.95, abs=1e-5)


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


def test_the_margin_is_the_callers() -> None:
    assert judge("FT AUC", difference(6.7, 1.0), "50", ids=100, margin=10.0).answer == FORGOTTEN
    assert judge("FT AUC", difference(1.0, 1.0), "50", ids=100, margin=2.0).answer == CANNOT_TELL


def test_nothing_to_compare_with() -> None:
    verdict = judge("FT AUC", None, "there are no references", ids=100)
    assert (verdict.answer, verdict.reason) == (CANNOT_TELL, "there are no references")
    assert all(map(math.isnan, (verdict.difference, *verdict.interval, verdict.enough_ids)))


@pytest.mark.parametrize("value", [0.0, 3.0, -4.0, 6.0, -9.0])
@pytest.mark.parametrize("test_variance", [0.0, 0.05])
def test_so_many_ids_decide_and_one_less_does_not(value: float, test_variance: float) -> None:
    def answer(ids: int) -> str:
        return judge("FT AUC", AucDifference(value, 900.0 / ids, test_variance), "50", ids=ids).answer

    count = enough(AucDifference(value, 90.0, test_variance), 10)
    assert answer(int(count)) != CANNOT_TELL
    assert answer(int(count) - 1) == CANNOT_TELL


def test_too_few_test_samples_for_any_number_of_ids() -> None:
    assert enough(AucDifference(4.0, 90.0, 1.0), 10) == math.inf
    assert enough(AucDifference(5.0, 90.0, 0.0), 10) == math.inf


def test_a_model_has_forgotten_where_all_attacks_say_so() -> None:
    said = {
        answer: Verdict(answer, "", 0.0, (0.0, 0.0), 5.0, 1.0)
        for answer in (FORGOTTEN, NOT_FORGOTTEN, OVER_FORGOTTEN, CANNOT_TELL)
    }
    assert worst([said["forgotten"], said["forgotten"]]).answer == "forgotten"
    for answer in ("cannot tell", "over-forgotten", "not forgotten"):
        assert worst([said["forgotten"], said[answer]]).answer == answer
    assert worst([said["cannot tell"], said["not forgotten"], said["over-forgotten"]]).answer == "not forgotten"
