"""RMIA: membership inference by likelihood ratios to reference models (Zarifzadeh et al. 2024; paper section 3.1).

For one model the score is monotone in the ratio p(x) / prior(x) of the target model to its references. So the AUC needs
no population and no gamma; the score only has fewer distinct values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from amun_ext.metrics.queries import TOLERANCE, Array, Queries, check_groups, check_queries, check_rows
from amun_ext.validation import require

AGGREGATES = ("mean-log", "vote")
NEAR = 8 * float(np.finfo(np.float64).eps)  # relative; more than the rounding of a quotient and a product together
LEAST, MOST = 1e-150, 1e150  # between which neither of them overflows or loses digits
PAIRS_AT_ONCE = 2**20  # of a vote: 8 MiB of quotients


@dataclass(frozen=True)
class Preset:
    """A signal by name, its options, and keyword arguments of `rmia`."""

    signal: str
    signal_options: Mapping[str, Any]
    arguments: Mapping[str, Any]


AS_PUBLISHED = {"mode": "online", "trim": 0.0, "gamma": 2.0, "population": None, "strict": True}
# "amun" is that of the paper's tables. Its signal is a cubic (order counts the terms), negative for small logits, where
# a ratio is meaningless. "robust" is the same attack on a signal inside (0, 1). It is to be computed in float64, as the
# sigmoid of the log-odds: in float32 it rounds to one for all confident samples.
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "amun": Preset("sm-taylor", {"order": 4, "margin": 0.6, "temperature": 2.0}, AS_PUBLISHED),
        "robust": Preset("softmax", {"temperature": 1.0}, AS_PUBLISHED),
    }
)
DEFAULT_PRESET = "robust"


@dataclass(frozen=True)
class GroupCounts:
    """How many references were trained on the samples of a group: (least, most)."""

    ins: tuple[int, int]
    outs: tuple[int, int]
    share: float  # mean, of the references


@dataclass(frozen=True)
class Diagnostics:
    """Warning signs of an unreliable result; counts are over all samples and augmentations."""

    references: int
    augmentations: int
    ins: tuple[int, int]  # references trained on a sample: least, most
    outs: tuple[int, int]
    groups: dict[str, GroupCounts]
    below_zero: int  # signals of the target that are not probabilities
    above_one: int
    references_below_zero: int
    priors_not_positive: int
    distinct_scores: int


@dataclass(frozen=True, eq=False)
class RmiaResult:
    """Three scores, each higher for members.

    `ratio` [N] is p / prior, infinite where the prior is zero. Of augmented queries it is the geometric
    mean over augmentations, NaN where one of them is negative. `log_ratio` [N] is its logarithm, -inf of zero and NaN
    of a negative ratio. `score` [N] in [0, 1] is the share of other samples whose ratio it exceeds by gamma, NaN if
    there is no other sample.
    """

    ratio: Array
    log_ratio: Array
    score: Array
    diagnostics: Diagnostics


def rmia(
    target: ArrayLike | Tensor,
    reference: ArrayLike | Tensor,
    membership: ArrayLike | Tensor,
    *,
    mode: str = "online",
    a: float = 0.3,
    trim: float = 0.0,
    gamma: float = 2.0,
    population: ArrayLike | Tensor | None = None,
    strict: bool = True,
    groups: Mapping[str, ArrayLike | Tensor] | None = None,
    tolerance: float = TOLERANCE,
    aggregate: str = "mean-log",
) -> RmiaResult:
    """Share of samples z for which p(x)/prior(x) / (p(z)/prior(z)) > gamma (>= unless `strict`), z other than x.

    target [N] is the signal of the true class in the target model, reference [M, N] in the references, and membership
    [M, N] (bool) says which of these were trained on a sample. Signals are probabilities, or any finite numbers;
    `diagnostics` count those that are no probabilities.

    The "online" prior is the mean over all references, with a share `trim` in [0, 0.5) cut at either end. The "offline"
    prior is (1+a)/2 * the mean over those not trained on the sample + (1-a)/2, `a` in [0, 1]. Online, members and
    non-members must have been in the references' training sets equally often: with their rows in `groups`, shares that
    differ by more than `tolerance` are refused.

    `population` are the row numbers of z, None for all. The score is exactly that of the pairwise definition in
    float64, for any signs, in O((N+Z) log Z) time and O(N+Z) memory. A quotient that is NaN exceeds nothing.

    With augmented queries, target [A, N] and reference [A, M, N], `aggregate` is "mean-log" (the score of the geometric
    mean of the ratios, which must be positive) or "vote" (as published: z counts if the ratio is exceeded in more than
    half of the augmentations; O(A N Z) time).

    InputError for arguments that do not fit together, and where signal and prior are both zero.

    Examples:
        >>> from amun_ext import rmia
        >>> target = [0.9, 0.5, 0.2]  # the signal of three samples in the audited model
        >>> reference = [[0.3, 0.5, 0.4], [0.3, 0.5, 0.4]]  # and in two references
        >>> membership = [[True, False, True], [False, True, False]]
        >>> rmia(target, reference, membership, gamma=2.0).score.tolist()  # ratios 3, 1 and 0.5
        [1.0, 0.0, 0.0]
    """
    queries = check_queries(target, reference, membership, mode)
    require(0 < gamma < np.inf, "gamma", "positive and finite", gamma)
    require(0 <= trim < 0.5, "trim", "in [0, 0.5)", trim)
    require(mode == "online" or trim == 0, "trim", "0 in offline mode", trim)
    require(0 <= a <= 1, "a", "in [0, 1]", a)
    require(aggregate in AGGREGATES, "aggregate", f"one of {AGGREGATES}", repr(aggregate))
    count = queries.target.shape[1]
    rows = np.arange(count) if population is None else check_rows("population", population, count)
    named = check_groups(groups, queries, mode, tolerance)

    # offline from p_in = a p_out + (1 - a), and the prior as the mean of both
    offline = mode == "offline"
    priors = (1 + a) / 2 * queries.means(~queries.membership) + (1 - a) / 2 if offline else _online(queries, trim)
    undefined = int(((queries.target == 0) & (priors == 0)).sum())
    require(undefined == 0, "target", "not zero where the prior is zero", f"{undefined} zeros divided by zero")
    with np.errstate(all="ignore"):
        ratios = queries.target / priors  # [A, N]
        log_ratio: Array = np.log(ratios).mean(axis=0)
    ratio = np.exp(log_ratio) if queries.augmented else ratios[0]
    exceeds = _exceeding(gamma, strict)
    if queries.augmented and aggregate == "vote":
        wins, own = _votes(ratios, rows, exceeds)
    else:
        others = count - int(((ratios > 0) & (ratios < np.inf)).all(axis=0).sum()) if queries.augmented else 0
        expected = 'of positive, finite ratios for aggregate="mean-log" ("vote" takes any)'
        require(not others, "target", expected, f"{others} of {count} samples with others")
        wins, own = _exceeded(ratio, ratio[rows], gamma, exceeds), exceeds(ratio, ratio)
    score = _shares(wins, own, rows)
    return RmiaResult(ratio, log_ratio, score, _diagnose(queries, priors, score, named))


def _online(queries: Queries, trim: float) -> Array:
    reference, cut = queries.reference, int(trim * queries.reference.shape[1])
    if cut:
        reference = np.sort(reference, axis=1)[:, cut:-cut]
    prior: Array = reference.mean(axis=1)
    return prior  # [A, N]


Exceeds = Callable[[Array, Array], NDArray[np.bool_]]


def _exceeding(gamma: float, strict: bool) -> Exceeds:
    """The comparison of the definition, with its rounding."""
    compare = np.greater if strict else np.greater_equal

    def exceeds(ratio: Array, other: Array) -> NDArray[np.bool_]:
        with np.errstate(all="ignore"):
            return np.asarray(compare(ratio / other, gamma))

    return exceeds


def _exceeded(ratio: Array, others: Array, gamma: float, exceeds: Exceeds) -> NDArray[np.intp]:
    """How many of `others` [Z] each of `ratio` [N] exceeds.

    Only numbers of equal sign have a positive quotient, that of their magnitudes, so each sign is searched by itself.
    The sign is that of the sign bit, because 1 / -0.0 is -inf.
    """
    counts = np.zeros(len(ratio), dtype=np.intp)
    for negative in (False, True):
        mine = np.signbit(ratio) == negative
        theirs = np.sort(np.abs(others[np.signbit(others) == negative]))
        counts[mine] = _search(np.abs(ratio[mine]), theirs, gamma, exceeds)
    return counts


def _search(values: Array, ordered: Array, gamma: float, exceeds: Exceeds) -> NDArray[np.intp]:
    """How many of `ordered` each of `values` exceeds, none of them negative.

    A search for value / gamma is wrong where that rounds to the other side of an element (gamma 1.1, neighbours in
    floating point). So its count is used only if no element is NEAR; the others are bisected by the predicate itself.
    """
    with np.errstate(all="ignore"):
        limit = values / gamma
        order, counts = np.argsort(limit), np.empty(len(values), dtype=np.intp)
        reached = np.searchsorted(limit[order] * (1 + NEAR), ordered)  # the first limit not below an element
        counts[order] = np.bincount(reached, minlength=len(limit) + 1)[:-1].cumsum()
        sure = (limit > LEAST) & (limit < MOST) & (LEAST < gamma < MOST)
    if len(ordered):
        sure &= (counts == 0) | (ordered[counts - 1] < limit * (1 - NEAR))
    counts[~sure] = _bisect(values[~sure], ordered, exceeds)
    return counts


def _bisect(values: Array, ordered: Array, exceeds: Exceeds) -> NDArray[np.intp]:
    """The same by the predicate alone. Rounding is monotone, so the exceeded elements come first."""
    low, high = np.zeros(len(values), dtype=np.intp), np.full(len(values), len(ordered), dtype=np.intp)
    for _ in range(len(ordered).bit_length()):
        middle = (low + high) // 2
        # once the search has ended, middle is low and may be past the end
        above = exceeds(values, ordered[np.minimum(middle, len(ordered) - 1)]) & (low < high)
        low, high = np.where(above, middle + 1, low), np.where(above, high, middle)
    return low


def _votes(ratios: Array, rows: NDArray[np.intp], exceeds: Exceeds) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """How many of `rows` [Z] each sample exceeds in most augmentations, and whether it exceeds itself in most."""
    times, count = ratios.shape
    wins = np.zeros(count, dtype=np.intp)
    step = max(1, PAIRS_AT_ONCE // len(rows))
    for start in range(0, count, step):
        tile = slice(start, start + step)
        votes = sum(exceeds(of[tile, None], of[None, rows]).astype(np.int32) for of in ratios)  # [step, Z]
        wins[tile] = (2 * votes > times).sum(axis=1)
    return wins, 2 * exceeds(ratios, ratios).sum(axis=0) > times


def _shares(wins: NDArray[np.intp], own: NDArray[np.bool_], rows: NDArray[np.intp]) -> Array:
    within = np.zeros(len(wins), dtype=np.bool_)
    within[rows] = True
    others = len(rows) - within.astype(np.intp)
    return np.where(others > 0, (wins - (own & within)) / np.maximum(others, 1), np.nan)


def _diagnose(queries: Queries, priors: Array, score: Array, groups: dict[str, NDArray[np.intp]]) -> Diagnostics:
    ins, outs = queries.ins, queries.outs
    return Diagnostics(
        references=len(queries.membership),
        augmentations=len(queries.target),
        ins=_range(ins),
        outs=_range(outs),
        groups={
            name: GroupCounts(_range(ins[of]), _range(outs[of]), float(ins[of].mean()) / len(queries.membership))
            for name, of in groups.items()
        },
        below_zero=int((queries.target < 0).sum()),
        above_one=int((queries.target > 1).sum()),
        references_below_zero=int((queries.reference < 0).sum()),
        priors_not_positive=int((priors <= 0).sum()),
        distinct_scores=1 + int((np.diff(np.sort(score)) > 0).sum()),  # np.unique takes twice the time
    )


def _range(counts: NDArray[np.intp]) -> tuple[int, int]:
    return int(counts.min()), int(counts.max())
