"""KLoM: how far the margins of unlearned models are from those of retrained ones, sample by sample."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from amun_ext.metrics.queries import Array
from amun_ext.validation import require

BINS, FLOOR, CLIP = 20, 1e-5, 100.0  # of the published code


def klom(unlearned: ArrayLike | Tensor, retrained: ArrayLike | Tensor) -> Array:
    """KL divergence of margins [N], in nats: of several unlearned models' from several retrained models'.

    unlearned [M, N] and retrained [R, N] are the margins (`log_odds`) of N samples in M and R models, two or more each,
    with different seeds. For each sample both are clipped to +-100 and counted in 20 bins of equal width from the least
    to the largest of all of them; the result is KL(unlearned || retrained) of the two histograms, where the latter has
    1e-5 at least wherever the former has something. Georgiev et al. 2024 (arXiv 2410.23232), as computed by the
    Data-Unlearning-Bench (RoyRin/data-unlearning-bench), which leaves the largest margin out of its bin; NaN if the
    unlearned models have no other.

    The value depends on the numbers of models: the benchmark has 100 of each. With few, histograms of equal
    distributions differ, and it is as large as 11; compare only values of the same M and R.

    Examples:
        >>> from amun_ext.metrics import klom
        >>> klom([[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]]).tolist()
        [0.0]
    """
    ours, theirs = (_margins(name, each) for name, each in (("unlearned", unlearned), ("retrained", retrained)))
    require(ours.shape[1] == theirs.shape[1], "retrained", f"of the same {ours.shape[1]} samples", theirs.shape[1])
    low = np.minimum(ours.min(0), theirs.min(0))
    high = np.maximum(ours.max(0), theirs.max(0))
    edges = np.linspace(low, np.where(low < high, high, low + 1), BINS + 1)  # [BINS + 1, N]
    p, q = _shares(ours, edges), _shares(theirs, edges)
    q = np.where(p > 0, np.maximum(q, FLOOR), q)
    q /= q.sum(0)
    terms = p * np.log(np.where(p > 0, p, 1) / np.where(p > 0, q, 1))
    divergence: Array = terms.sum(0)
    return divergence


def _margins(name: str, margins: ArrayLike | Tensor) -> Array:
    found = np.asarray(margins.cpu() if isinstance(margins, Tensor) else margins, dtype=np.float64)
    require(found.ndim == 2 and len(found) >= 2, name, "[models, samples] of two or more models", found.shape)
    require(bool(np.isfinite(found).all()), name, "finite", "NaN or infinite margins")
    return found.clip(-CLIP, CLIP)


def _shares(margins: Array, edges: Array) -> Array:
    """Of the margins [M, N] in each bin, [BINS, N]; NaN where there are none."""
    bins: NDArray[np.intp] = (margins[:, None] >= edges).sum(1) - 1  # [M, N]
    counts = np.stack([(bins == number).sum(0) for number in range(BINS)]).astype(np.float64)
    total = counts.sum(0)
    return counts / np.where(total > 0, total, np.nan)
