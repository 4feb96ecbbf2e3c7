"""The samples to forget, by their row numbers in the training set."""

import csv
import itertools
import json
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from amun_ext.checks import InputError, is_whole, require, whole

COLUMNS = ("id", "index")
SHOWN = 5  # ids named in one message


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
      file      .json: a list of integers; .csv: a column `id` or `index`; other: one id or range a line, # comments;
      fraction  n = round(fraction * total) ids by numpy.random.RandomState(seed).choice(total, n, replace=False),
                which reproduces AMUN's published forget sets (total 50,000, n 5,000 or 10,000, seeds 1, 10, 100).
    InputError names the ids (the first five) that are unknown, repeated or no integers; it also refuses none and all.
    """
    _one_of({"ids": ids, "file": file, "fraction": fraction})
    require(is_whole(total) and total >= 2, "total", "at least 2 samples", total)
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
        whole("count", count, 1)
        require(count <= total, "count", f"at most the {total} samples that there are", count)
        return _draw(total, count, seed)
    if file is not None:
        return _checked(_read(Path(file), total), total, str(file))
    if isinstance(ids, str):
        return _checked(_parse(ids.split(",") if ids.strip() else [], total, "ids"), total, "ids")
    assert ids is not None
    return _checked(_integers(ids, "ids"), total, "ids")


def split(dataset: TensorDataset, ids: Tensor) -> tuple[TensorDataset, TensorDataset]:
    """(forget, retain): forget in the order of `ids`, retain in that of `dataset`. InputError as `forget_ids`."""
    ids = _some_left(_checked(_integers(ids, "ids"), len(dataset), "ids"), len(dataset), "ids")
    kept = torch.ones(len(dataset), dtype=torch.bool)
    kept[ids] = False
    forget, retain = (TensorDataset(*(tensor[rows] for tensor in dataset.tensors)) for rows in (ids, kept))
    return forget, retain


def _one_of(ways: dict[str, Any]) -> None:
    *others, last = ways
    given = [name for name, value in ways.items() if value is not None]
    got = " and ".join(given) or "none"
    require(len(given) == 1, "the samples", f"given by one of {', '.join(others)} and {last}", got)


def _share(total: int, fraction: float) -> int:
    require(0 < fraction < 1, "fraction", "between 0 and 1, both excluded", fraction)
    count = round(fraction * total)
    require(
        0 < count < total, "fraction", f"one that takes some and leaves some of {total}", f"{fraction}: {count} ids"
    )
    return count


def _draw(total: int, count: int, seed: int) -> Tensor:
    require(is_whole(seed) and 0 <= seed < 2**32, "seed", "an integer in [0, 2**32)", seed)
    return torch.from_numpy(np.random.RandomState(seed).choice(total, count, replace=False).astype(np.int64))


def _checked(ids: list[int], total: int, name: str) -> Tensor:
    require(len(ids) > 0, name, "at least one id", "none")
    unknown = [number for number in ids if not 0 <= number < total]
    require(not unknown, name, f"ids in [0, {total})", _first(unknown))
    repeated = [number for number, count in Counter(ids).items() if count > 1]
    require(not repeated, name, "free of repeated ids", _first(repeated))
    return torch.tensor(ids, dtype=torch.int64)


def _some_left(ids: Tensor, total: int, name: str) -> Tensor:
    require(len(ids) < total, name, "fewer than all ids: nothing would be left to retain", f"all {total}")
    return ids


def _integers(values: Any, name: str) -> list[int]:
    """Integers of Python, NumPy or PyTorch; neither text nor True, which Python counts as 1."""
    values = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    require(isinstance(values, Iterable), name, "several integers", repr(values))
    pairs = [(value, _integer(value)) for value in values]
    require(all(number is not None for _, number in pairs), name, "integers", _first(v for v, n in pairs if n is None))
    return [number for _, number in pairs if number is not None]


def _integer(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _parse(parts: Iterable[str], total: int, name: str) -> list[int]:
    """The numbers of texts such as "17" and "40-60"."""
    texts = [part.strip() for part in parts]
    matches = [re.fullmatch(r"([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?", text) for text in texts]
    wrong = [text for text, match in zip(texts, matches, strict=True) if match is None]
    require(not wrong, name, "integers from 0 on, or ranges such as 40-60", _first(wrong))
    numbers: list[int] = []
    for match in filter(None, matches):
        first, last = int(match[1]), int(match[2] or match[1])
        require(first <= last, name, "ranges that go up", match[0])
        numbers += range(first, min(last, max(first, total)) + 1)  # as far as its first unknown id: it may be huge
    return numbers


def _read(path: Path, total: int) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
        if path.suffix == ".json":
            values = json.loads(text)
        rows = list(csv.DictReader(text.splitlines())) if path.suffix == ".csv" else []
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} must be a readable file of ids: {error}") from error
    if path.suffix == ".json":
        require(isinstance(values, list), str(path), "a list of integers", type(values).__name__)
        return _integers(values, str(path))
    if path.suffix == ".csv":
        require(bool(rows), str(path), "a table with a column id or index, and rows", "no rows")
        require(
            not all(name in rows[0] for name in COLUMNS), str(path), "clear which column has the ids", "id and index"
        )
        column = next((column for column in COLUMNS if column in rows[0]), None)
        require(column is not None, str(path), "a table with a column id or index", ", ".join(map(str, rows[0])))
        return _parse((row[column] or "" for row in rows), total, str(path))
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return _parse((line for line in lines if line), total, str(path))


def _first(values: Iterable[Any]) -> str:
    shown = [repr(value) for value in itertools.islice(values, SHOWN + 1)]
    return ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")
