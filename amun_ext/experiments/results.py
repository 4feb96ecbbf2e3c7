"""What an experiment is, and what it gives: cells with their measured values, tables and figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amun_ext.experiments.comparison import Statistic, statistic
from amun_ext.experiments.lab import Lab
from amun_ext.experiments.scales import Scale
from amun_ext.report.figures import INK, line, mark, svg
from amun_ext.report.parts import Block, Figure, Mark
from amun_ext.report.tables import Column, Row, Table, spread, value

Cell = Mapping[str, Any]  # arguments of a measurement
SIZE = (5.0, 3.4)


@dataclass(frozen=True)
class Results:
    """The cells of an experiment, each with its values, and the data that they are of."""

    cells: Sequence[tuple[Cell, Mapping[str, Any]]]
    data: str

    def of(self, name: str, **where: object) -> list[Any]:
        """The values called `name` of the cells with these arguments, None for an argument that a cell has not."""
        return [
            values[name]
            for cell, values in self.cells
            if all(cell.get(key) == value for key, value in where.items()) and values.get(name) is not None
        ]

    def over(self, name: str, **where: object) -> Statistic:
        """Mean and standard deviation of what `of` gives."""
        return statistic(self.of(name, **where))

    def each(self, argument: str) -> list[Any]:
        """The different values of an argument, in their order."""
        return list(dict.fromkeys(cell[argument] for cell, _ in self.cells if argument in cell))

    def by_step(self, name: str, **where: object) -> list[Statistic]:
        """The same of values that are lists: a statistic of each place."""
        return [statistic(list(place)) for place in zip(*self.of(name, **where), strict=True)]


@dataclass(frozen=True)
class Experiment:
    """A row of EXPERIMENTS.

    cells: the arguments of `measure`, for each of the scale's draws. measure: from the shared things and the arguments
    of a cell to JSON values; two experiments with one `measure` share cells. blocks: what a page shows. prepare: shared
    things that are to be made before any cell, where several processes can help. resized: the scale, changed where the
    experiment has another.
    """

    title: str
    claim: str  # the paper's, in a sentence
    cells: Callable[[Scale], list[Cell]]
    measure: Callable[..., Mapping[str, Any]]
    blocks: Callable[[Results], Sequence[Block]]
    prepare: Callable[[Lab, Cell], object] | None = None
    resized: Callable[[Scale], Scale] = lambda scale: scale


def table(
    name: str, of: str, rows: Mapping[str, Mapping[str, Statistic]], marked: str | None = None, digits: int = 2
) -> Table:
    """Row -> column -> mean and deviation; the last column is the number of values."""
    columns = list(next(iter(rows.values())))
    cells = {
        row: [spread(of.mean, of.deviation, digits) for of in of_row.values()]
        + [value(max(of.n for of in of_row.values()), 0)]
        for row, of_row in rows.items()
    }
    return Table(
        name.lower().replace(" ", "-"),
        of,
        [*map(Column, columns), Column("n")],
        [Row(*pair) for pair in cells.items()],
        marked,
    )


def marks(names: Sequence[str], points: str = "") -> dict[str, Mark]:
    """A mark for each name; `points`: their character, in place of a line."""
    return {name: replace(mark(index, name), points=points) for index, name in enumerate(names)}


def curves(
    title: str,
    about: str,
    series: Mapping[str, Sequence[Statistic]],
    key: Mapping[str, Mark],
    x: str,
    y: str,
    first: int = 1,
    step: int = 1,
) -> Figure:
    """Name -> a statistic for `first` and every `step` after it: lines of the means, bands of one deviation."""

    def draw(axes: Any) -> None:
        for name, points in series.items():
            style, at = line(key[name]), range(first, first + step * len(points), step)
            means = [point.mean for point in points]
            axes.plot(at, means, linewidth=1.6, **style)
            wide = [0.0 if math.isnan(point.deviation) else point.deviation for point in points]
            low, high = ([m + sign * w for m, w in zip(means, wide, strict=True)] for sign in (-1, 1))
            axes.fill_between(at, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes.locator_params(axis="x", integer=True)
        axes.set(xlabel=x, ylabel=y)

    return Figure(title, lambda: svg(title, draw, SIZE), about, label=title)


def scatter(title: str, about: str, points: Sequence[tuple[float, float]], x: str, y: str) -> Figure:
    """Points, and the line on which both are equal."""

    def draw(axes: Any) -> None:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, ".", markersize=3, **{"color": line(mark(0, title))["color"]})
        top = max(*xs, *ys)
        axes.plot([0, top], [0, top], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(xlabel=x, ylabel=y)

    return Figure(title, lambda: svg(title, draw, SIZE), about, label=title)
