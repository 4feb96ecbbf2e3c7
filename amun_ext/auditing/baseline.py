"""The baseline of a verdict: what the AUC of an audited model is compared with, and under which attacks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from amun_ext.auditing.attacks import U_LIRA
from amun_ext.auditing.model_signals import ModelSignals
from amun_ext.auditing.references import KIND as REFERENCES
from amun_ext.auditing.shadows import KIND as SHADOWS
from amun_ext.data import Splits
from amun_ext.metrics.auc import AucDifference, auc_difference
from amun_ext.metrics.measures import Observation, attack_auc, summarize_runs

MIN_EXPECTED = 5.0  # ids of a class, for the chi-squared test
UNEVEN = 1e-3  # p-value of the class counts below which a forget set is not a random draw


def why_not_random(splits: Splits, ids: Tensor, random_forget_set: bool) -> str:
    """Why FT AUC of a retrained model need not be 50; empty where it is."""
    from scipy.stats import chisquare  # here, because it takes a second to import

    if not random_forget_set:
        return "the ids are not stated to be a random draw from the training set, so retraining need not give 50"
    labels = splits.train.labels
    classes = int(labels.max()) + 1
    expected = torch.bincount(labels, minlength=classes).double() * len(ids) / len(labels)
    found = torch.bincount(labels[ids], minlength=classes).double()
    few = expected < MIN_EXPECTED  # merged into one group for the test
    groups = [torch.cat([counts[~few], counts[few].sum()[None]]).numpy() for counts in (found, expected)]
    groups = [each[groups[1] > 0] for each in groups]
    p = float(chisquare(*groups).pvalue) if len(groups[0]) > 1 else 1.0
    return "" if p >= UNEVEN else f"the class counts are unlikely for a random draw (p = {p:.1g})"


def attacks_of_verdict(
    audited: Observation, baselines: Sequence[Observation], others: Mapping[str, ModelSignals]
) -> list[str]:
    """The attacks of the verdict: the one of the measures, if it has a baseline, and U-LiRA, if there are shadows."""
    of_shadows = [U_LIRA] if SHADOWS in others else []
    if of_shadows and not baselines and REFERENCES not in others:
        return of_shadows
    return [next(iter(audited.attacks)), *of_shadows]


def difference_to_baseline(
    attack: str,
    audited: Observation,
    baselines: Sequence[Observation],
    others: Mapping[str, ModelSignals],
    objection: str,
) -> tuple[str, AucDifference | None, str]:
    """The name of the AUC, its difference from the baseline, and the baseline; or None and why there is no baseline."""
    area = "FT AUC" if audited.attacks[attack] is audited.scores else f"FT AUC of {attack}"
    ours, *theirs = ((each.attacks[attack]["forget"], each.attacks[attack]["test"]) for each in (audited, *baselines))
    if theirs:
        mean = summarize_runs([attack_auc(each.attacks[attack], "FT") for each in baselines]).value
        several = f"{len(theirs)} retrained models'" if len(theirs) > 1 else "the retrained model's"
        return area, _with_variance(attack, auc_difference(ours, *theirs)), f"{several} {mean:.1f}"
    if not others:
        return area, None, "there is no baseline: no retrained model, references or shadows"
    if objection:
        return area, None, f"there is no retrained model, and {objection}"
    return area, _with_variance(attack, auc_difference(ours)), "50"


def _with_variance(attack: str, difference: AucDifference) -> AucDifference:
    """U-LiRA uses as many test samples as ids, so more ids make both parts of the variance smaller."""
    if attack != U_LIRA:
        return difference
    both = difference.member_variance + difference.nonmember_variance
    return replace(difference, member_variance=both, nonmember_variance=0.0)
