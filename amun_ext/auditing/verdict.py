"""The verdict: an equivalence test with the answers forgotten, not forgotten, over-forgotten and cannot tell.

The FT AUC of the audited model is compared with a baseline: the mean of retrained models on the same samples or, with
reference or shadow models, 50. Two one-sided t-tests at the 5 % level (an equivalence test: Schuirmann 1987) decide
whether the two differ by less than a margin. With few ids the interval is wide and the answer is "cannot tell"; with
fewer than MIN_IDS the interval is not reliable.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amun_ext.metrics.auc import AucDifference

MARGIN = 5.0  # points of AUC
LEVEL = 0.95  # each one-sided test is at the 5 % level; both together correspond to the 90 % interval
MIN_IDS = 10

AUDITED, ORIGINAL, RETRAINED = "audited", "original", "retrained"  # models
FORGOTTEN, NOT_FORGOTTEN, OVER_FORGOTTEN, CANNOT_TELL = "forgotten", "not forgotten", "over-forgotten", "cannot tell"


@dataclass(frozen=True)
class Verdict:
    answer: str  # FORGOTTEN, NOT_FORGOTTEN, OVER_FORGOTTEN or CANNOT_TELL
    reason: str  # a sentence
    difference: float  # of FT AUC from the baseline's, points; NaN without a valid baseline
    interval: tuple[float, float]  # of the difference, 90 %
    margin: float
    required_ids: float  # forget samples at which the same difference would decide; inf if none; NaN if unknown


def judge(area: str, difference: AucDifference | None, against: str, *, ids: int, margin: float = MARGIN) -> Verdict:
    """The verdict on the difference of an AUC of `ids` samples from `against`; without one, `against` is the reason."""
    nan = math.nan
    if difference is None:
        return Verdict(CANNOT_TELL, against, nan, (nan, nan), margin, nan)
    value, wide = difference.value, _quantile(difference) * difference.standard_error
    low, high = value - wide, value + wide
    measured = f"{area} differs from {against} by {value:+.1f} points, 90 % interval {low:+.1f} to {high:+.1f}"
    if math.isnan(wide) or ids < MIN_IDS:
        few = f"{area} differs from {against} by {value:+.1f} points, with too few samples for a reliable interval"
        could = nan if math.isnan(wide) else max(required_ids(difference, ids, margin), MIN_IDS)
        return Verdict(CANNOT_TELL, few, value, (low, high), margin, could)
    if -margin < low and high < margin:
        answer, reason = FORGOTTEN, f"{measured}: less than {margin:g}"
    elif low > margin:
        answer, reason = NOT_FORGOTTEN, f"{measured}: more than {margin:g}, the forget samples still look like members"
    elif high < -margin:
        answer = OVER_FORGOTTEN
        reason = f"{measured}: more than {margin:g} below, the forget samples look less like members than unseen ones"
    else:
        answer, reason = CANNOT_TELL, f"{measured}: it may be more or less than {margin:g}"
    return Verdict(answer, reason, value, (low, high), margin, required_ids(difference, ids, margin))


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The joint verdict: "not forgotten" if one attack says so, "forgotten" if all do.

    The second is an intersection-union test, which needs no correction for the number of attacks.
    """
    order = NOT_FORGOTTEN, OVER_FORGOTTEN, CANNOT_TELL, FORGOTTEN
    return min(verdicts, key=lambda each: (order.index(each.answer), -each.required_ids))


def required_ids(difference: AucDifference, ids: int, margin: float = MARGIN) -> float:
    """The number of forget samples that would decide, if the difference stayed the same."""
    left = (
        (abs(abs(difference.value) - margin) / _quantile(difference)) ** 2
        - difference.nonmember_variance
        - difference.run_variance
    )
    return math.ceil(ids * difference.member_variance / left) if left > 0 else math.inf


def _quantile(difference: AucDifference) -> float:
    from scipy.stats import t  # here, because it takes a second to import

    return float(t.ppf(LEVEL, difference.freedom))
