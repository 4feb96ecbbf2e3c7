"""An audit as one HTML page: no scripts, no other files, no network."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amun_ext.audit.text import CAVEAT, attack_cells, cells, headline, sentences
from amun_ext.evaluation import markup
from amun_ext.evaluation.page import confidence
from amun_ext.evaluation.plots import COLOURS, histograms, png_uri, svg
from amun_ext.evaluation.roc import roc
from amun_ext.evaluation.text import number

if TYPE_CHECKING:
    from amun_ext.audit import Audit

# Model -> colour and line. The baseline is drawn as a reader expects it: dashed.
LINES = {"original": ("retain", "-"), "retrained": ("test", "--"), "audited": ("forget", "-")}
LEAST = 0.1  # percent, where the axes of a ROC curve begin
CSS = """
.verdict { border-left: .4rem solid var(--line); padding: .2rem 0 .2rem 1rem; margin: 1rem 0 }
.verdict b { font-size: 1.35rem } .verdict.forgotten { border-color: var(--series-2) }
.verdict.not-forgotten, .verdict.over-forgotten { border-color: var(--forget) }
.verdict.cannot-tell { border-color: var(--series-4) } li { max-width: 46rem }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: 1rem }
.worst img { width: 100%; display: block; image-rendering: pixelated }
"""


def render(audit: Audit, with_images: bool = False) -> str:
    sections = [_opening(audit), _table(audit), _attacks(audit), _histograms(audit), _worst(audit, with_images)]
    return markup.document("Audit", [*sections, markup.facts(audit.facts)], CSS)


def _opening(audit: Audit) -> str:
    answer = audit.verdict.answer
    reason = headline(audit).partition(": ")[2]
    listed = "".join(f"<li>{escape(each)}</li>\n" for each in sentences(audit))
    return f"""<h1>Audit of an unlearned model</h1>
<div class="verdict {answer.replace(" ", "-")}"><b>{escape(answer.capitalize())}</b>
<p>{escape(reason[0].upper() + reason[1:])}</p></div>
<ul>
{listed}</ul>
<p class="soft">{CAVEAT}</p>
"""


def _table(audit: Audit) -> str:
    explained = markup.terms({measure.name: measure.explanation for measure in audit.measures})
    return f"""<h2>Measures</h2>
<p class="soft">In brackets: 95 % intervals, of these samples; of several models the range of theirs.</p>
{markup.table(cells(audit))}{explained}"""


def _attacks(audit: Audit) -> str:
    key = "".join(
        f'<span><i style="color: var(--{colour}); border-top-style: {"dashed" if line == "--" else "solid"}"></i>'
        f"{name}</span>"
        for name, (colour, line) in LINES.items()
        if name in audit.seen
    )
    panels = "".join(
        f'<figure role="img" aria-label="ROC curve of {escape(attack)}"><figcaption><b>{escape(attack)}</b>'
        f"</figcaption>{_roc(audit, attack)}</figure>\n"
        for attack in audit.attacks
    )
    return f"""<h2>Attacks</h2>
<p>Every attack gives each sample a score; forget samples above a threshold are called members, and so are some test
samples. The measures above are those of the first attack. The dotted line is a coin; a model that has forgotten lies on
it, or on the line of the retrained model.</p>
<p class="key">{key}</p>
<div class="panels">
{panels}</div>
{markup.table(attack_cells(audit))}"""


def _roc(audit: Audit, attack: str) -> str:
    def draw(axes: Any) -> None:
        axes.plot([LEAST, 100], [LEAST, 100], color=COLOURS["ink"][0], linewidth=0.8, linestyle=(0, (1.2, 1.6)))
        for name, (colour, line) in LINES.items():
            if name in audit.seen:
                scores = audit.seen[name].attacks[attack]
                curve = roc(scores["forget"], scores["test"])
                false, true = (np.maximum(side, LEAST / 2) for side in (curve.fpr, curve.tpr))
                axes.step(false, true, where="post", color=COLOURS[colour][0], linewidth=1.8, linestyle=line)
        ends = (LEAST, 100)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set(xlabel="test samples called members, %", ylabel="forget samples, %")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")

    return svg(f"roc {attack}", draw)


def _histograms(audit: Audit) -> str:
    drawn = histograms({name: seen.attacks["confidence"] for name, seen in audit.seen.items()}, normals=True)
    titles = {name: f"<b>{name}</b>" for name in drawn}
    return confidence(drawn, titles, audit.sizes, "Thin curves are normals of the same mean and deviation.")


def _worst(audit: Audit, with_images: bool) -> str:
    if not audit.pictures:
        return ""

    def image(number: int, picture: NDArray[np.float32]) -> str:
        return f'<img alt="forget sample {number}" src="{png_uri(picture)}">' if with_images else ""

    cards = "".join(
        f"<figure>{image(each.id, picture)}<figcaption>id {each.id}, {escape(audit.classes[each.label])}<br>"
        f"above {number(each.above)} % of the test samples</figcaption></figure>\n"
        for each, picture in zip(audit.members.samples, audit.pictures, strict=False)
    )
    return f"""<h2>Forget samples that look most like members</h2>
<p>{len(audit.pictures)} of {len(audit.members.samples)}; audit.json has the ids of all.</p>
<div class="worst">
{cards}</div>
"""
