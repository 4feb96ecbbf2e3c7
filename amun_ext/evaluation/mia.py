"""Membership inference by the confidence in the true class, without reference models."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from amun_ext.evaluation import signals
from amun_ext.validation import require


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p_y / (1 - p_y)) of the true class, [N] float64, as z_y - logsumexp of the other logits (paper section 7).

    logits [N, K] finite, K >= 2; labels [N] in [0, K). Taken from the logits because 1 - p_y rounds to zero where the
    softmax saturates: finite logits give finite log-odds.
    """
    shaped = logits.dim() == 2 and logits.shape[1] >= 2
    require(shaped, "logits", "[N, K] with K >= 2", f"shape {tuple(logits.shape)}")
    return signals.log_odds(logits.double(), labels)


FEW = 50  # samples on a side, below which DeLong's error is too small


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve and its standard error, both in percent; 50 is a coin, the error is NaN if unknown.

    samples: how many there are on the smaller side. The error is to be believed from FEW on.
    """

    value: float
    standard_error: float
    samples: int

    def interval(self, level: float = 95.0) -> tuple[float, float]:
        """(low, high), percent, from one sample on.

        DeLong's from FEW samples on, on the scale of the logit (Pepe 2003), which keeps it inside 0 and 100 and holds
        near the ends. Of fewer samples, and at an end, that of Clopper and Pearson (1934), as if the area were a share
        of the smaller side: what a sample adds lies between 0 and 1, and a share is the most that such a mean can
        spread. It is wide, and holds the area at least as often as it says (simulated in python_tests/test_roc.py).
        """
        if self.samples >= FEW and 0 < self.value < 100 and self.standard_error > 0:
            share = self.value / 100
            middle = math.log(share / (1 - share))
            half = NormalDist().inv_cdf(0.5 + level / 200) * self.standard_error / 100 / (share * (1 - share))
            low, high = (100 / (1 + math.exp(-max(end, -700.0))) for end in (middle - half, middle + half))
            return low, high
        from scipy.stats import beta  # here, because it takes a second to import

        tail, wins = 0.5 - level / 200, self.samples * self.value / 100
        losses = self.samples - wins
        low = float(beta.ppf(tail, wins, losses + 1)) if wins > 0 else 0.0
        high = float(beta.ppf(1 - tail, wins + 1, losses)) if losses > 0 else 1.0
        return 100 * low, 100 * high


def auc(members: ArrayLike | Tensor, nonmembers: ArrayLike | Tensor) -> Auc:
    """How well a score tells `members` [N] from `nonmembers` [M]: the chance that a member scores higher, ties half.

    Scores may be infinite, not NaN. The standard error is DeLong's; it needs two samples on either side, and is 0 where
    the sides do not overlap (it sees no spread there, which is not certainty).
    """
    from sklearn.metrics import roc_auc_score  # here, because it takes a second to import

    sides = (as_scores("members", members), as_scores("nonmembers", nonmembers))
    # Ranks order as the scores do and are finite where scores are not; scikit-learn refuses infinity.
    ranks = np.unique(np.concatenate(sides), return_inverse=True)[1]
    ins, outs = ranks[: len(sides[0])], ranks[len(sides[0]) :]
    truth = np.repeat([1, 0], [len(ins), len(outs)])
    variance = placements(ins, outs).var(ddof=1) / len(ins) if len(ins) > 1 else math.nan
    variance += placements(outs, ins).var(ddof=1) / len(outs) if len(outs) > 1 else math.nan
    area = 100.0 * float(roc_auc_score(truth, ranks))
    return Auc(area, 100.0 * math.sqrt(variance), min(len(ins), len(outs)))


def as_scores(name: str, values: ArrayLike | Tensor) -> NDArray[np.float64]:
    """`values` as float64 [N]; refuses no scores and NaN, infinities are scores."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    require(array.ndim == 1 and len(array) > 0, name, "scores [N], not empty", f"shape {array.shape}")
    require(not np.isnan(array).any(), name, "free of NaN", f"{np.isnan(array).sum()} NaN")
    return array


def placements(scores: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """Share of `others` [M] below each of `scores` [N], ties half."""
    others = np.sort(others)
    below, upto = np.searchsorted(others, scores, "left"), np.searchsorted(others, scores, "right")
    return (below + upto) / (2.0 * len(others))
