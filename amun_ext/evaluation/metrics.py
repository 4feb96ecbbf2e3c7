"""The table of an evaluation. A new metric is one function and one row here."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amun_ext.evaluation.mia import FEW, Auc, auc

Row = dict[str, float]  # name of a column -> value; NaN where there is nothing to say


@dataclass(frozen=True, eq=False)
class Observation:
    """One model on every set: accuracy in percent and log-odds of the true class [N], by the name of the set."""

    accuracy: Mapping[str, float]
    log_odds: Mapping[str, NDArray[np.float64]]
    seconds: float  # wall time to produce the model; NaN if unknown


@dataclass(frozen=True)
class Column:
    name: str  # the heading, and the key in a row and in JSON
    explanation: str
    value: Callable[..., float]  # of an Observation (MEASURES); of a row and the baseline's row (COMPARISONS)
    in_gap: bool = False
    digits: int = 1


def gap(row: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Mean of |UA-UA_R|, |RA-RA_R|, |TA-TA_R|, |FT-FT_R|, in points, from the cells of two rows (paper section 3.3)."""
    keys = [column.name for column in MEASURES if column.in_gap]
    return float(np.mean([abs(row[key] - baseline[key]) for key in keys]))


def speed_up(row: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """How many times faster than the baseline; NaN if either time is unknown or nothing was done."""
    return baseline["seconds"] / row["seconds"] if row["seconds"] else math.nan


def forget_auc(seen: Observation) -> Auc:
    """Forget samples as members against test samples as non-members, without reference models (paper section 3.1)."""
    return auc(seen.log_odds["forget"], seen.log_odds["test"])


def forget_error(seen: Observation) -> float:
    area = forget_auc(seen)
    return area.standard_error if area.samples >= FEW else math.nan


CLOSER = "closer to retraining is better"
MEASURES = (
    Column("UA", f"% of the forget set classified correctly; {CLOSER}", lambda seen: seen.accuracy["forget"], True),
    Column("100-UA", "what others call UA: the error on the forget set", lambda seen: 100 - seen.accuracy["forget"]),
    Column("RA", f"% of the retain set classified correctly; {CLOSER}", lambda seen: seen.accuracy["retain"], True),
    Column("TA", f"% of the test set classified correctly; {CLOSER}", lambda seen: seen.accuracy["test"], True),
    Column(
        "FT AUC",
        f"forget against test: chance of more confidence in a forget than in a test sample, %; {CLOSER}",
        lambda seen: forget_auc(seen).value,
        True,
    ),
    Column(
        "FT SE",
        f"standard error of FT AUC (DeLong); a dash where fewer than {FEW} samples would make it too small",
        forget_error,
    ),
    Column("seconds", "wall time to produce the model, search included; less is better", lambda seen: seen.seconds),
)
COMPARISONS = (
    Column("gap", "mean distance of UA, RA, TA and FT AUC from the baseline, points; less is better", gap, digits=2),
    Column("speed-up", "the baseline's seconds over this row's; more is better", speed_up),
)


def table(observations: Mapping[str, Observation], baseline: str | None) -> dict[str, Row]:
    """One row per model: every measure and, where there is a baseline, every comparison with its row."""
    rows = {name: {column.name: column.value(seen) for column in MEASURES} for name, seen in observations.items()}
    if baseline is None:
        return rows
    return {
        name: row | {column.name: column.value(row, rows[baseline]) for column in COMPARISONS}
        for name, row in rows.items()
    }
