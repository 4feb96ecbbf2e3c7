"""What is measured on a model, with an interval. A new measure is one function and one row here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amun_ext.evaluation.mia import auc
from amun_ext.evaluation.mis import mis, mis_threshold
from amun_ext.evaluation.roc import auc_interval, tpr_at_fpr

Z95 = 1.96
AUDITED, ORIGINAL, RETRAINED = "audited", "original", "retrained"  # models
SETS = ("forget", "retain", "test")
COMPARED = {"FT": ("forget", "test"), "FR": ("retain", "forget"), "RT": ("retain", "test")}  # members, non-members
Scores = Mapping[str, NDArray[np.float64]]  # set -> [n], higher where a sample looks more like a member


@dataclass(frozen=True)
class Number:
    """A value and its 95 % interval, NaN where there is none; of an area also that of a bootstrap of the samples."""

    value: float
    low: float = math.nan
    high: float = math.nan
    bootstrap: tuple[float, float] = (math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Seen:
    """One model on every set."""

    logits: Mapping[str, Tensor]  # set -> [n, K] float32
    labels: Mapping[str, Tensor]  # set -> [n]
    attacks: Mapping[str, Scores]  # attack -> its scores; the first is that of the measures
    seconds: float = math.nan  # wall time to produce the model

    @property
    def scores(self) -> Scores:
        return next(iter(self.attacks.values()))

    def right(self, name: str) -> Tensor:
        return self.logits[name].argmax(1) == self.labels[name]


@dataclass(frozen=True)
class Measure:
    """`value` is of a model and, for what is compared, of the baseline as well."""

    name: str
    explanation: str
    value: Callable[..., Number]
    digits: int = 1


def accuracy(seen: Seen, name: str) -> Number:
    right = seen.right(name)
    return share(int(right.sum()), len(right))


def share(count: int, total: int) -> Number:
    """A proportion in percent, with Wilson's interval (1927), which holds no impossible values at 0 and at 100 %."""
    p, z2 = count / total, Z95**2 / total
    middle, wide = (p + z2 / 2) / (1 + z2), Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total)) / (1 + z2)
    return Number(100 * p, 100 * max(0.0, middle - wide), 100 * min(1.0, middle + wide))


def attack_auc(scores: Scores, sets: str) -> Number:
    """Percent, with its interval; 50 is a coin. NaN for an attack that does not tell of both sets."""
    members, others = COMPARED[sets]
    if not len(scores[members]) or not len(scores[others]):
        return Number(math.nan)
    area = auc(scores[members], scores[others])
    return Number(area.value, *area.interval())


def drawn_auc(scores: Scores, sets: str) -> Number:
    """The same with a bootstrap interval beside it: it needs no normal distribution, and takes a second."""
    found = attack_auc(scores, sets)
    if math.isnan(found.value):
        return found
    members, others = COMPARED[sets]
    return replace(found, bootstrap=auc_interval(scores[members], scores[others]).bootstrap)


def low_fpr(scores: Scores, fpr: float) -> Number:
    """Percent of the forget samples found where `fpr` percent of the test samples are called members."""
    found = tpr_at_fpr(scores["forget"], scores["test"], [fpr])[0].tpr
    total = len(scores["forget"])
    return Number(math.nan) if math.isnan(found) else share(round(found * total / 100), total)


def inference_success(seen: Seen, function: Callable[..., float]) -> Number:
    """MIS: percent of the forget samples that an attack on one feature calls non-members (paper section 3.2)."""
    by_set = {name: (seen.logits[name], seen.labels[name]) for name in SETS}
    total = len(seen.labels["forget"])
    return share(round(function(**by_set) * total / 100), total)


def divergence(seen: Seen, baseline: Seen, name: str, *, jensen_shannon: bool = False) -> Number:
    """Mean over a set of KL(baseline || model), or of the Jensen-Shannon divergence, of the predictions, in nats."""
    ours, theirs = (model.logits[name].double().log_softmax(1) for model in (seen, baseline))
    if jensen_shannon:
        middle = torch.logaddexp(ours, theirs) - math.log(2)
        each = ((ours.exp() * (ours - middle)).sum(1) + (theirs.exp() * (theirs - middle)).sum(1)) / 2
    else:
        each = (theirs.exp() * (theirs - ours)).sum(1)
    return mean(each.numpy())


