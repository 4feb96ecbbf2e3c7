"""The table of measures of a model, with their intervals. A new measure is a function and a row here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amun_ext.metrics.auc import FEW, auc, auc_interval, tpr_at_fpr
from amun_ext.metrics.klom import klom
from amun_ext.metrics.mis import mis, mis_threshold
from amun_ext.metrics.signals import log_odds

Z95 = 1.96
SETS = ("forget", "retain", "test")
PAIRS = {"FT": ("forget", "test"), "FR": ("retain", "forget"), "RT": ("retain", "test")}  # members, non-members
Values = dict[str, float]  # measure -> value, NaN where there is none
Scores = Mapping[str, NDArray[np.float64]]  # set -> [n], higher where a sample looks more like a member


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, NaN if there is none; an AUC may also have a bootstrap interval."""

    value: float
    low: float = math.nan
    high: float = math.nan
    bootstrap: tuple[float, float] = (math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Observation:
    """The logits of one model on every set, and the scores of the attacks on it."""

    logits: Mapping[str, Tensor]  # set -> [n, K] float32
    labels: Mapping[str, Tensor]  # set -> [n]
    attacks: Mapping[str, Scores]  # attack -> its scores; the measures use the first
    seconds: float = math.nan  # wall time to produce the model

    @property
    def scores(self) -> Scores:
        return next(iter(self.attacks.values()))

    def right(self, name: str) -> Tensor:
        return self.logits[name].argmax(1) == self.labels[name]


@dataclass(frozen=True)
class Measure:
    """A row of MEASURES: the name of its column, its explanation, and how it is computed."""

    name: str
    explanation: str
    value: Callable[..., Estimate]  # of an Observation, and of the baseline's if `has_baseline`
    digits: int = 1
    has_baseline: bool = False  # compares the model with a retrained one
    of_several: bool = False  # compares several models with several retrained ones, which `value` takes at once
    has_bootstrap: bool = False  # `value` takes bootstrap=True, for an audit
    in_gap: bool = False
    in_report: bool = False  # a column of `evaluate`, which has quick measures only
    in_audit: bool = True


def set_accuracy(model: Observation, name: str) -> Estimate:
    right = model.right(name)
    return share(int(right.sum()), len(right))


def share(count: int, total: int) -> Estimate:
    """A proportion in percent, with Wilson's interval (1927), which stays inside 0 and 100 %."""
    p, z2 = count / total, Z95**2 / total
    middle, wide = (p + z2 / 2) / (1 + z2), Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total)) / (1 + z2)
    return Estimate(100 * p, 100 * max(0.0, middle - wide), 100 * min(1.0, middle + wide))


def attack_auc(scores: Scores, sets: str, bootstrap: bool = False) -> Estimate:
    """AUC in percent; 50 is guessing. NaN if the attack has no scores for one of the sets.

    The bootstrap interval assumes no normal distribution and takes a second.
    """
    members, others = (scores[name] for name in PAIRS[sets])
    if not len(members) or not len(others):
        return Estimate(math.nan)
    area = auc(members, others)
    drawn = auc_interval(members, others).bootstrap if bootstrap else (math.nan, math.nan)
    return Estimate(area.value, *area.interval(), drawn)


def model_auc(model: Observation, sets: str, bootstrap: bool = False) -> Estimate:
    return attack_auc(model.scores, sets, bootstrap)


def tpr_at(scores: Scores, fpr: float) -> Estimate:
    """Percent of the forget samples called members where `fpr` percent of the test samples are."""
    found = tpr_at_fpr(scores["forget"], scores["test"], [fpr])[0].tpr
    total = len(scores["forget"])
    return Estimate(math.nan) if math.isnan(found) else share(round(found * total / 100), total)


def attack_success(model: Observation, function: Callable[..., float]) -> Estimate:
    """MIS: percent of the forget samples that an attack on one feature calls non-members (paper section 3.2)."""
    by_set = {name: (model.logits[name], model.labels[name]) for name in SETS}
    total = len(model.labels["forget"])
    return share(round(function(**by_set) * total / 100), total)


