"""The verdict: an equivalence test with the answers forgotten, not forgotten, over-forgotten and cannot tell.

The FT AUC of the audited model is compared with a baseline: the mean of retrained models on the same samples or, with
reference or shadow models, 50. Two one-sided t-tests at the 5 % level (an equivalence test: Schuirmann 1987) decide
whether the two differ by less than a margin. With few ids the interval is wide and the answer is "cannot tell"; with
fewer than MIN_IDS the interval is not reliable.

"Forgotten" also needs power: a weak attack finds no difference between any two models, so a model that has forgotten
nothing passes the test as well. The same test must detect that the original model was trained on the forget samples
(one-sided, at LEVEL), and the original must not pass. AUC is a mean over samples: if more samples look like members
than chance allows, the answer is "not forgotten".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from amun_ext.auditing.baseline import attacks_of_verdict, difference_to_baseline
from amun_ext.auditing.members import FPR, count_above_test
from amun_ext.auditing.model_signals import ModelSignals
from amun_ext.defaults import EQUIVALENCE_MARGIN
from amun_ext.metrics.auc import AucDifference
from amun_ext.metrics.measures import Observation

LEVEL = 0.95  # each one-sided test is at the 5 % level; both together correspond to the 90 % interval
MIN_IDS = 10
EXCESS = 0.01  # p-value below which more forget samples look like members than chance allows
UNUSUAL = 0.05  # p-value of a retrained model below which the forget samples are atypical

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


def overall_verdict(
    audited: Observation,
    original: Observation | None,
    baselines: Sequence[Observation],
    others: Mapping[str, ModelSignals],
    objection: str,
    *,
    margin: float,
    no_op: str = "",
) -> tuple[Verdict, dict[str, Verdict]]:
    """The verdict, and that of every attack. objection: why 50 is no baseline; no_op: that the model barely changed.

    A model has forgotten if it passes the test of every attack, and one of these tests detects the original.
    """
    ids = len(audited.labels["forget"])
    passed, verdicts = [], {}
    for attack in attacks_of_verdict(audited, baselines, others):

        def verdict(model: Observation, attack: str = attack) -> Verdict:
            return judge(*difference_to_baseline(attack, model, baselines, others, objection), ids=ids, margin=margin)

        found = verdict(audited)
        if found.answer == FORGOTTEN and (too_many := excess(audited, baselines, attack)):
            found = replace(found, answer=NOT_FORGOTTEN, reason=f"{found.reason}, but {too_many}")
        passed.append(found.answer == FORGOTTEN)
        doubt = no_op or why_no_power(None if original is None else verdict(original))
        if passed[-1] and doubt:
            found = replace(found, answer=CANNOT_TELL, reason=f"{found.reason}, but {doubt}", required_ids=math.nan)
        verdicts[attack] = found
    shown = [found for found in verdicts.values() if found.answer == FORGOTTEN]
    return (shown[0] if all(passed) and shown else worst(list(verdicts.values()))), verdicts


def why_no_power(original: Verdict | None) -> str:
    """Why the test does not detect the original model; empty where it does."""
    if original is None:
        return "without the original model nothing shows that a model which has forgotten nothing would fail this test"
    if original.answer == FORGOTTEN:
        return "the original model passes too, so this audit shows nothing"
    if not original.interval[0] > 0:
        low, high = original.interval
        return (
            "the test does not detect that the original model was trained on these samples: it differs by "
            f"{original.difference:+.1f} points, 90 % interval {low:+.1f} to {high:+.1f}"
        )
    return ""


def excess(audited: Observation, baselines: Sequence[Observation], attack: str) -> str:
    """That more forget samples look like members than chance allows; empty otherwise.

    The threshold is that of the test samples, so for samples like them the number is beta-binomial. Where retrained
    models have unusually many as well, the samples are atypical, and there must be more than theirs by Fisher's exact
    test.
    """
    from scipy.stats import betabinom, hypergeom  # here, because it takes a second to import

    forget, test = audited.attacks[attack]["forget"], audited.attacks[attack]["test"]
    ids, count = len(forget), count_above_test(forget, test)
    allowed = int(FPR * len(test) / 100)

    def chance_of(found: int) -> float:
        """The probability of at least `found` such samples."""
        return float(betabinom.sf(found - 1, ids, allowed + 1, len(test) - allowed))

    p = chance_of(count)
    if baselines:
        theirs = [count_above_test(each.attacks[attack]["forget"], each.attacks[attack]["test"]) for each in baselines]
        usual = math.ceil(sum(theirs) / len(theirs))
        if chance_of(usual) < UNUSUAL:
            p = max(p, float(hypergeom.sf(count - 1, 2 * ids, count + usual, ids)))
    if p > EXCESS * (1 - 1e-9):  # tolerates rounding at p = EXCESS
        return ""
    return (
        f"under {attack}, {count} of {ids} forget samples look more like members than 99 % of the test samples, and "
        f"{ids * (allowed + 1) / (len(test) + 1):.1f} are expected by chance (p = {p:.1g})"
    )


def judge(
    area: str, difference: AucDifference | None, against: str, *, ids: int, margin: float = EQUIVALENCE_MARGIN
) -> Verdict:
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


def required_ids(difference: AucDifference, ids: int, margin: float = EQUIVALENCE_MARGIN) -> float:
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
