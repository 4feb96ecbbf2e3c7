"""A report as one HTML page: no scripts, no other files, no network."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from amun_ext.evaluation import markup
from amun_ext.evaluation.plots import amplification, histograms, png_uri
from amun_ext.evaluation.text import CAVEAT, cells, number, summary

if TYPE_CHECKING:
    from amun_ext.evaluation.report import Report

CSS = """
.twins { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 1.2rem }
.twins div { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px }
.twins img { width: 100%; display: block; image-rendering: pixelated }
"""


def render(report: Report, with_images: bool = False) -> str:
    pictures = _twins(report) if with_images else ""
    sections = [_opening(report), _table(report), _histograms(report), pictures, markup.facts(report.facts)]
    return markup.document("Unlearning report", sections, CSS)


def _opening(report: Report) -> str:
    warned = "".join(f"<p><b>Warning:</b> {escape(remark)}.</p>\n" for remark in report.remarks)
    return f'<h1>Unlearning report</h1>\n{warned}<p>{escape(summary(report))}</p>\n<p class="soft">{CAVEAT}</p>\n'


def _table(report: Report) -> str:
    legend = markup.terms({column.name: column.explanation for column in report.columns})
    return markup.table(cells(report), marked=report.baseline) + legend


def _histograms(report: Report) -> str:
    titles: dict[str, str] = {}
    for name, title in ((report.before, "before"), (report.headline, "after"), (report.baseline, "retraining")):
        if name is not None:
            titles.setdefault(name, title)
    drawn = histograms({name: report.scores[name] for name in titles})
    shown = {name: f"<b>{title}</b> ({escape(name)})" for name, title in titles.items()}
    return confidence(drawn, shown, report.sizes)


def confidence(drawn: Mapping[str, str], titles: Mapping[str, str], sizes: Mapping[str, int], more: str = "") -> str:
    """The section on histograms of log-odds: row -> picture, row -> caption, set -> size; `more` about the curves."""
    panels = "".join(
        f'<figure role="img" aria-label="Histogram of log-odds, {escape(name)}"><figcaption>{titles[name]}</figcaption>'
        f"{picture}</figure>\n"
        for name, picture in drawn.items()
    )
    return f"""<h2>Confidence in the true class</h2>
<p>Log-odds of the true class: at 0 the model gives it one half, at 4.6 it gives it 99 %. An attacker who wants to know
whether an image was trained on looks here. Every panel has the same axes; the outermost bars hold what lies beyond.
{more}</p>
<p class="key"><span><i style="color: var(--forget)"></i>forget ({sizes["forget"]})</span><span><i
style="color: var(--test); border-top-style: dashed"></i>test ({sizes["test"]})</span><span><i
style="color: var(--retain); border-top-width: .8em; opacity: .6"></i>retain ({sizes["retain"]})</span></p>
<div class="panels">
{panels}</div>
"""


def _twins(report: Report) -> str:
    if not report.twins:
        return ""
    factor = amplification([twin.adversarial - twin.image for twin in report.twins])
    cards = "".join(
        "<figure><div>"
        + "".join(
            f'<img alt="{alt}" src="{png_uri(image)}">'
            for alt, image in (
                ("forget image", twin.image),
                ("adversarial twin", twin.adversarial),
                ("their difference", 0.5 + factor * (twin.adversarial - twin.image)),
            )
        )
        + f"</div><figcaption>{escape(twin.true)} → {escape(twin.wrong)}, "
        + f"L2 {number(twin.distance, 3)}</figcaption></figure>\n"
        for twin in report.twins
    )
    return f"""<h2>Forget images and their adversarial twins</h2>
<p>The image, the closest image found that the model before takes for another class, and their difference
enlarged {factor} times (grey: unchanged), from the closest pair to the farthest.</p>
<div class="twins">
{cards}</div>
"""
