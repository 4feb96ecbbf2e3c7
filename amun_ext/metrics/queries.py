"""The arrays of the attacks with reference models, checked, and how many references were trained on each sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from amun_ext.validation import InputError, require

Array = NDArray[np.float64]

MODES = ("online", "offline")
TOLERANCE = 0.05  # largest difference between groups of the share of references that were trained on a sample


@dataclass(frozen=True, eq=False)
class Queries:
    """Signals of a target model and M references on N samples, with A augmented queries each (or 1)."""

    target: Array  # [A, N]
    reference: Array  # [A, M, N]
    membership: NDArray[np.bool_]  # [M, N], reference m was trained on sample n
    augmented: bool  # whether the arrays came with the axis A

    @cached_property
    def ins(self) -> NDArray[np.intp]:
        """How many references were trained on each sample, [N]."""
        counts: NDArray[np.intp] = self.membership.sum(axis=0)
        return counts

    @property
    def outs(self) -> NDArray[np.intp]:
        """How many were not, [N]."""
        return len(self.membership) - self.ins

    def means(self, of: NDArray[np.bool_]) -> Array:
        """Mean [A, N] of the references that are True in `of` [M, N]; each sample has one at least."""
        means: Array = np.where(of, self.reference, 0.0).sum(axis=1) / of.sum(axis=0)
        return means


def check_queries(
    target: ArrayLike | Tensor,
    reference: ArrayLike | Tensor,
    membership: ArrayLike | Tensor,
    mode: str,
) -> Queries:
    """target [N] or [A, N], reference [M, N] or [A, M, N], membership bool [M, N], as float64 arrays.

    InputError for other shapes, NaN and infinities, a membership that is not bool, fewer than two references online,
    and a sample offline that every reference was trained on.
    """
    require(mode in MODES, "mode", f"one of {MODES}", repr(mode))
    targets, references = _finite("target", target), _finite("reference", reference)
    shape = targets.shape
    require(len(shape) in (1, 2) and targets.size > 0, "target", "[N] or [A, N], not empty", f"shape {shape}")
    fits = references.ndim == len(shape) + 1 and references.shape[:-2] + references.shape[-1:] == shape
    expected = f"[{', '.join(map(str, (*shape[:-1], 'M', shape[-1])))}] for this target, M >= 1"
    require(fits and references.size > 0, "reference", expected, f"shape {references.shape}")
    trained = np.asarray(membership.detach().cpu() if isinstance(membership, Tensor) else membership)
    require(trained.dtype == np.bool_, "membership", "bool", trained.dtype)
    require(trained.shape == references.shape[-2:], "membership", f"of shape {references.shape[-2:]}", trained.shape)
    augmented = len(shape) == 2
    if not augmented:
        targets, references = targets[None], references[None]
    queries = Queries(targets, references, trained, augmented)
    if mode == "online":
        require(len(trained) >= 2, "reference", "of at least 2 models in online mode", len(trained))
    else:
        check_counts(queries.outs, 1, "not trained on it")
    return queries


def check_counts(counts: NDArray[np.intp], least: int, what: str) -> None:
    """Refuse samples with fewer than `least` references that were `what`."""
    few = int((counts < least).sum())
    expected = f"such that every sample has {least} or more references {what}"
    require(few == 0, "membership", expected, f"{few} of {len(counts)} samples with fewer")


def check_rows(name: str, rows: ArrayLike | Tensor, count: int) -> NDArray[np.intp]:
    """`rows` as an array of one or more distinct row numbers in [0, count)."""
    array = np.asarray(rows.detach().cpu() if isinstance(rows, Tensor) else rows)
    fits = array.ndim == 1 and len(array) > 0 and array.dtype.kind in "iu"
    require(fits, name, "row numbers, at least one", f"{array.dtype} of shape {array.shape}")
    low, high = int(array.min()), int(array.max())
    require(low >= 0 and high < count, name, f"row numbers in [0, {count})", f"numbers from {low} to {high}")
    twice = len(array) - np.count_nonzero(np.bincount(array, minlength=count))
    require(twice == 0, name, "row numbers that differ", f"{twice} of {len(array)} again")
    return array.astype(np.intp)


def check_groups(
    groups: Mapping[str, ArrayLike | Tensor] | None, queries: Queries, mode: str, tolerance: float
) -> dict[str, NDArray[np.intp]]:
    """The row numbers of each group; online, groups must have been trained on equally often, within `tolerance`."""
    rows = {name: check_rows(f"groups[{name!r}]", of, len(queries.ins)) for name, of in (groups or {}).items()}
    shares = {name: float(queries.ins[of].mean()) / len(queries.membership) for name, of in rows.items()}
    if mode == "online" and shares:
        # A group that more references were trained on has more confident references: a perfectly retrained model, whose
        # AUC is 50, then seems to have forgotten too much (34 was measured).
        spread = max(shares.values()) - min(shares.values())
        expected = f"in the references' training sets equally often (within {tolerance}) in online mode; offline may do"
        actual = ", ".join(f"{name} {share:.3g}" for name, share in shares.items())
        require(spread <= tolerance, "groups", expected, f"shares {actual}")
    return rows


def _finite(name: str, values: ArrayLike | Tensor) -> Array:
    try:
        array = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError) as error:  # ragged lists, words
        raise InputError(f"{name} must be an array of numbers, got {error}") from error
    broken = array.size - int(np.isfinite(array).sum())
    require(broken == 0, name, "finite", f"{broken} of {array.size} not finite")
    return array
