"""The samples to forget, by their row numbers in the training set."""

import itertools
import json
import operator
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amun_ext.data.images import Data, subset
from amun_ext.deletion.table import SHOWN, columns, first_of, lines_of
from amun_ext.reading import read_text
from amun_ext.validation import InputError, check_integer, is_integer, is_number, require

COLUMNS = ("id", "index")


def forget_ids(
    total: int,
    *,
    ids: Iterable[int] | Tensor | str | None = None,
    file: str | os.PathLike[str] | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> Tensor:
    """The forget set as int64 [n], in the order of the request, out of `total` training samples numbered from 0.

    Exactly one of
      ids       integers, or text such as "3,17,40-60" (both ends count);
      file      .json: a list of integers; .csv: a column `id` or `index`; other: one id or range a line, # comments.
                Only \\n, \\r\\n and \\r end a line, and every row of a .csv has the cells of its header; lines without
                anything are passed over. 32 MiB at most, and no pipe or device;
      fraction  n = round(fraction * total) ids by numpy.random.RandomState(seed).choice(total, n, replace=False),
                which reproduces AMUN's published forget sets (total 50,000, n 5,000 or 10,000, seeds 1, 10, 100).
    InputError names the ids (the first five) that are unknown, repeated or no integers; it also refuses none and all.
    """
    _one_of({"ids": ids, "file": file, "fraction": fraction})
    total = check_integer("total", total, 2)
    chosen = some_ids(total, ids=ids, file=file, fraction=fraction, seed=seed)
    return _some_left(chosen, total, "ids" if file is None else str(file))


def some_ids(
    total: int,
    *,
    ids: Iterable[int] | Tensor | str | None = None,
    file: str | os.PathLike[str] | None = None,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Tensor:
    """As `forget_ids`, of samples that are only to be looked at: all of them are allowed, and so is a `count` of them,
    which is drawn as a fraction is."""
    _one_of({"ids": ids, "file": file, "fraction": fraction, "count": count})
    if fraction is not None:
        return _draw(total, _share(total, fraction), seed)
    if count is not None:
        count = check_integer("count", count, 1)
        require(count <= total, "count", f"at most the {total} samples that there are", count)
        return _draw(total, count, seed)
    if file is not None:
        return _checked(_read(Path(file), total), total, str(file))
    if isinstance(ids, str):
        return _checked(_parse(ids.split(",") if ids.strip() else [], total, "ids"), total, "ids")
    assert ids is not None
    return _checked(_integers(ids, total, "ids"), total, "ids")


def split(dataset: Data, ids: Tensor) -> tuple[Data, Data]:
    """(forget, retain): forget in the order of `ids`, retain in that of `dataset`. InputError as `forget_ids`."""
    ids = _some_left(_checked(_integers(ids, len(dataset), "ids"), len(dataset), "ids"), len(dataset), "ids")
    kept = torch.ones(len(dataset), dtype=torch.bool, device="cpu")
    kept[ids] = False
    return subset(dataset, ids), subset(dataset, kept)


def _one_of(ways: dict[str, Any]) -> None:
    *others, last = ways
    given = [name for name, value in ways.items() if value is not None]
    actual = " and ".join(given) or "none"
    require(len(given) == 1, "the samples", f"given by one of {', '.join(others)} and {last}", actual)


def _share(total: int, fraction: float) -> int:
    fits = is_number(fraction) and 0 < fraction < 1
    require(fits, "fraction", "a number between 0 and 1, both excluded", repr(fraction))
    count = round(fraction * total)
    require(
        0 < count < total, "fraction", f"one that takes some and leaves some of {total}", f"{fraction}: {count} ids"
    )
    return count


def _draw(total: int, count: int, seed: int) -> Tensor:
    require(is_integer(seed) and 0 <= seed < 2**32, "seed", "an integer in [0, 2**32)", seed)
    return torch.from_numpy(np.random.RandomState(seed).choice(total, count, replace=False).astype(np.int64))


def _checked(ids: list[int], total: int, name: str) -> Tensor:
    require(len(ids) > 0, name, "at least one id", "none")
    unknown = [number for number in ids if not 0 <= number < total]
    require(not unknown, name, f"ids in [0, {total})", first_of(unknown))
    repeated = [number for number, count in Counter(ids).items() if count > 1]
    require(not repeated, name, "free of repeated ids", first_of(repeated))
    return torch.tensor(ids, dtype=torch.int64, device="cpu")


def _some_left(ids: Tensor, total: int, name: str) -> Tensor:
    require(len(ids) < total, name, "fewer than all ids: nothing would be left to retain", f"all {total}")
    return ids


def _integers(values: Any, total: int, name: str) -> list[int]:
    """Integers of Python, NumPy or PyTorch; neither text nor True, which Python counts as 1, nor what holds integers
    beside others: bytes, and the keys of a mapping or the names of a table's columns.

    Of more than `total` only as many are taken as show, here and in `_parse`, that one is unknown or repeated.
    """
    values = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    plain = isinstance(values, Iterable) and getattr(values, "ndim", 1) == 1
    plain = plain and not isinstance(values, bytes | bytearray | memoryview | Mapping)
    require(plain, name, "several integers", reprlib.repr(values))
    pairs = [(value, _integer(value)) for value in itertools.islice(values, total + 1)]
    wrong = [value for value, number in pairs if number is None]
    require(not wrong, name, "integers", first_of(wrong))
    return [number for _, number in pairs if number is not None]


def _integer(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _parse(parts: Iterable[str], total: int, name: str) -> list[int]:
    """The numbers of texts such as "17" and "40-60"."""
    numbers: list[int] = []
    wrong: list[str] = []
    for text in (part.strip(" \t") for part in parts):
        match = re.fullmatch(r"([0-9]{1,18})(?:[ \t]*-[ \t]*([0-9]{1,18}))?", text)
        if match is None:
            wrong.append(text)
        else:
            first, last = int(match[1]), int(match[2] or match[1])
            require(first <= last, name, "ranges that go up", match[0])
            numbers += range(first, min(last, max(first, total)) + 1)  # as far as its first unknown id: it may be huge
        if len(wrong) > SHOWN or len(numbers) > total:
            break
    require(not wrong, name, "integers from 0 on, or ranges such as 40-60", first_of(wrong))
    return numbers


def _read(path: Path, total: int) -> list[int]:
    name, text, kind = str(path), read_text(str(path), path, "a readable file of ids"), path.suffix.lower()
    if kind == ".json":
        # More commas than samples are a list of more: parsed it would take many times the memory of its text.
        require(text.count(",") < total, name, f"a list of at most {total} integers", f"{text.count(',')} commas")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name} must be a readable file of ids: {error}") from error
        require(isinstance(values, list), name, "a list of integers", type(values).__name__)
        return _integers(values, total, name)
    lines = lines_of(text)
    if kind == ".csv":
        _, rows = columns(lines, name, [COLUMNS])
        return _parse((cell for _, (cell,) in rows), total, name)
    stripped = (line.partition("#")[0].strip(" \t\r\n") for line in lines)
    return _parse((line for line in stripped if line), total, name)
