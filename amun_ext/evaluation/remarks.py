"""What can be seen to have gone wrong without a retrained model: against the model before, and held-out samples."""

import numpy as np
from numpy.typing import NDArray

from amun_ext.metrics.auc import auc

UNCHANGED = 0.1  # median change of the log-odds of forget samples, below which a model has barely changed
BROKEN = 5.0  # points of test accuracy below another model's

LogOdds = NDArray[np.float64]  # [N]


def no_op(before: LogOdds, after: LogOdds) -> str:
    """That two models hardly differ on the forget samples; empty where they do."""
    changed = float(np.median(np.abs(after - before)))
    if changed >= UNCHANGED:
        return ""
    return (
        f"the model barely changed (median change of the forget samples' log-odds {changed:.3g}, "
        f"less than {UNCHANGED:g})"
    )


def broken(accuracy: float, name: str, others: float) -> str:
    """That a model has lost test accuracy, in percent, against another one of that name; empty where it has not."""
    lost = others - accuracy
    return f"{lost:.1f} points of test accuracy below the {name} model's {others:.1f} %" if lost > BROKEN else ""


def remembers(before: tuple[LogOdds, LogOdds], after: tuple[LogOdds, LogOdds]) -> str:
    """That forget samples, the first of each pair, are still told from test samples; empty where they are not.

    Said where the model before clearly tells them apart (95 % interval above 50) and the one after keeps over half.
    """
    old, new = auc(*before), auc(*after)
    if old.interval()[0] <= 50 or new.value - 50 <= (old.value - 50) / 2:
        return ""
    return (
        f"FT AUC is {new.value:.1f} and was {old.value:.1f}, and 50 for samples that a model has never seen: more than "
        "half of what tells the forgotten from test samples is still there"
    )
