"""The RMIA score of N samples against Z others: bisection against the matrix of all pairs and against loops.

`rivals()` are the forms in which published code has it, written anew on NumPy; `measure()` checks that all give equal
scores, and then times them. Ours is the whole call of `rmia`, prior, checks and diagnostics included, the rivals get
the ratios ready made.
"""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import microseconds
from numpy.typing import NDArray

from amun_ext.metrics import rmia

Array = NDArray[np.float64]
Score = Callable[[Array, Array, float], Array]  # ratios [N], those of the population [Z], gamma -> counts [N]

AT_ONCE = 512


def full_matrix(ratio: Array, others: Array, gamma: float) -> Array:
    return (ratio[:, None] / others > gamma).sum(axis=1)


def chunked_matrix(ratio: Array, others: Array, gamma: float) -> Array:
    parts = [full_matrix(ratio[start : start + AT_ONCE], others, gamma) for start in range(0, len(ratio), AT_ONCE)]
    return np.concatenate(parts)


def loop(ratio: Array, others: Array, gamma: float) -> Array:
    return np.array([(of / others > gamma).sum() for of in ratio])


def quotient_search(ratio: Array, others: Array, gamma: float) -> Array:
    """As fast as it gets, exact where ratio / gamma is: for powers of two."""
    wanted = ratio / gamma
    order, counts = np.argsort(wanted), np.empty(len(ratio), dtype=np.intp)
    counts[order] = np.searchsorted(np.sort(others), wanted[order], "left")
    return counts


def rivals() -> dict[str, Score]:
    return {
        "full matrix": full_matrix,
        "chunked matrix": chunked_matrix,
        "loop over samples": loop,
        "search for the quotient": quotient_search,
    }


def measure(samples: int = 50_000, population: int = 10_000, repeats: int = 3, gamma: float = 2.0) -> dict[str, Any]:
    """Milliseconds of CPU time (median and best), peak MiB, and both over ours; the full matrix where memory allows."""
    random = np.random.default_rng(0)
    ratio = random.lognormal(0.0, 0.7, samples)
    ratio[1::7] = 2 * ratio[::7][: len(ratio[1::7])]  # pairs that equal gamma
    rows = np.sort(random.permutation(samples)[:population])
    membership = np.arange(samples) % 2 == np.arange(2)[:, None]
    reference = np.ones((2, samples))

    def ours() -> Array:
        return rmia(ratio, reference, membership, gamma=gamma, population=rows).score

    others, forms = ratio[rows], rivals()
    needed = 9 * samples * population  # quotients, and whether they are above
    if available_bytes() < 1.5 * needed:
        del forms["full matrix"]
    works: dict[str, Callable[[], Array]] = {"rmia": ours}
    works |= {name: lambda form=form: form(ratio, others, gamma) for name, form in forms.items()}

    among = np.full(samples, population)
    among[rows] -= 1  # nobody is compared with himself, and exceeds himself by no gamma from 1 on
    peaks, expected = {}, ours()
    for name, work in works.items():
        tracemalloc.start()
        result = work()
        peaks[name] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        assert np.array_equal(result if name == "rmia" else result / among, expected), name
    times = microseconds(works, repeats, calls=1)
    return {
        "samples": samples,
        "population": population,
        "gamma": gamma,
        "repeats": repeats,
        "milliseconds": {name: {key: of / 1000 for key, of in taken.items()} for name, taken in times.items()},
        "peak MiB": peaks,
        "times rmia": {name: taken["median"] / times["rmia"]["median"] for name, taken in times.items()},
        "memory over rmia": {name: peak / peaks["rmia"] for name, peak in peaks.items()},
    }


def available_bytes() -> int:
    """Memory that can be had without swapping, by the kernel's own estimate; 0 where it does not say."""
    source = Path("/proc/meminfo")
    lines = source.read_text().splitlines() if source.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
