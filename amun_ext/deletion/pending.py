"""Pending requests: a list of samples to forget in one fine-tuning, which the paper calls lazy unlearning.

It is a .csv file with a row for every sample: number and date of the request, fingerprint of the training data, row
number. It contains no names, and row numbers stay those of the training data.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amun_ext.deletion.ids import forget_ids
from amun_ext.deletion.table import columns, first_of, lines_of
from amun_ext.files import write_text
from amun_ext.locks import locked
from amun_ext.reading import read_text
from amun_ext.validation import require

COLUMNS = ("request", "received", "data", "id")
NUMBER = re.compile("[1-9][0-9]{0,8}")
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


@dataclass(frozen=True)
class Pending:
    number: int
    received: str  # date and time in UTC
    ids: tuple[int, ...]


def read(path: Path, data: str, total: int) -> list[Pending]:
    """The requests in the file, none of an empty list. InputError, with the first wrong values, for another file and
    for one of other training data than those with this fingerprint and `total` samples."""
    name = str(path)
    _, lines = columns(
        lines_of(read_text(name, path, "a list of pending requests")), name, [[each] for each in COLUMNS]
    )
    found: dict[tuple[str, str], list[str]] = {}
    for _, (number, received, made_of, row) in lines:
        fits = NUMBER.fullmatch(number) is not None and DATE.fullmatch(received) is not None
        require(fits, f"{name}: request and received", "a number and a date in UTC", first_of([number, received]))
        require(made_of == data, f"{name}: data", "the fingerprint of the training data", first_of([made_of]))
        found.setdefault((number, received), []).append(row)
    repeated = sorted({number for number, _ in found if sum(number == other for other, _ in found) > 1})
    require(not repeated, f"{name}: request", "with one date", first_of(repeated))
    return [
        Pending(int(number), received, tuple(forget_ids(total, ids=",".join(rows)).tolist()))
        for (number, received), rows in found.items()
    ]


def add(path: Path, data: str, total: int, ids: Sequence[int], received: str) -> Pending:
    """Append a request to the list, which is made if there is none."""
    with locked(path.with_name(f".{path.name}.lock"), path):
        before = read(path, data, total) if path.exists() else []
        added = Pending(max((each.number for each in before), default=0) + 1, received, tuple(ids))
        _write(path, data, [*before, added])
    return added


def without(requests: Iterable[Pending], forgotten: Iterable[int]) -> list[Pending]:
    """What is left of the requests; those of which nothing is left are not in it."""
    gone = {*forgotten}
    left = [replace(each, ids=tuple(row for row in each.ids if row not in gone)) for each in requests]
    return [each for each in left if each.ids]


def remove(path: Path, data: str, total: int, done: Sequence[Pending], forgotten: Sequence[int]) -> None:
    """Remove the samples of the requests `done` that are `forgotten` from the list."""
    with locked(path.with_name(f".{path.name}.lock"), path):
        numbers, left = {each.number for each in done}, []
        for each in read(path, data, total):
            left += without([each], forgotten) if each.number in numbers else [each]
        _write(path, data, left)


def _write(path: Path, data: str, requests: Sequence[Pending]) -> None:
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((each.number, each.received, data, row) for each in requests for row in each.ids)
    write_text(path, text.getvalue())
