"""Area under the ROC curve with its error and interval, and rates at low false-positive rates; all in percent."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from amun_ext.validation import check_integer, require

Array = NDArray[np.float64]
Scores = ArrayLike | Tensor

LOW_FPR = (1.0, 0.1)
FEW = 50  # samples on the smaller side, below which DeLong's error is too small
RARE = 5  # the smaller side times the area, or times the rest, below which DeLong's error is too small as well


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve and its standard error, both in percent; 50 is guessing."""

    value: float
    standard_error: float  # NaN if unknown; too small below FEW samples
    samples: int  # on the smaller side

    def interval(self, level: float = 95.0) -> tuple[float, float]:
        """(low, high), percent.

        It is DeLong's, on the logit scale (Pepe 2003), which stays inside 0 and 100. For fewer than FEW samples, and
        for an area near 0 or 100 (see RARE), it is that of Clopper and Pearson (1934) for a proportion of the smaller
        side: a mean of values between 0 and 1 varies at most as a proportion does. It is wide, and covers the area at
        least as often as `level` says (simulated in python_tests/test_roc.py).
        """
        share = self.value / 100
        wins, losses = self.samples * share, self.samples * (1 - share)
        if self.samples >= FEW and min(wins, losses) >= RARE and self.standard_error > 0:
            middle = math.log(share / (1 - share))
            half = NormalDist().inv_cdf(0.5 + level / 200) * self.standard_error / 100 / (share * (1 - share))
            low, high = (100 / (1 + math.exp(-max(end, -700.0))) for end in (middle - half, middle + half))
            return low, high
        from scipy.stats import beta  # here, because it takes a second to import

        tail = 0.5 - level / 200
        low = float(beta.ppf(tail, wins, losses + 1)) if wins > 0 else 0.0
        high = float(beta.ppf(1 - tail, wins + 1, losses)) if losses > 0 else 1.0
        return 100 * low, 100 * high


def auc(members: ArrayLike | Tensor, nonmembers: ArrayLike | Tensor) -> Auc:
    """The chance that one of `members` [N] scores higher than one of `nonmembers` [M], ties counted half.

    Scores may be infinite, not NaN. The standard error is DeLong's; it needs two samples on either side, and is 0 where
    the sides do not overlap, which does not mean that the area is certain.
    """
    ins, outs = _components(as_scores("members", members), as_scores("nonmembers", nonmembers))
    error = math.sqrt(_variance(ins) + _variance(outs))
    return Auc(float(ins.mean()), error, min(len(ins), len(outs)))


