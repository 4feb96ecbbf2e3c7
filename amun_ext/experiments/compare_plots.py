"""Figures of a comparison: accuracies of the methods, and their gap to retraining."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amun_ext.report.figures import COLOURS, INK, MARKERS, SERIES, svg
from amun_ext.report.parts import Mark

REACH = 15.0  # points: what is farther from retraining and no-op than this stands at the edge, hollow
WORST = 4.0  # no-op's gaps: where longer bars are cut
SIZE = (5.0, 3.6)

Spread = tuple[float, float]  # mean and standard deviation; the latter is NaN where there is none
Point = tuple[Spread, Spread]


def accuracies(rows: Mapping[str, Point], reference: str, noop: str) -> str:
    """Row -> UA and TA, in percent: a point each, with a cross of its deviations; lines through `reference`."""
    styles = _styles(rows, reference, noop)
    finite = {name: point for name, point in rows.items() if math.isfinite(point[0][0] + point[1][0])}
    fixed = [finite[name] for name in (reference, noop) if name in finite]
    near = [point for point in finite.values() if all(_near(point, fixed, axis) for axis in (0, 1))]
    ends = [_ends([point[axis][0] for point in near]) for axis in (0, 1)]

    def draw(axes: Any) -> None:
        for name, point in finite.items():
            inside, shape = point in near, {"color": styles[name]["color"], "linewidth": 1.2, "clip_on": point in near}
            (x, across), (y, up) = point
            shown = [min(max(value, low), high) for value, (low, high) in zip((x, y), ends, strict=True)]
            errors = {"xerr": _error(across), "yerr": _error(up)} if inside else {}
            face = {} if inside else {"markerfacecolor": "none"}
            axes.errorbar(*shown, **errors, **shape, **face, linestyle="none", **styles[name]["marker"])
        if reference in finite:
            for line, (value, _) in zip((axes.axvline, axes.axhline), finite[reference], strict=True):
                line(value, color=INK, linewidth=0.6, alpha=0.5, linestyle=(0, (4, 3)))
        axes.set(xlim=ends[0], ylim=ends[1], xlabel="UA: % of the forget set", ylabel="TA: % of the test set")

    return svg("accuracies", draw, SIZE)


def gaps(rows: Mapping[str, Spread], reference: str, noop: str) -> str:
    """Row -> gap, in points: a bar each, with its deviation, from the first at the top; a line at that of `noop`."""
    styles = _styles(rows, reference, noop)
    finite = {name: spread for name, spread in rows.items() if math.isfinite(spread[0])}
    right = max([mean for mean, _ in finite.values()], default=1.0)
    if noop in finite:
        right = min(right, max(WORST * finite[noop][0], 1.0))

    def draw(axes: Any) -> None:
        for index, (name, (mean, deviation)) in enumerate(finite.items()):
            cut = mean > right
            axes.barh(index, min(mean, right), color=styles[name]["color"], alpha=0.75, height=0.62)
            if not cut:
                axes.errorbar(mean, index, xerr=_error(deviation), color=INK, capsize=3, linewidth=1.2)
            reached = right if cut else mean + (deviation if math.isfinite(deviation) else 0.0)
            label = f"{mean:.1f}, cut" if cut else f"{mean:.1f}"
            axes.annotate(label, (reached, index), (4, 0), textcoords="offset points", va="center", fontsize=9)
        if noop in finite:
            axes.axvline(finite[noop][0], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(finite)), [*finite])
        axes.invert_yaxis()
        axes.set(xlabel="gap to retraining, points", xlim=(0.0, 1.15 * right))

    return svg("gaps", draw, (SIZE[0], 0.9 + 0.34 * len(finite)))


def _near(point: Point, fixed: Sequence[Point], axis: int) -> bool:
    at = [each[axis][0] for each in fixed] or [point[axis][0]]
    return min(at) - REACH <= point[axis][0] <= max(at) + REACH


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Of an axis that has all of `values`."""
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    margin = max(0.08 * (high - low), 0.5)
    return low - margin, high + margin


def key(rows: Iterable[str], reference: str, noop: str) -> list[Mark]:
    """A colour and a marker for each row; the two fixed ones are in the colour of the text."""
    fixed = {reference: ("ink", "*"), noop: ("ink", "X")}
    shapes = [*MARKERS][:SERIES]
    others = [name for name in rows if name not in fixed]
    own = {
        name: (f"series-{index % SERIES}", shapes[(index + index // SERIES) % SERIES])
        for index, name in enumerate(others)
    }
    return [Mark(name, colour, points=MARKERS[shape]) for name, (colour, shape) in {**fixed, **own}.items()]


def _styles(rows: Iterable[str], reference: str, noop: str) -> dict[str, dict[str, Any]]:
    shapes, sizes = {glyph: shape for shape, glyph in MARKERS.items()}, {reference: 14.0, noop: 10.0}
    return {
        each.name: {
            "color": COLOURS[each.colour][0],
            "marker": {"marker": shapes[each.points], "markersize": sizes.get(each.name, 7.0)},
        }
        for each in key(rows, reference, noop)
    }


def _error(deviation: float) -> float | None:
    return deviation if math.isfinite(deviation) else None
