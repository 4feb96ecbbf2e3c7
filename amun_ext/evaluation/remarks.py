"""Warnings that need no retrained model: they compare with the model before and with test samples."""

import numpy as np
from numpy.typing import NDArray

from amun_ext.metrics.auc import auc

UNCHANGED = 0.1  # median change of the log-odds of forget samples, below which a model has barely changed
BROKEN = 5.0  # points of test accuracy below another model's

LogOdds = NDArray[np.float64]  # [N]


def no_op(before: LogOdds, after: LogOdds) -> str:
    """That two models barely differ on the forget samples; empty where they do."""
    changed = float(np.median(np.abs(after - before)))
    if changed >= UNCHANGED:
        return ""
    return (
        f"the model barely changed (median change of the forget samples' log-odds {changed:.3g}, "
        f"less than {UNCHANGED:g})"
    )


def broken(accuracy: float, name: str, others: float) -> str:
    """That `accuracy` is lower than that of the other model `name`, in percent; empty where it is not."""
    lost = others - accuracy
    return f"{lost:.1f} points of test accuracy below the {name} model's {others:.1f} %" if lost > BROKEN else ""


def remembers(before: tuple[LogOdds, LogOdds], after: tuple[LogOdds, LogOdds]) -> str:
    """That the model still distinguishes forget (the first of each pair) from test samples; else empty.

    It does if the model before does (95 % interval above 50) and over half of that excess of FT AUC is left.
    """
    old, new = auc(*before), auc(*after)
    if old.interval()[0] <= 50 or new.value - 50 <= (old.value - 50) / 2:
        return ""
    return (
        f"FT AUC is {new.value:.1f}, was {old.value:.1f} before, and is 50 for samples that a model has never seen: "
        "less than half of the difference between forgotten and test samples is gone"
    )
