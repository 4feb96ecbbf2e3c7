"""Find the samples of a request by key, by the SHA-256 of their files, or by group, such as a person."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from amun_ext.deletion.ids import COLUMNS as IDS
from amun_ext.deletion.table import columns, first_of, lines_of
from amun_ext.files import file_digest
from amun_ext.reading import read_text
from amun_ext.validation import SHORT, InputError, listed, require

KEY, SHA256, GROUP = "key", "sha256", "group"
COLUMNS = (KEY, SHA256, GROUP)


def keys_of(total: int, names: Sequence[str] | None) -> Sequence[str]:
    """What samples are known by: the names of their files, or else their row numbers, "row N"."""
    return [f"row {row}" for row in range(total)] if names is None else names


def check_not_forgotten(rows: Iterable[int], forgotten: Iterable[int], keys: Sequence[str]) -> None:
    """InputError with the keys of the rows that an earlier request has forgotten."""
    again = [keys[row] or f"row {row}" for row in sorted({*rows} & {*forgotten})]
    require(not again, "ids", "not forgotten by an earlier request", listed(again))


def named_rows(
    path: Path, keys: Sequence[str], *, folder: Path | None = None, groups: Path | None = None
) -> list[int] | None:
    """The rows of the samples that a .csv file names in a column key, sha256 or group, in its order; None of any other
    file.

    keys: of all samples, by row; "" of one that is erased. folder: where the files are whose paths the keys are, for
    their SHA-256: all copies are meant. groups: a .csv with columns key and group; a key may be in several. InputError
    for what is unknown (with the first five) or named twice (with its line), and for keys that a wanted group has and
    the data have not.
    """
    name, column = str(path), ""
    if path.suffix.lower() == ".csv":
        (column,), rows = columns(lines_of(read_text(name, path, "a readable file of ids")), name, [(*IDS, *COLUMNS)])
    expected = "left out: only a .csv file with a column group needs it"
    if column not in COLUMNS:
        require(groups is None, "groups", expected, groups)
        return None
    # Of more keys than samples as many are read as show that one is unknown or repeated.
    named = [(line, cell) for line, (cell,) in islice(rows, None if column == GROUP else len(keys) + 1)]
    require(bool(named), name, "a table with at least one row", "none")
    if column == SHA256:
        named = [(line, value.strip(" \t").lower()) for line, value in named]
    _once(named, name)
    wanted = [value for _, value in named]
    if column == KEY:
        places = {key: [row] for row, key in enumerate(keys) if key}
    elif column == SHA256:
        wrong = [value for value in wanted if not re.fullmatch("[0-9a-f]{64}", value)]
        require(not wrong, name, "SHA-256 digests of 64 hexadecimal digits", first_of(wrong))
        places = _by_content(keys, name, folder)
    else:
        places = _by_group(wanted, keys, name, groups)
    unknown = [value for value in wanted if value not in places]
    where = f"groups in {groups}" if column == GROUP else "samples in the data"
    require(not unknown, f"{name}: {column}", where, first_of(unknown))
    require(groups is None or column == GROUP, "groups", expected, groups)
    return list(dict.fromkeys(row for value in wanted for row in places[value]))


def read_groups(path: Path) -> dict[str, list[str]]:
    """Group -> its keys. InputError for another table than one of key and group, and for a pair twice."""
    name = str(path)
    _, rows = columns(lines_of(read_text(name, path, "a readable table of keys and groups")), name, [[KEY], [GROUP]])
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line, (key, group) in rows:
        found[group].append((line, key))
    for group, keys in found.items():
        _once(keys, f"{name}: group {group!r}")
    return {group: [key for _, key in keys] for group, keys in found.items()}


def _by_content(keys: Sequence[str], name: str, folder: Path | None) -> dict[str, list[int]]:
    if folder is None:
        raise InputError(f"{name} must have no column sha256, because --data is no folder of images, got one")
    places: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key:  # of an erased sample there is none
            places[file_digest(folder / key)].append(row)
    return places


def _by_group(wanted: Sequence[str], keys: Sequence[str], name: str, path: Path | None) -> dict[str, list[int]]:
    if path is None:
        raise InputError(f"groups must be given (--groups) for the column group of {name}, got none")
    groups, rows = read_groups(path), {key: row for row, key in enumerate(keys) if key}
    missing = [key for group in wanted for key in groups.get(group, []) if key not in rows]
    require(
        not missing,
        str(path),
        "of samples in the data, where erased images are not, in the groups of the request",
        first_of(missing),
    )
    return {group: [rows[key] for key in groups[group]] for group in wanted if group in groups}


def _once(named: Sequence[tuple[int, str]], name: str) -> None:
    """InputError for a value that is there again, with its line."""
    first: dict[str, int] = {}
    for line, value in named:
        there = first.setdefault(value, line)
        actual = f"{SHORT.repr(value)} in line {line}, which line {there} has"
        require(there == line, name, "free of repeated values", actual)
