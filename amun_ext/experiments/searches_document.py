"""The document of compared searches: distances, cost, and examples."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from amun_ext.experiments import search_plots
from amun_ext.experiments.searches import COLUMNS, explanations, own_steps
from amun_ext.report import parts
from amun_ext.report.figures import amplification, mark, png_uri
from amun_ext.report.tables import Column, Row, Table, number, value

if TYPE_CHECKING:
    from amun_ext.experiments.searches import Searches

EXAMPLES = 6
CAVEAT = (
    "The distances are upper bounds: there may be closer examples that no search finds. One gradient is one "
    "forward and one backward pass; forward passes without a gradient are not counted."
)


def document(searches: Searches) -> parts.Document:
    any_found = any(row["found"] for row in searches.rows.values())
    settings = {
        method: {name: each for name, each in searches.settings(method).items() if each is not None}
        for method in searches.runs
    }
    return parts.Document(
        "Adversarial searches",
        [
            parts.Paragraph(_summary(searches)),
            parts.Paragraph(CAVEAT, soft=True),
            _table(searches),
            parts.Glossary(explanations()),
            *(_pictures(searches) + _examples(searches) if any_found else []),
            *_curves(searches),
            parts.Facts({**searches.facts, **settings}),
        ],
    )


def _summary(searches: Searches) -> str:
    rows = searches.rows
    sentences = [
        "For each sample, the closest image found that the model assigns to another class: its L2 distance, in the "
        "units of the images, and the number of gradients of the search.",
        searches.left_out(),
    ]
    closest, cheapest = _closest(searches), min(rows, key=lambda method: rows[method]["gradients"])
    if closest is not None and len(rows) > 1:
        cost = f"{number(rows[closest]['gradients'])} gradients per sample"
        sentences.append(
            f"{closest} finds the closest: its median is {number(rows[closest]['median'], 3)}, with {cost}."
        )
        if cheapest != closest:
            cost = f"{number(rows[cheapest]['median'], 3)}, with {number(rows[cheapest]['gradients'])}"
            sentences.append(f"{cheapest} takes the fewest gradients: its median is {cost}.")
    return " ".join(sentences)


def _closest(searches: Searches) -> str | None:
    """The method with the smallest median."""
    medians = {method: row["median"] for method, row in searches.rows.items() if math.isfinite(row["median"])}
    return min(medians, key=lambda method: medians[method]) if medians else None


def _table(searches: Searches) -> Table:
    rows = [
        Row(method, [value(row[name], digits) for name, (digits, _) in COLUMNS.items()])
        for method, row in searches.rows.items()
    ]
    return Table("methods", "method", [Column(name) for name in COLUMNS], rows, marked=_closest(searches))


def _curves(searches: Searches) -> list[parts.Block]:
    """What the picture of distance against gradients is made of."""
    rows = [
        Row(
            "own" if point.steps is None else str(point.steps), [value(point.gradients), value(point.median, 3)], method
        )
        for method, points in searches.curves.items()
        for point in points
    ]
    columns = [Column("gradients"), Column("median")]
    return [Table("curves", "steps", columns, rows, groups_of="method", folded=True)] if rows else []


def _pictures(searches: Searches) -> list[parts.Block]:
    marks = {method: mark(index, method) for index, method in enumerate(searches.runs)}
    distances = {method: searches.distances(method) for method in searches.runs}
    caption = "Percent of the samples, logarithmic bins; the outermost bars include all values beyond."
    figures = [parts.Figure("Distances", partial(search_plots.histogram, distances, marks), caption)]
    curves = {
        method: [(point.gradients, point.median) for point in points] for method, points in searches.curves.items()
    }
    if any(math.isfinite(median) for points in curves.values() for _, median in points):
        own = {
            method: next((point.gradients, point.median) for point in points if point.steps == own_steps(method))
            for method, points in searches.curves.items()
        }
        caption = "Lower left is better. Each point is a number of steps; the filled one is the default of the method."
        draw = partial(search_plots.tradeoff, curves, own, marks)
        figures.append(parts.Figure("Median distance against gradients", draw, caption))
    percent, both = (math.nan, 0) if searches.pair is None else searches.closer(*searches.pair)
    if searches.pair is not None and both:
        first, second = searches.pair
        caption = (
            f"{second} is closer for {number(percent)} % of the {both} samples for which both found an example: those "
            "below the diagonal. Points have the colour of the closer method."
        )
        draw = partial(search_plots.scatter, distances, searches.pair, marks)
        figures.append(parts.Figure(f"{second} against {first}, sample by sample", draw, caption))
    return [parts.Heading("How close, and at what cost"), parts.Figures(figures, key=[*marks.values()])]


def _examples(searches: Searches) -> list[parts.Block]:
    rows = _chosen(searches)
    if not rows:
        return []
    factor = amplification([difference(searches, method, row) for row in rows for method in searches.runs])
    about = (
        "The image and the example of each method, and below the change, enlarged "
        f"{factor} times (grey: unchanged), the predicted class and the distance. From the closest to the farthest."
    )
    cards = [(_card(searches, row, factor), "") for row in rows]
    return [parts.Images(cards, "Some of the examples", about, forgotten=False)]


def _chosen(searches: Searches) -> list[int]:
    """Rows of which all methods have an example, evenly spread by the distance of the closest method."""
    columns = torch.stack([run.result.distance.cpu().double() for run in searches.runs.values()])
    fit = (searches.counted & columns.isfinite().all(0)).nonzero()[:, 0]
    ordered = fit[columns.amin(0)[fit].argsort(stable=True)]
    spread = torch.linspace(0, len(ordered) - 1, min(EXAMPLES, len(ordered)), device="cpu").round().long()
    rows: list[int] = ordered[spread].tolist()
    return rows


def difference(searches: Searches, method: str, row: int) -> NDArray[np.float32]:
    """Of the example by `method` from the image in that row."""
    example, image = searches.runs[method].result.images[row].cpu(), searches.images[row].cpu()
    changed: NDArray[np.float32] = (example.float() - image.float()).numpy()
    return changed


def _card(searches: Searches, row: int, factor: int) -> list[list[parts.Picture]]:
    image = searches.images[row].float().cpu().numpy()

    def named(label: torch.Tensor) -> str:
        return searches.classes[int(label)] if searches.classes else str(int(label))

    images = [parts.Picture("original", partial(png_uri, image), "original")]
    changes = [parts.Picture("", None, below=[named(searches.labels[row]), f"id {int(searches.ids[row])}"])]
    for method, run in searches.runs.items():
        changed = difference(searches, method, row)
        caption = [named(run.result.labels[row]), number(float(run.result.distance[row]), 3)]
        images.append(parts.Picture(method, partial(png_uri, image + changed), method))
        enlarged = partial(png_uri, 0.5 + factor * changed)
        changes.append(parts.Picture(f"change by {method}", enlarged, below=caption))
    return [images, changes]
