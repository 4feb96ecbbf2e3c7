"""Areas under the ROC curve, their errors and intervals, and curves at low false-positive rates; all in percent."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from amun_ext.validation import check_integer, require

Array = NDArray[np.float64]
Scores = ArrayLike | Tensor

LOW_FPR = (1.0, 0.1)
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


@dataclass(frozen=True, eq=False)
class Roc:
    """Points of a ROC curve from (0, 0) to (100, 100): a member is called so from `threshold` on."""

    fpr: Array  # [P] percent of the non-members
    tpr: Array  # [P] percent of the members
    threshold: Array  # [P], falling; the first is above every score, NaN


@dataclass(frozen=True)
class TprAtFpr:
    """The most members found while at most `fpr` percent of the non-members are called members."""

    fpr: float
    tpr: float  # NaN below the resolution, where it would rest on no non-member at all
    resolution: float  # what one non-member is, percent


def roc(members: Scores, nonmembers: Scores) -> Roc:
    """The curve of a score of `members` [N] and `nonmembers` [M], where higher says member; infinities are scores."""
    from sklearn.metrics import roc_curve  # here, because it takes a second to import

    ins, outs = as_scores("members", members), as_scores("nonmembers", nonmembers)
    # Ranks order as the scores do and are finite where scores are not; scikit-learn refuses infinity.
    values, ranks = np.unique(np.concatenate([ins, outs]), return_inverse=True)
    fpr, tpr, cut = roc_curve(np.repeat([1, 0], [len(ins), len(outs)]), ranks, drop_intermediate=False)
    threshold = np.append(math.nan, values[cut[1:].astype(np.intp)])
    return Roc(100.0 * fpr, 100.0 * tpr, threshold)


def tpr_at_fpr(members: Scores, nonmembers: Scores, fprs: Sequence[float] = LOW_FPR) -> list[TprAtFpr]:
    """The true-positive rate at each of `fprs`, percent in (0, 100], by steps of the curve, not between them."""
    for fpr in fprs:
        require(0 < fpr <= 100, "fprs", "percent in (0, 100]", fpr)
    curve, count = roc(members, nonmembers), len(as_scores("nonmembers", nonmembers))
    false = np.rint(curve.fpr * count / 100)
    answers = []
    for fpr in fprs:
        allowed = math.floor(fpr * count / 100 * (1 + 1e-9))  # 0.1 % of 1000 is one, whatever 0.1 rounds to
        tpr = float(curve.tpr[false <= allowed].max()) if allowed else math.nan
        answers.append(TprAtFpr(fpr, tpr, 100 / count))
    return answers


@dataclass(frozen=True)
class AucInterval:
    """An area and two intervals for it, (low, high), percent."""

    value: float
    analytic: tuple[float, float]  # of `Auc.interval`: DeLong's on the logit, or Clopper and Pearson's of few samples
    bootstrap: tuple[float, float]


def auc_interval(
    members: Scores, nonmembers: Scores, *, level: float = 95.0, draws: int = 1000, seed: int = 0
) -> AucInterval:
    """The area of `auc` and intervals that hold it in `level` percent of cases.

    The bootstrap draws members [N] and non-members [M] anew, each side by itself, `draws` times from `seed`, and takes
    the percentiles. Neither interval sees what another training run would change. O(draws (N + M)) time.
    """
    require(0 < level < 100, "level", "percent in (0, 100)", level)
    draws, seed = check_integer("draws", draws, 2), check_integer("seed", seed, 0)
    area = auc(members, nonmembers)
    ins, outs = as_scores("members", members), as_scores("nonmembers", nonmembers)
    ranks = np.unique(np.concatenate([ins, outs]), return_inverse=True)[1]
    random = np.random.default_rng(seed)
    kinds = int(ranks.max()) + 1
    drawn = [
        _area(_redraw(ranks[: len(ins)], kinds, random), _redraw(ranks[len(ins) :], kinds, random))
        for _ in range(draws)
    ]
    low, high = np.percentile(drawn, [50 - level / 2, 50 + level / 2]).tolist()
    return AucInterval(area.value, area.interval(level), (low, high))


@dataclass(frozen=True)
class AucDifference:
    """One area less another, percent, and its variance as the sum of what each side adds; NaN for one sample there."""

    value: float
    member_variance: float
    nonmember_variance: float
    run_variance: float = 0.0  # of the mean of several others, beyond the samples; unknown, and 0, for one
    freedom: float = math.inf  # degrees of it, of the whole variance (Welch and Satterthwaite)

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.member_variance + self.nonmember_variance + self.run_variance)


def auc_difference(one: tuple[Scores, Scores], *others: tuple[Scores, Scores]) -> AucDifference:
    """Area of `one` less the mean of `others`, each (members [N], nonmembers [M]) in the same order; else less 50.

    Scores of the same samples by two models, or attacks, go up and down together, so the difference is better known
    than either area; the covariance is DeLong's (1988). As there, a variance of 0 says that no spread was seen, not
    certainty. Several others, such as models of several runs, also tell how far one run is from the next.
    """
    ins, outs = _shares("one", one)
    sizes = len(ins), len(outs)
    if not others:
        of_samples = _variance(ins), _variance(outs)
        freedom = _freedom(zip(of_samples, sizes, strict=True))
        return AucDifference(float(ins.mean()) - 50.0, *of_samples, freedom=freedom)
    of_others = [_shares("others", other) for other in others]
    actual = [(len(each[0]), len(each[1])) for each in of_others]
    require(set(actual) == {sizes}, "others", f"scores of the same samples, {sizes} of them", actual)
    areas = [float(each.mean()) for each, _ in of_others]
    runs = float(np.var(areas, ddof=1)) / len(areas) if len(areas) > 1 else 0.0
    ins, outs = (each - np.mean(of, axis=0) for each, of in zip((ins, outs), zip(*of_others, strict=True), strict=True))
    of_samples = _variance(ins), _variance(outs)
    freedom = _freedom(zip((*of_samples, runs), (*sizes, len(areas)), strict=True))
    return AucDifference(float(ins.mean()), *of_samples, runs, freedom)


def _freedom(parts: Iterable[tuple[float, int]]) -> float:
    """Of a sum of variances of means, each of so many."""
    known = [(variance, count) for variance, count in parts if variance > 0]
    return sum(v for v, _ in known) ** 2 / sum(v**2 / (n - 1) for v, n in known) if known else math.inf


def _variance(shares: Array) -> float:
    """Of their mean."""
    return float(shares.var(ddof=1)) / len(shares) if len(shares) > 1 else math.nan


def _shares(name: str, pair: tuple[Scores, Scores]) -> tuple[Array, Array]:
    """What each member and each non-member adds to the area, percent (DeLong's structural components)."""
    ins, outs = (as_scores(f"{name}[{side}]", scores) for side, scores in enumerate(pair))
    return 100.0 * placements(ins, outs), 100.0 * (1.0 - placements(outs, ins))


def _redraw(ranks: NDArray[np.intp], kinds: int, random: np.random.Generator) -> NDArray[np.intp]:
    """As many of `ranks`, with replacement: how often each of `kinds` ranks came."""
    return np.bincount(ranks[random.integers(len(ranks), size=len(ranks))], minlength=kinds)


def _area(ins: NDArray[np.intp], outs: NDArray[np.intp]) -> float:
    """From how often each rank is among members and non-members; without a sort, which a thousand draws feel."""
    below = np.cumsum(outs) - outs / 2
    return 100.0 * float(ins @ below) / (int(ins.sum()) * int(outs.sum()))
