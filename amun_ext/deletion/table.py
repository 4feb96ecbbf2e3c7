"""Read tables of samples to forget, strictly: a row that does not fit is refused, not guessed."""

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from amun_ext.validation import SHORT, InputError, require

SHOWN = 5  # values named in one message


def lines_of(text: str) -> io.StringIO:
    """Only \\n, \\r\\n and \\r end one, where str.splitlines would end it at a vertical tab, too."""
    return io.StringIO(text, newline="")


Row = tuple[int, list[str]]  # the number of the line that it begins in, and its cells


def columns(lines: Iterable[str], name: str, known: Sequence[Sequence[str]]) -> tuple[list[str], Iterator[Row]]:
    """For each of `known`, some names of a column, the one that the table has; and the rows with the cells in them.

    InputError, with the number of the line, for a header with a name twice, none or two of those names, a row that has
    not the cells of its header, and a quote that is never closed.
    """
    rows = _rows(lines, name)
    line, header = next(rows, (1, []))
    wanted = " and ".join(f"a column {' or '.join(names)}" for names in known)
    require(bool(header), name, f"a table with {wanted}, and rows", "no rows")
    twice = [column for column, count in Counter(header).items() if count > 1]
    require(not twice, f"{name} line {line}", "a header that has every name once", f"{first_of(twice)} again")
    found = [[column for column in names if column in header] for names in known]
    for there in found:
        require(len(there) < 2, name, "a table with one of these columns", " and ".join(there))
        require(len(there) == 1, name, f"a table with {wanted}", first_of(header))
    chosen = [there[0] for there in found]
    at = [header.index(column) for column in chosen]

    def chosen_cells() -> Iterator[Row]:
        for line, row in rows:
            expected = f"a row of {len(header)} cells, as in the header"
            require(len(row) == len(header), f"{name} line {line}", expected, f"{len(row)}: {first_of(row)}")
            yield line, [row[place] for place in at]

    return chosen, chosen_cells()


def first_of(values: Iterable[Any]) -> str:
    """Some of them, for a message."""
    shown = [SHORT.repr(value) for value in itertools.islice(values, SHOWN + 1)]
    return ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")


def _rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    reader = csv.reader(lines, strict=True)  # else a quote that is never closed takes in all that follows
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{name} line {line} must be a row of a .csv file, got {error}") from error
        if row is None:
            return
        if row:
            yield line, row
