"""A search that the ranks of a process group share: each searches its block of the samples."""

import glob
from collections.abc import Callable
from pathlib import Path

from amun_ext.distributed import blocks, check_same, exchange, gather_rows, rank, world_size
from amun_ext.search.adversarial_set import AdversarialSet
from amun_ext.search.results_file import Rows, open_results
from amun_ext.search.samples import Samples
from amun_ext.validation import require

Counts = tuple[int, int]  # samples without a gradient, samples found in one step
ENDINGS = ("", ".partial")


def search_shared(
    search_rows: Callable[[range, Path | None], tuple[Rows, Counts]],
    samples: Samples,
    out: Path | None,
    metadata: dict[str, str],
) -> tuple[Rows, Counts]:
    """The rows and counts of all ranks, on every rank; `search_rows(own, file)` gives those of one.

    With `out`, each rank writes a file of its own beside it, from which a stopped search resumes, and the first rank
    puts them together. InputError, on every rank, if the ranks' arguments differ.
    """
    check_same(**metadata, samples=samples.fingerprint(), out=out)
    own = blocks(len(samples))[rank()]
    if out is None:
        rows, counts = search_rows(own, None)
        totals = _totals(counts)
        return {name: gather_rows(column, len(samples)) for name, column in rows.items()}, totals
    counts = (0, 0)
    if not exchange(out.exists())[0] and own:  # a rank without samples has no file
        _, counts = search_rows(own, _shard_paths(out)[rank()])
    totals = _totals(counts)
    if rank() == 0:
        _merge(out, samples, metadata)
    exchange()  # the others wait
    return {}, totals


def _totals(counts: Counts) -> Counts:
    first, second = zip(*exchange(counts), strict=True)
    return sum(first), sum(second)


def _shard_paths(out: Path) -> list[Path]:
    return [out.with_name(f"{out.name}.rank-{number}-of-{world_size()}") for number in range(world_size())]


def check_shards(out: Path) -> None:
    """InputError for results of a search by another number of ranks."""
    expected = set() if world_size() == 1 else {f"{path.name}{end}" for path in _shard_paths(out) for end in ENDINGS}
    others = sorted({path.name for path in out.parent.glob(f"{glob.escape(out.name)}.rank-*")} - expected)
    require(not others, "out", "resumed by as many ranks as before, or its other files removed", ", ".join(others))


def _merge(out: Path, samples: Samples, metadata: dict[str, str]) -> None:
    paths = _shard_paths(out)
    with open_results(out, samples, len(samples), metadata) as (rows, _):
        for path, block in zip(paths, blocks(len(samples)), strict=True):
            if path.exists():
                shard = AdversarialSet.load(path)
                for name, column in rows.items():
                    column[block.start : block.stop] = getattr(shard, name)
    for path in paths:
        path.unlink(missing_ok=True)
