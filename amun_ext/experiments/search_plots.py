"""Figures of compared searches: distances, distance against gradients, and one method against another."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amun_ext.report.figures import COLOURS, INK, line, svg
from amun_ext.report.parts import Mark

BINS = 24
POINTS = 1000  # drawn of a scatter: each is an element of the page
SIZE = (4.2, 3.2)


def histogram(distances: Mapping[str, NDArray[np.float64]], marks: Mapping[str, Mark]) -> str:
    """Name -> distances [n], infinite where there is none: percent of n by distance, all on the same axes.

    The outermost bars hold the 0.5 % at either end that would stretch the axis; those without an example are in none.
    """
    finite = np.concatenate([values[np.isfinite(values)] for values in distances.values()])
    low, high = np.quantile(finite, [0.005, 0.995])
    edges = np.geomspace(low / 1.05, high * 1.05, BINS + 1)

    def draw(axes: Any) -> None:
        for name, values in distances.items():
            counts, _ = np.histogram(np.clip(values[np.isfinite(values)], low, high), edges)
            shares = 100.0 * counts / len(values)
            axes.stairs(shares, edges, fill=True, alpha=0.1, color=COLOURS[marks[name].colour][0])
            axes.stairs(shares, edges, linewidth=1.6, **line(marks[name]))
        _logarithmic(axes, "x")
        axes.set(xlim=(edges[0], edges[-1]), xlabel="L2 distance", ylabel="% of the samples")
        axes.set_ylim(bottom=0.0)

    return svg("distances", draw, SIZE)


def tradeoff(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    defaults: Mapping[str, tuple[float, float]],
    marks: Mapping[str, Mark],
) -> str:
    """Name -> points (gradients per sample, median distance), joined in this order; the default's is filled."""

    def draw(axes: Any) -> None:
        for name, points in curves.items():
            finite = [point for point in points if math.isfinite(point[1])]
            if not finite:
                continue
            gradients, medians = zip(*finite, strict=True)
            style = {"linewidth": 1.8, "markersize": 5, "markeredgewidth": 1.6, "clip_on": False}
            axes.plot(gradients, medians, marker="o", markerfacecolor="none", **style, **line(marks[name]))
            if defaults[name] in finite:
                axes.plot(*defaults[name], "o", clip_on=False, color=line(marks[name])["color"], markersize=7)
        _logarithmic(axes, "x")
        axes.set(xlabel="gradients per sample", ylabel="median L2 distance")
        axes.margins(0.08, 0.12)

    return svg("tradeoff", draw, SIZE)


def scatter(distances: Mapping[str, NDArray[np.float64]], names: tuple[str, str], marks: Mapping[str, Mark]) -> str:
    """The distances [n] of the second of `names` against those of the first, samples that both have an example of.

    A point has the colour of the method that is closer.
    """
    x, y = (distances[name] for name in names)
    both = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    shown = np.random.default_rng(0).permutation(both)[:POINTS]
    values = np.concatenate([x[both], y[both]])
    ends = float(values.min()) / 1.2, float(values.max()) * 1.2

    def draw(axes: Any) -> None:
        for name, closer in ((names[0], x <= y), (names[1], y < x)):
            rows, colour = shown[closer[shown]], line(marks[name])["color"]
            axes.plot(x[rows], y[rows], ".", color=colour, alpha=0.65, markersize=6, markeredgewidth=0)
        axes.plot(ends, ends, color=INK, linewidth=0.8, alpha=0.6)
        _logarithmic(axes, "xy")
        axes.set(xlim=ends, ylim=ends, xlabel=f"L2 distance, {names[0]}", ylabel=f"L2 distance, {names[1]}")

    return svg("scatter", draw, SIZE)


def _logarithmic(axes: Any, which: str) -> None:
    """Make the x or y axes so, with plain numbers at their ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for name in which:
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        low, high = axis.get_data_interval()
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
