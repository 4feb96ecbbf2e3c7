"""A report as one HTML page: no scripts, no other files, no network."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from amun_ext.evaluation.plots import histograms, png_uri
from amun_ext.evaluation.text import CAVEAT, cells, number, summary

if TYPE_CHECKING:
    from amun_ext.evaluation.report import Report

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #63636b; --paper: #fff; --line: #dcdce1; --mark: #eef4ff;
  --forget: #c8470a; --test: #1f5fd6; --retain: #9a9aa3; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --soft: #a3a3ad; --paper: #17171a; --line: #3a3a41;
  --mark: #1d2a40; --forget: #ff9a5c; --test: #82b1ff; --retain: #7d7d87; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
p { max-width: 46rem; margin: .5rem 0 } .soft, dl { color: var(--soft); font-size: .875rem }
.scroll { overflow-x: auto; margin-top: 1.2rem } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper) }
tr.baseline > * { background: var(--mark); font-weight: 600 } tbody th { font-weight: inherit }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .8rem 0 } dd { margin: 0 }
dt { font-weight: 600; overflow-wrap: anywhere } dd { overflow-wrap: anywhere }
figure { margin: 0; min-width: 0 } figcaption { font-size: .875rem } svg { display: block; width: 100%; height: auto }
svg text { font-family: inherit !important }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1.2rem }
.key span { margin-right: 1.2rem; white-space: nowrap }
.key i { display: inline-block; width: 1.6em; margin-right: .4em; vertical-align: middle; border-top: 3px solid }
.twins { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 1.2rem }
.twins div { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px }
.twins img { width: 100%; display: block; image-rendering: pixelated }
"""


def render(report: Report) -> str:
    sections = [_opening(report), _table(report), _histograms(report), _twins(report), _facts(report)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Unlearning report</title>
<style>{CSS}</style>
</head>
<body>
{"".join(sections)}</body>
</html>
"""


def _opening(report: Report) -> str:
    return f'<h1>Unlearning report</h1>\n<p>{escape(summary(report))}</p>\n<p class="soft">{CAVEAT}</p>\n'


def _table(report: Report) -> str:
    headings, *lines = cells(report)
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr{" class=baseline" if name == report.baseline else ""}><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>\n"
        for name, *values in lines
    )
    legend = _list({column.name: column.explanation for column in report.columns})
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Results">
<table><thead><tr>{head}</tr></thead><tbody>
{body}</tbody></table></div>
{legend}"""


def _histograms(report: Report) -> str:
    titles: dict[str, str] = {}
    for name, title in ((report.before, "before"), (report.headline, "after"), (report.baseline, "retraining")):
        if name is not None:
            titles.setdefault(name, title)
    drawn = histograms({name: report.scores[name] for name in titles})
    panels = "".join(
        f'<figure role="img" aria-label="Histogram of log-odds, {escape(name)}"><figcaption><b>{title}</b> '
        f"({escape(name)})</figcaption>{drawn[name]}</figure>\n"
        for name, title in titles.items()
    )
    return f"""<h2>Confidence in the true class</h2>
<p>Log-odds of the true class: at 0 the model gives it one half, at 4.6 it gives it 99 %. An attacker who wants to know
whether an image was trained on looks here. Every panel has the same axes; the outermost bars hold what lies beyond.</p>
<p class="key"><span><i style="color: var(--forget)"></i>forget ({report.sizes["forget"]})</span><span><i
style="color: var(--test); border-top-style: dashed"></i>test ({report.sizes["test"]})</span><span><i
style="color: var(--retain); border-top-width: .8em; opacity: .6"></i>retain ({report.sizes["retain"]})</span></p>
<div class="panels">
{panels}</div>
"""


def _twins(report: Report) -> str:
    if not report.twins:
        return ""
    # The median pair fills the grey scale; the farthest ones are clipped rather than the closest ones invisible.
    typical = float(np.median([np.abs(twin.adversarial - twin.image).max() for twin in report.twins]))
    factor = max(1, round(0.5 / typical)) if typical else 1
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


def _facts(report: Report) -> str:
    if not report.facts:
        return ""
    facts = {str(key): _words(value) for key, value in report.facts.items()}
    return f"<h2>How this was made</h2>\n{_list(facts)}"


def _words(value: object) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else str(value)


def _list(entries: dict[str, str]) -> str:
    lines = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>\n" for term, meaning in entries.items())
    return f"<dl>\n{lines}</dl>\n"