def divergence(model: Observation, baseline: Observation, name: str, *, jensen_shannon: bool = False) -> Estimate:
    """Mean over a set of KL(baseline || model), or of the Jensen-Shannon divergence, of the predictions, in nats."""
    ours, theirs = (each.logits[name].double().log_softmax(1) for each in (model, baseline))
    if jensen_shannon:
        middle = torch.logaddexp(ours, theirs) - math.log(2)
        each = ((ours.exp() * (ours - middle)).sum(1) + (theirs.exp() * (theirs - middle)).sum(1)) / 2
    else:
        each = (theirs.exp() * (theirs - ours)).sum(1)
    return mean(each.numpy())


def margin_divergence(models: Sequence[Observation], baselines: Sequence[Observation], name: str) -> Estimate:
    """Mean over a set of KLoM; of the samples that have one."""

    def margins(of: Sequence[Observation]) -> Tensor:
        return torch.stack([log_odds(each.logits[name], each.labels[name]) for each in of])

    divergences = klom(margins(models), margins(baselines))
    found = divergences[~np.isnan(divergences)]
    return mean(found) if len(found) else Estimate(math.nan)


def summarize_runs(runs: Sequence[Estimate]) -> Estimate:
    """The mean of several models of a kind, with the range of their intervals, or of their values if they have none."""
    if len(runs) == 1:
        return runs[0]
    low = min(run.value if math.isnan(run.low) else run.low for run in runs)
    high = max(run.value if math.isnan(run.high) else run.high for run in runs)
    middle = float(np.mean([run.value for run in runs]))
    return Estimate(middle, low, high) if low < high else Estimate(middle)


def mean(values: NDArray[np.float64]) -> Estimate:
    middle = float(values.mean())
    wide = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(middle, middle - wide, middle + wide)


