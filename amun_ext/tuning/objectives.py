"""The objectives of tuning, with and without a retrained model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amun_ext.metrics import MEASURES, gap
from amun_ext.metrics.measures import Values

GUESSING = 50.0


@dataclass(frozen=True)
class Objective:
    column: str  # of a trial's row; the least is the best
    keeps_accuracy: bool  # refuse trials that lose too much of it on held-out data
    explanation: str


OBJECTIVES: Mapping[str, Objective] = {
    "held-out": Objective("expected gap", True, "accuracies and FT AUC match what retraining is expected to give"),
    "retrain": Objective("gap", False, "accuracies and FT AUC match those of a retrained model"),
}
# The columns of a row, by name: what they say, and digits.
COLUMNS: Mapping[str, tuple[str, int]] = {
    **{each.name: (each.explanation.replace("test", "held-out"), each.digits) for each in MEASURES if each.in_gap},
    "KS": ("largest distance between the distributions of log-odds of forget and held-out data, %; less is better", 1),
    "expected gap": (
        "mean distance, in points, of UA and TA from the original's TA, of RA from its RA, of FT AUC from 50, which is "
        "what retraining is expected to give; less is better",
        2,
    ),
    "gap": ("mean distance of UA, RA, TA and FT AUC from those of a retrained model, in points; less is better", 2),
}


def kolmogorov_smirnov(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The two-sample statistic: by how many points the empirical distribution functions differ at most, 0 to 100."""
    at = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (first, second)]
    return 100.0 * float(np.abs(shares[0] - shares[1]).max())


def expected(original: Values) -> Values:
    """What retraining should give, from the original's row: for a retrained model the forget set is held-out data.

    The distance from this ranks trials as the distance from a retrained model does, more closely than the distance
    between the distributions of log-odds (docs/benchmarks/unlearning.md).
    """
    return {"UA": original["TA"], "RA": original["RA"], "TA": original["TA"], "FT AUC": GUESSING}


def objective_row(
    row: Mapping[str, float],
    log_odds: Mapping[str, NDArray[np.float64]],
    original: Values | None,
    retrained: Values | None,
) -> Values:
    """A row of COLUMNS from the report's, and the log-odds of the forget set and of the held-out data ("test")."""
    values = {each.name: row[each.name] for each in MEASURES if each.in_gap}
    values["KS"] = kolmogorov_smirnov(log_odds["forget"], log_odds["test"])
    values["expected gap"] = gap(values, expected(values if original is None else original))
    return values if retrained is None else {**values, "gap": gap(values, retrained)}


def floor(objective: str, original: Values, max_accuracy_drop: float) -> float:
    """The least accuracy on held-out data, in percent, that a trial may have."""
    return original["TA"] - max_accuracy_drop if OBJECTIVES[objective].keeps_accuracy else 0.0