def as_scores(name: str, values: ArrayLike | Tensor) -> Array:
    """`values` as float64 [N], possibly infinite. InputError for none, and for NaN."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    require(array.ndim == 1 and len(array) > 0, name, "scores [N], not empty", f"shape {array.shape}")
    require(not np.isnan(array).any(), name, "free of NaN", f"{np.isnan(array).sum()} NaN")
    return array


@dataclass(frozen=True, eq=False)
class Roc:
    """Points of a ROC curve from (0, 0) to (100, 100): scores of `threshold` and more are called members."""

    fpr: Array  # [P] percent of the non-members
    tpr: Array  # [P] percent of the members
    threshold: Array  # [P], falling; the first, above every score, is NaN


@dataclass(frozen=True)
class TprAtFpr:
    """The most members found while at most `fpr` percent of the non-members are called members."""

    fpr: float
    tpr: float  # NaN where `fpr` is below the resolution
    resolution: float  # of one non-member, percent


def roc(members: Scores, nonmembers: Scores) -> Roc:
    """The curve of a score of `members` [N] and `nonmembers` [M], higher for members, possibly infinite."""
    from sklearn.metrics import roc_curve  # here, because it takes a second to import

    ins, outs = as_scores("members", members), as_scores("nonmembers", nonmembers)
    # scikit-learn refuses infinity, so it gets the ranks of the scores
    values, ranks = np.unique(np.concatenate([ins, outs]), return_inverse=True)
    fpr, tpr, cut = roc_curve(np.repeat([1, 0], [len(ins), len(outs)]), ranks, drop_intermediate=False)
    threshold = np.append(math.nan, values[cut[1:].astype(np.intp)])
    return Roc(100.0 * fpr, 100.0 * tpr, threshold)


def tpr_at_fpr(members: Scores, nonmembers: Scores, fprs: Sequence[float] = LOW_FPR) -> list[TprAtFpr]:
    """The true-positive rate at each of `fprs`, percent in (0, 100], without interpolation."""
    for fpr in fprs:
        require(0 < fpr <= 100, "fprs", "percent in (0, 100]", fpr)
    curve, count = roc(members, nonmembers), len(as_scores("nonmembers", nonmembers))
    false = np.rint(curve.fpr * count / 100)
    found = []
    for fpr in fprs:
        allowed = math.floor(fpr * count / 100 * (1 + 1e-9))  # 0.1 % of 1000 is one, whatever 0.1 rounds to
        tpr = float(curve.tpr[false <= allowed].max()) if allowed else math.nan
        found.append(TprAtFpr(fpr, tpr, 100 / count))
    return found


@dataclass(frozen=True)
class AucInterval:
    """An area and two intervals for it, (low, high), percent."""

    value: float
    analytic: tuple[float, float]  # of `Auc.interval`: DeLong's on the logit, or Clopper and Pearson's of few samples
    bootstrap: tuple[float, float]


def auc_interval(
    members: Scores, nonmembers: Scores, *, level: float = 95.0, draws: int = 1000, seed: int = 0
) -> AucInterval:
    """The area of `auc` and intervals that cover it in `level` percent of cases.

    The bootstrap resamples members [N] and non-members [M] `draws` times, each side by itself, and takes the
    percentiles. Neither interval includes the variation between training runs. O(draws (N + M)) time.
    """
    require(0 < level < 100, "level", "percent in (0, 100)", level)
    draws, seed = check_integer("draws", draws, 2), check_integer("seed", seed, 0)
    area = auc(members, nonmembers)
    ins, outs = as_scores("members", members), as_scores("nonmembers", nonmembers)
    ranks = np.unique(np.concatenate([ins, outs]), return_inverse=True)[1]
    random = np.random.default_rng(seed)
    sides, count = (ranks[: len(ins)], ranks[len(ins) :]), int(ranks.max()) + 1
    drawn = [_area(*(_resample(side, count, random) for side in sides)) for _ in range(draws)]
    low, high = np.percentile(drawn, [50 - level / 2, 50 + level / 2]).tolist()
    return AucInterval(area.value, area.interval(level), (low, high))


@dataclass(frozen=True)
class AucDifference:
    """One area less another, percent, and the parts of its variance, NaN for a side of one sample."""

    value: float
    member_variance: float
    nonmember_variance: float
    run_variance: float = 0.0  # between the runs of several others; unknown, and 0, for one
    freedom: float = math.inf  # degrees of freedom of the whole variance (Welch and Satterthwaite)

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.member_variance + self.nonmember_variance + self.run_variance)


def auc_difference(one: tuple[Scores, Scores], *others: tuple[Scores, Scores]) -> AucDifference:
    """Area of `one` less the mean of `others`, or less 50 without any; each is (members [N], nonmembers [M]).

    All score the same samples in the same order. Scores by two models, or attacks, are correlated, so the error of the
    difference is smaller than that of either area; the covariance is DeLong's (1988). A variance of 0 does not mean
    that the difference is certain. Several others, such as models of several runs, add the variance between runs.
    """
    ins, outs = _checked_components("one", one)
    sizes, areas, runs = (len(ins), len(outs)), [50.0], 0.0
    if others:
        of_others = [_checked_components("others", other) for other in others]
        actual = [(len(members), len(nonmembers)) for members, nonmembers in of_others]
        require(set(actual) == {sizes}, "others", f"scores of the same samples, {sizes} of them", actual)
        areas = [float(members.mean()) for members, _ in of_others]
        runs = float(np.var(areas, ddof=1)) / len(areas) if len(areas) > 1 else 0.0
        means = [np.mean(side, axis=0) for side in zip(*of_others, strict=True)]
        ins, outs = ins - means[0], outs - means[1]
    value = float(ins.mean()) - (0.0 if others else 50.0)
    variances = _variance(ins), _variance(outs), runs
    return AucDifference(value, *variances, _freedom(zip(variances, (*sizes, len(areas)), strict=True)))


def _freedom(parts: Iterable[tuple[float, int]]) -> float:
    """Degrees of freedom of a sum of variances, each of the mean of so many values."""
    known = [(variance, count) for variance, count in parts if variance > 0]
    return sum(v for v, _ in known) ** 2 / sum(v**2 / (n - 1) for v, n in known) if known else math.inf


def _variance(values: Array) -> float:
    """Of their mean."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan


def _checked_components(name: str, pair: tuple[Scores, Scores]) -> tuple[Array, Array]:
    return _components(*(as_scores(f"{name}[{side}]", scores) for side, scores in enumerate(pair)))


def _components(members: Array, nonmembers: Array) -> tuple[Array, Array]:
    """What each member and each non-member adds to the area, percent (DeLong's structural components)."""
    return 100.0 * _share_below(members, nonmembers), 100.0 * (1.0 - _share_below(nonmembers, members))


def _share_below(scores: Array, others: Array) -> Array:
    """Share of `others` [M] below each of `scores` [N], ties counted half."""
    others = np.sort(others)
    below, upto = np.searchsorted(others, scores, "left"), np.searchsorted(others, scores, "right")
    return (below + upto) / (2.0 * len(others))


def _resample(ranks: NDArray[np.intp], count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """How often each of `count` ranks is drawn, with replacement."""
    return np.bincount(ranks[random.integers(len(ranks), size=len(ranks))], minlength=count)


def _area(ins: NDArray[np.intp], outs: NDArray[np.intp]) -> float:
    """From how often each rank is among members and non-members; no sort, because there are many draws."""
    below = np.cumsum(outs) - outs / 2
    return 100.0 * float(ins @ below) / (int(ins.sum()) * int(outs.sum()))