def gap(row: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Mean of |UA-UA_R|, |RA-RA_R|, |TA-TA_R|, |FT-FT_R|, in points, from values by measure (paper section 3.3)."""
    names = [measure.name for measure in MEASURES if measure.in_gap]
    return float(np.mean([abs(row[name] - baseline[name]) for name in names]))


def gap_of(model: Observation, baseline: Observation) -> Estimate:
    pair = model, baseline
    return Estimate(gap(*({row.name: row.value(each).value for row in MEASURES if row.in_gap} for each in pair)))


def tug_of_war(model: Observation, baseline: Observation) -> Estimate:
    """ToW = (1 - |dUA|)(1 - |dRA|)(1 - |dTA|), of fractions (Zhao et al. 2024); 1 is like retraining."""
    distances = [abs(set_accuracy(model, name).value - set_accuracy(baseline, name).value) / 100 for name in SETS]
    return Estimate(math.prod(1 - distance for distance in distances))


def speed_up(model: Observation, baseline: Observation) -> Estimate:
    return Estimate(baseline.seconds / model.seconds if model.seconds else math.nan)


def auc_error(model: Observation) -> Estimate:
    area = auc(model.scores["forget"], model.scores["test"])
    return Estimate(area.standard_error if area.samples >= FEW else math.nan)


def measure(
    models: Sequence[Observation],
    baselines: Sequence[Observation],
    measures: Sequence[Measure],
    *,
    detailed: bool = False,
) -> dict[str, Estimate]:
    """The `measures` by name, of one model or several of a kind, and against the baselines if there are any."""
    measured = {}
    for each in measures:
        value = partial(each.value, bootstrap=True) if detailed and each.has_bootstrap else each.value
        if each.of_several:
            if min(len(models), len(baselines)) > 1:
                measured[each.name] = each.value(models, baselines)
        elif not each.has_baseline:
            measured[each.name] = summarize_runs([value(model) for model in models])
        elif baselines:
            measured[each.name] = summarize_runs([value(model, base) for model in models for base in baselines])
    return measured


CLOSER = "closer to retraining is better"
UA, RA, TA = (partial(set_accuracy, name=name) for name in SETS)
FT, FR, RT = (partial(model_auc, sets=sets) for sets in PAIRS)
MEASURES = (
    Measure("UA", f"% of the forget set classified correctly; {CLOSER}", UA, in_gap=True, in_report=True),
    Measure(
        "forget error",
        "100 - UA, which some papers call UA",
        lambda model: Estimate(100 - UA(model).value),
        in_report=True,
        in_audit=False,
    ),
    Measure("RA", f"% of the retain set classified correctly; {CLOSER}", RA, in_gap=True, in_report=True),
    Measure("TA", f"% of the test set classified correctly; {CLOSER}", TA, in_gap=True, in_report=True),
    Measure(
        "FT AUC",
        f"forget against test: chance that a forget sample looks more like a member than a test sample, %; {CLOSER}",
        FT,
        has_bootstrap=True,
        in_gap=True,
        in_report=True,
    ),
    Measure(
        "FT SE",
        f"standard error of FT AUC (DeLong); a dash where fewer than {FEW} samples would make it too small",
        auc_error,
        in_report=True,
        in_audit=False,
    ),
    Measure(
        "FR AUC", "retain against forget samples; 50 for a model that has forgotten nothing", FR, has_bootstrap=True
    ),
    Measure(
        "RT AUC",
        "retain against test samples: how much the model reveals about the samples that it keeps",
        RT,
        has_bootstrap=True,
    ),
    Measure(
        "TPR @ 1 % FPR",
        "% of the forget samples found where 1 % of the test samples are called members; 1 is chance",
        lambda model: tpr_at(model.scores, 1.0),
    ),
    Measure(
        "TPR @ 0.1 % FPR",
        "% found where 0.1 % of the test samples are called members; a dash if the test set is too small",
        lambda model: tpr_at(model.scores, 0.1),
    ),
    Measure(
        "MIS",
        f"% of the forget set that an SVC on the confidence calls non-members, as in older papers; {CLOSER}",
        partial(attack_success, function=mis),
    ),
    Measure(
        "MIS, threshold",
        "MIS with the threshold that best separates retain from test samples",
        partial(attack_success, function=mis_threshold),
    ),
    Measure(
        "seconds",
        "wall time to produce the model, search and mask included; less is better",
        lambda model: Estimate(model.seconds),
        in_report=True,
    ),
    Measure(
        "gap",
        "mean distance of UA, RA, TA and FT AUC from the retrained model's, points; less is better",
        gap_of,
        digits=2,
        has_baseline=True,
        in_report=True,
    ),
    Measure(
        "ToW",
        "(1-|dUA|)(1-|dRA|)(1-|dTA|), where d is the distance from retraining; 1 is best",
        tug_of_war,
        digits=3,
        has_baseline=True,
    ),
    Measure(
        "KL, forget",
        "mean divergence of the predictions on the forget set from the retrained model's, nats; less is better",
        partial(divergence, name="forget"),
        digits=3,
        has_baseline=True,
    ),
    Measure(
        "JS, forget",
        "Jensen-Shannon divergence on the forget set from the retrained model's predictions, at most 0.69",
        partial(divergence, name="forget", jensen_shannon=True),
        digits=3,
        has_baseline=True,
    ),
    Measure(
        "JS, retain",
        "Jensen-Shannon divergence on the retain set",
        partial(divergence, name="retain", jensen_shannon=True),
        digits=3,
        has_baseline=True,
    ),
    Measure(
        "KLoM, forget",
        "divergence of the margins of several models from those of several retrained ones, mean over the forget set, "
        "nats; less is better, but few models alone make it large",
        partial(margin_divergence, name="forget"),
        digits=2,
        of_several=True,
    ),
    Measure(
        "speed-up",
        "seconds of retraining divided by those of the model; more is better",
        speed_up,
        has_baseline=True,
        in_report=True,
    ),
)
REPORT_MEASURES = tuple(each for each in MEASURES if each.in_report)  # the columns of `evaluate`
AUDIT_MEASURES = tuple(each for each in MEASURES if each.in_audit)