def together(runs: Sequence[Number]) -> Number:
    """Of several models of one kind: the mean, and the range of their intervals, or of their values without any."""
    if len(runs) == 1:
        return runs[0]
    low, high = (min(_end(run.low, run) for run in runs), max(_end(run.high, run) for run in runs))
    middle = float(np.mean([run.value for run in runs]))
    return Number(middle, low, high) if low < high else Number(middle)


def _end(end: float, run: Number) -> float:
    return run.value if math.isnan(end) else end


def mean(values: NDArray[np.float64]) -> Number:
    middle = float(values.mean())
    wide = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Number(middle, middle - wide, middle + wide)


def gap(seen: Seen, baseline: Seen) -> Number:
    """Mean distance of UA, RA, TA and FT AUC, in points (paper section 3.3)."""
    of = [[*(accuracy(model, name) for name in SETS), attack_auc(model.scores, "FT")] for model in (seen, baseline)]
    return Number(float(np.mean([abs(ours.value - theirs.value) for ours, theirs in zip(*of, strict=True)])))


def tug_of_war(seen: Seen, baseline: Seen) -> Number:
    """ToW = (1 - |dUA|)(1 - |dRA|)(1 - |dTA|), of fractions (Zhao et al. 2024); 1 is like retraining."""
    distances = [abs(accuracy(seen, name).value - accuracy(baseline, name).value) / 100 for name in SETS]
    return Number(math.prod(1 - distance for distance in distances))


def speed_up(seen: Seen, baseline: Seen) -> Number:
    return Number(baseline.seconds / seen.seconds if seen.seconds else math.nan)


CLOSER = "closer to retraining is better"
MEASURES = (
    Measure("UA", f"% of the forget set classified correctly; {CLOSER}", lambda seen: accuracy(seen, "forget")),
    Measure("RA", f"% of the retain set classified correctly; {CLOSER}", lambda seen: accuracy(seen, "retain")),
    Measure("TA", f"% of the test set classified correctly; {CLOSER}", lambda seen: accuracy(seen, "test")),
    Measure(
        "FT AUC",
        f"forget against test: chance that a forget sample looks more like a member, %; {CLOSER}",
        lambda seen: drawn_auc(seen.scores, "FT"),
    ),
    Measure(
        "FR AUC",
        "the same of retain against forget samples; 50 for a model that has forgotten nothing",
        lambda seen: drawn_auc(seen.scores, "FR"),
    ),
    Measure(
        "RT AUC",
        "the same of retain against test samples: how much the model tells of what it keeps",
        lambda seen: drawn_auc(seen.scores, "RT"),
    ),
    Measure(
        "TPR at 1 %",
        "% of the forget samples found where 1 % of the test samples are called members; 1 is chance",
        lambda seen: low_fpr(seen.scores, 1.0),
    ),
    Measure(
        "TPR at 0.1 %",
        "the same at 0.1 %; a dash where the test set is too small to tell",
        lambda seen: low_fpr(seen.scores, 0.1),
    ),
    Measure(
        "MIS",
        f"% of the forget set that an SVC on the confidence calls non-members, as older papers have it; {CLOSER}",
        lambda seen: inference_success(seen, mis),
    ),
    Measure(
        "MIS, threshold",
        "the same with the threshold that tells retain from test samples best",
        lambda seen: inference_success(seen, mis_threshold),
    ),
    Measure("seconds", "wall time to produce the model, search and mask included", lambda seen: Number(seen.seconds)),
)
COMPARISONS = (
    Measure("gap", "mean distance of UA, RA, TA and FT AUC from retraining, points; less is better", gap, 2),
    Measure("ToW", "(1-|UA|)(1-|RA|)(1-|TA|) of the distances from retraining; 1 is best", tug_of_war, 3),
    Measure(
        "KL, forget",
        "mean divergence of the predictions on the forget set from the retrained model's, nats; less is better",
        lambda seen, baseline: divergence(seen, baseline, "forget"),
        3,
    ),
    Measure(
        "JS, forget",
        "the same by Jensen and Shannon, at most 0.69",
        lambda seen, baseline: divergence(seen, baseline, "forget", jensen_shannon=True),
        3,
    ),
    Measure(
        "JS, retain",
        "that of the retain set",
        lambda seen, baseline: divergence(seen, baseline, "retain", jensen_shannon=True),
        3,
    ),
    Measure("speed-up", "retraining's seconds over the model's; more is better", speed_up),
)
