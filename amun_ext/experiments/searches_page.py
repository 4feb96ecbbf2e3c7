"""Searches as one HTML page: no scripts, no other files, no network."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from amun_ext.evaluation import markup, search_plots
from amun_ext.evaluation.plots import amplification, png_uri
from amun_ext.evaluation.text import number
from amun_ext.experiments.searches import explanations, own_steps

if TYPE_CHECKING:
    from amun_ext.experiments.searches import Searches

EXAMPLES = 6
CAVEAT = (
    "What a search finds is an upper bound: there may be closer examples that none of them meets. One gradient is one "
    "forward and one backward pass; forward passes without a gradient are not counted."
)
CSS = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem 1.8rem }
.pictures p { font-size: .875rem }
.examples { display: grid; gap: 1.6rem; margin-top: 1rem }
.examples figure > div { display: grid; gap: 3px 6px; overflow-x: auto; font-size: .75rem; line-height: 1.3 }
.examples img { width: 100%; display: block; image-rendering: pixelated }
.examples b { overflow-wrap: anywhere } .examples span { overflow-wrap: anywhere; color: var(--soft) }
"""


def render(searches: Searches) -> str:
    any_found = any(row["found"] for row in searches.rows.values())
    pictures = [_pictures(searches), _examples(searches)] if any_found else []
    settings = {method: _settings(searches, method) for method in searches.runs}
    facts = markup.facts({**searches.facts, **settings})
    return markup.document("Adversarial searches", [_opening(searches), _table(searches), *pictures, facts], CSS)


def _opening(searches: Searches) -> str:
    return f'<h1>Adversarial searches</h1>\n<p>{escape(_summary(searches))}</p>\n<p class="soft">{CAVEAT}</p>\n'


def _summary(searches: Searches) -> str:
    rows = searches.rows
    sentences = [
        "For each sample, the closest image that the model takes for another class: how far away it is, in L2 and the "
        "units of the images, and how many gradients it took to find.",
        searches.left_out(),
    ]
    closest, cheapest = _closest(searches), min(rows, key=lambda method: rows[method]["gradients"])
    if closest is not None and len(rows) > 1:
        told = f"{number(rows[closest]['gradients'])} gradients per sample"
        sentences.append(f"{closest} comes closest: its median is {number(rows[closest]['median'], 3)}, with {told}.")
        if cheapest != closest:
            told = f"{number(rows[cheapest]['median'], 3)}, with {number(rows[cheapest]['gradients'])}"
            sentences.append(f"{cheapest} takes the fewest gradients: its median is {told}.")
    return " ".join(sentences)


def _closest(searches: Searches) -> str | None:
    """The method with the smallest median."""
    medians = {method: row["median"] for method, row in searches.rows.items() if math.isfinite(row["median"])}
    return min(medians, key=lambda method: medians[method]) if medians else None


def _table(searches: Searches) -> str:
    return markup.table(searches.cells(), marked=_closest(searches)) + markup.terms(explanations())


def _pictures(searches: Searches) -> str:
    panels = [_histogram(searches), _tradeoff(searches), _scatter(searches)]
    return f"""<h2>How close, and at what cost</h2>
<p class="key">{search_plots.key(searches.runs)}</p>
<div class="pictures">
{"".join(panels)}</div>
"""


def _panel(title: str, picture: str, told: str) -> str:
    return f"""<figure role="img" aria-label="{escape(title)}"><figcaption><b>{escape(title)}</b></figcaption>
{picture}<p class="soft">{escape(told)}</p></figure>
"""


def _histogram(searches: Searches) -> str:
    picture = search_plots.histogram({method: searches.distances(method) for method in searches.runs})
    told = "Percent of the samples, logarithmic bins; the outermost bars hold what lies beyond."
    return _panel("Distances", picture, told)


