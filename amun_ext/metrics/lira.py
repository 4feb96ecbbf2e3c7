"""LiRA: membership inference by the likelihoods of log-odds under references with and without the sample."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from amun_ext.metrics.queries import Array, Queries, check_counts, check_queries
from amun_ext.validation import require

VARIANCES = ("pooled", "each")


def lira(
    target: ArrayLike | Tensor,
    reference: ArrayLike | Tensor,
    membership: ArrayLike | Tensor,
    *,
    mode: str = "online",
    variance: str = "pooled",
) -> Array:
    """Evidence [N] that the target model was trained on each sample (Carlini et al. 2022, algorithm 1 and section V).

    target [N] is the log-odds of the true class in the target model (`log_odds`), reference [M, N] in the references,
    and membership [M, N] (bool) says which of these were trained on a sample. "online" is the log-likelihood ratio of
    two Gaussians, fitted to the references with and without the sample. "offline" needs the latter only: by how many of
    their standard deviations the target is above their mean. It is one-sided, as in that paper; its published code
    takes the density, which also calls a sample far below the mean a member.

    The variance within a sample is "pooled" over all samples (better with few references) or of "each" sample alone,
    with one degree of freedom less than references. With augmented queries, target [A, N] and reference [A, M, N], the
    evidence is averaged over them.

    InputError for arrays that do not fit together, for a sample with too few references of a kind (two with "each"),
    and for references of a kind that are all equal.
    """
    queries = check_queries(target, reference, membership, mode)
    require(variance in VARIANCES, "variance", f"one of {VARIANCES}", repr(variance))
    least = 2 if variance == "each" else 1
    check_counts(queries.outs, least, "not trained on it")
    outside = _standardised(queries, ~queries.membership, variance)
    evidence = outside[0]
    if mode == "online":
        check_counts(queries.ins, least, "trained on it")
        inside = _standardised(queries, queries.membership, variance)
        evidence = _log_density(*inside) - _log_density(*outside)
    averaged: Array = evidence.mean(axis=0)
    return averaged


def _standardised(queries: Queries, of: NDArray[np.bool_], variance: str) -> tuple[Array, Array]:
    """(target - mean) / s of the references in `of`, [A, N], and s, [A, 1] or [A, N]."""
    mean = queries.means(of)
    squares = np.where(of, (queries.reference - mean[:, None]) ** 2, 0.0).sum(axis=1)  # [A, N]
    freedom = of.sum(axis=0) - 1
    if variance == "pooled":
        require(int(freedom.sum()) > 0, "reference", "two or more models with, or without, some sample", "one for each")
        squares, freedom = squares.sum(axis=1, keepdims=True), freedom.sum()
    flat = int((squares == 0).sum())
    require(flat == 0, "reference", f'answers that differ (variance="{variance}")', f"{flat} of {squares.size} alike")
    spread = np.sqrt(squares / freedom)
    return (queries.target - mean) / spread, spread


def _log_density(z: Array, spread: Array) -> Array:
    return -(z**2) / 2 - np.log(spread)  # the constant cancels
