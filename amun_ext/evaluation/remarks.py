"""Warnings about an unlearned model: barely changed, broken, or still able to tell forgotten from test samples."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from amun_ext.metrics.auc import auc
from amun_ext.metrics.measures import Observation, set_accuracy

UNCHANGED = 0.1  # median change of the log-odds of forget samples, below which a model has barely changed
BROKEN = 5.0  # points of test accuracy below another model's

LogOdds = NDArray[np.float64]  # [N]


def common_remarks(
    after: Observation, before: Observation | None, reference: Observation | None, reference_name: str
) -> dict[str, str]:
    """Kind -> remark, empty where all is well; reference: the model to compare test accuracy with."""
    found = {}
    if before is not None:
        found["no-op"] = no_op(*(model.attacks["confidence"]["forget"] for model in (before, after)))
    if reference is not None:
        ours, others = (set_accuracy(model, "test").value for model in (after, reference))
        found["broken"] = broken(ours, reference_name, others)
    return found


def labelled(remarks: Mapping[str, str]) -> list[str]:
    return [f"{kind}: {remark}" for kind, remark in remarks.items() if remark]


def no_op(before: LogOdds, after: LogOdds) -> str:
    """That two models barely differ on the forget samples; empty otherwise."""
    changed = float(np.median(np.abs(after - before)))
    if changed >= UNCHANGED:
        return ""
    return (
        f"the model barely changed (median change of the forget samples' log-odds {changed:.3g}, "
        f"less than {UNCHANGED:g})"
    )


def broken(accuracy: float, name: str, others: float) -> str:
    """That `accuracy` is much lower than that of the other model `name`, in percent; empty otherwise."""
    lost = others - accuracy
    return f"{lost:.1f} points of test accuracy below the {name} model's {others:.1f} %" if lost > BROKEN else ""


def remembers(before: tuple[LogOdds, LogOdds], after: tuple[LogOdds, LogOdds]) -> str:
    """That the model still distinguishes forget from test samples (a pair per model); empty otherwise.

    It does if the model before does (95 % interval above 50) and over half of that excess of FT AUC is left.
    """
    old, new = auc(*before), auc(*after)
    if old.interval()[0] <= 50 or new.value - 50 <= (old.value - 50) / 2:
        return ""
    return (
        f"FT AUC is {new.value:.1f}, was {old.value:.1f} before, and is 50 for samples that a model has never seen: "
        "less than half of the difference between forgotten and test samples is gone"
    )