def _tradeoff(searches: Searches) -> str:
    curves = {
        method: [(point.gradients, point.median) for point in points] for method, points in searches.curves.items()
    }
    if not any(math.isfinite(median) for points in curves.values() for _, median in points):
        return ""
    own = {
        method: next((point.gradients, point.median) for point in points if point.steps == own_steps(method))
        for method, points in searches.curves.items()
    }
    told = "Towards the lower left is better. A point is a number of steps; the filled one is the method's own."
    return _panel("Median distance against gradients", search_plots.tradeoff(curves, own), told)


def _scatter(searches: Searches) -> str:
    if searches.pair is None:
        return ""
    first, second = searches.pair
    percent, both = searches.closer(first, second)
    if not both:
        return ""
    picture = search_plots.scatter({method: searches.distances(method) for method in searches.runs}, (first, second))
    told = (
        f"{second} is closer for {number(percent)} % of the {both} samples that both have an example of: those below "
        "the diagonal. A point has the colour of the closer method."
    )
    return _panel(f"{second} against {first}, sample by sample", picture, told)


def _examples(searches: Searches) -> str:
    rows = _chosen(searches)
    if not rows:
        return ""
    differences = {(row, method): _difference(searches, method, row) for row in rows for method in searches.runs}
    factor = amplification([*differences.values()])
    width = max(20.0, 6.5 * (1 + len(searches.runs)))  # of a card, at least
    cards = "".join(_card(searches, row, differences, factor) for row in rows)
    return f"""<h2>Some of the examples</h2>
<p>The image, what each method made of it with the class that the model takes it for and the distance, and below what
was changed, enlarged {factor} times (grey: unchanged). From the closest to the farthest.</p>
<div class="examples" style="grid-template-columns: repeat(auto-fill, minmax(min(100%, {width}rem), 1fr))">
{cards}</div>
"""


def _chosen(searches: Searches) -> list[int]:
    """Rows of which all methods have an example, evenly spread by the distance of the closest method."""
    columns = torch.stack([run.result.distance.cpu().double() for run in searches.runs.values()])
    fit = (searches.counted & columns.isfinite().all(0)).nonzero()[:, 0]
    ordered = fit[columns.amin(0)[fit].argsort(stable=True)]
    spread = torch.linspace(0, len(ordered) - 1, min(EXAMPLES, len(ordered)), device="cpu").round().long()
    rows: list[int] = ordered[spread].tolist()
    return rows


def _difference(searches: Searches, method: str, row: int) -> NDArray[np.float32]:
    example, image = searches.runs[method].result.images[row].cpu(), searches.images[row].cpu()
    difference: NDArray[np.float32] = (example.float() - image.float()).numpy()
    return difference


def _card(searches: Searches, row: int, differences: dict[tuple[int, str], NDArray[np.float32]], factor: int) -> str:
    image, number_of_it = searches.images[row].float().cpu().numpy(), int(searches.ids[row])
    columns = [("original", image, _class(searches, int(searches.labels[row])), f"id {number_of_it}")]
    for method, run in searches.runs.items():
        wrong, distance = _class(searches, int(run.result.labels[row])), float(run.result.distance[row])
        columns.append((method, image + differences[row, method], wrong, number(distance, 3)))
    names = "".join(f"<b>{escape(name)}</b>" for name, *_ in columns)
    pictures = "".join(f'<img alt="{escape(name)}" src="{png_uri(drawn)}">' for name, drawn, *_ in columns)
    changes = "".join(
        f'<img alt="change by {escape(method)}" src="{png_uri(0.5 + factor * differences[row, method])}">'
        for method in searches.runs
    )
    original, *told = [f"<span>{escape(name)}<br>{value}</span>" for _, _, name, value in columns]
    return f"""<figure><div style="grid-template-columns: repeat({len(columns)}, minmax(3.5rem, 1fr))">
{names}{pictures}{original}{changes}<i></i>{"".join(told)}</div></figure>
"""


def _settings(searches: Searches, method: str) -> str:
    return ", ".join(f"{name} {value}" for name, value in searches.settings(method).items() if value is not None)


def _class(searches: Searches, label: int) -> str:
    return searches.classes[label] if searches.classes else str(label)
