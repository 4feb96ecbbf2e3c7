"""Parameters of a test: not the whole product, but rows in which every two values of two axes meet."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest

PARAM = type(pytest.param(0))


def pairs(*axes: Sequence[Any]) -> list[Any]:
    """For `pytest.mark.parametrize`. An axis may hold `pytest.param`s, also of several values."""

    def meetings(row: tuple[int, ...]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
        return set(combinations(enumerate(row), 2))

    rows, chosen = {row: meetings(row) for row in product(*(range(len(axis)) for axis in axes))}, []
    missing = set().union(*rows.values())
    while missing:
        row = max(rows, key=lambda row: len(missing & rows[row]))
        missing -= rows[row]
        chosen.append([axis[at] for axis, at in zip(axes, row, strict=True)])
    return [_joined(values) for values in sorted(chosen, key=str)]


def _joined(values: list[Any]) -> Any:
    params = [value if isinstance(value, PARAM) else pytest.param(value, id=str(value)) for value in values]
    return pytest.param(*(value for param in params for value in param.values), id="-".join(str(p.id) for p in params))
