"""The document of a report: summary, table, histograms, and adversarial examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amun_ext.metrics.auc import FEW, auc
from amun_ext.report import parts
from amun_ext.report.figures import SETS, amplification, histograms, png_uri
from amun_ext.report.tables import Column, Row, Table, number, value

if TYPE_CHECKING:
    from amun_ext.evaluation.report import Report

PERCENT = "\u00a0%"  # no line break before it
CAVEAT = (
    "This is an empirical measurement: it describes these models on these images under one simple attack, "
    "and says nothing about other attacks or other images."
)
CONFIDENCE = (
    "Log-odds of the true class: 0 is a probability of 50 %, 4.6 is 99 %. An attacker who wants to know whether the "
    "model was trained on an image uses them. All panels have the same axes; the outermost bars include all values "
    "beyond."
)
DATA = {  # the data sets in names of rows and methods
    "D_F": "the forget set: the training samples that are to be forgotten",
    "D_R": "the retain set: all other training samples",
    "D_A": "the adversarial examples of D_F, with the wrong labels that the model gives them",
}


def document(report: Report) -> parts.Document:
    table = Table(
        "models",
        "model",
        [Column(column.name) for column in report.columns],
        [
            Row(name, [value(row[column.name], column.digits) for column in report.columns])
            for name, row in report.rows.items()
        ],
        marked=report.baseline,
    )
    titles: dict[str, str] = {}
    for name, title in ((report.before, "before"), (report.highlight, "after"), (report.baseline, "retraining")):
        if name is not None:
            titles.setdefault(name, title)
    return parts.Document(
        "Unlearning report",
        [
            *(parts.Paragraph(f"{remark}.", lead="Warning:") for remark in report.remarks),
            parts.Paragraph(summary(report)),
            parts.Paragraph(CAVEAT, soft=True),
            table,
            parts.Glossary({column.name: column.explanation for column in report.columns} | DATA),
            *confidence({name: report.scores[name] for name in titles}, titles, report.sizes),
            *_examples(report),
            parts.Facts(report.facts),
        ],
    )


def confidence(
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]],
    titles: Mapping[str, str],
    sizes: Mapping[str, int],
    more: str = "",
) -> list[parts.Block]:
    """Histograms of log-odds: row -> set -> scores [N], row -> title; `more`: about the normal curves, if any."""
    drawn = histograms(scores, normals=bool(more))
    marks = [replace(mark, name=f"{name} ({sizes[name]})") for name, mark in SETS.items()]
    panels = [
        parts.Figure(
            titles[name],
            draw,
            more="" if titles[name] == name else f"({name})",
            label=f"Histogram of log-odds, {name}",
        )
        for name, draw in drawn.items()
    ]
    return [
        parts.Heading("Confidence in the true class"),
        parts.Figures(panels, f"{CONFIDENCE} {more}".strip(), key=marks),
    ]


def _examples(report: Report) -> list[parts.Block]:
    if not report.examples:
        return []
    factor = amplification([example.adversarial - example.image for example in report.examples])
    about = (
        "The image, the closest image found that the model before assigns to another class, and their difference "
        f"enlarged {factor} times (grey: unchanged), from the closest pair to the farthest."
    )
    if any(example.distance == 0 for example in report.examples):
        about += " At L2 0.000 the example is the image itself: the model before misclassifies it."
    cards = []
    for example in report.examples:
        shown = {
            "forget image": example.image,
            "adversarial example": example.adversarial,
            "their difference": 0.5 + factor * (example.adversarial - example.image),
        }
        pictures = [parts.Picture(alt, partial(png_uri, image)) for alt, image in shown.items()]
        cards.append(([pictures], f"{example.true} → {example.wrong}, L2 {number(example.distance, 3)}"))
    return [parts.Images(cards, "Forget images and their adversarial examples", about)]


def counted(count: float, what: str) -> str:
    """The number with the noun in singular or plural."""
    return f"{count:.0f} {what}" + "s" * (count != 1)


def summary(report: Report) -> str:
    """One paragraph for a reader who does not know unlearning."""
    before, after = report.rows[report.before], report.rows[report.highlight]
    retrain = report.rows[report.baseline] if report.baseline is not None else None

    def change(key: str) -> str:
        old, new = (number(row[key], unit=PERCENT) for row in (before, after))
        verb = "rose" if after[key] > before[key] else "fell"
        moved = f"stayed at {new}" if old == new else f"{verb} from {old} to {new}"
        now = f"is {new}" if report.highlight == report.before else moved
        return f"{now}; retraining gives {number(retrain[key], unit=PERCENT)}" if retrain else now

    sentences = [
        f"Accuracy on the {counted(report.sizes['forget'], 'forgotten image')} {change('UA')}.",
        f"Accuracy on the {counted(report.sizes['test'], 'test image')} {change('TA')}.",
        "The chance that the model is more confident on a forgotten image than on a test image (FT AUC, which an "
        f"attacker uses) {change('FT AUC')}; 50{PERCENT} is guessing.",
    ]
    scores = report.scores[report.highlight]
    area = auc(scores["forget"], scores["test"])
    if area.samples < FEW:
        low, high = (number(end, unit=PERCENT) for end in area.interval())
        sentences.append(
            f"There are too few samples to measure FT AUC well: its 95{PERCENT} interval is {low} to {high}."
        )
    if retrain and 2 * abs(after["UA"] - retrain["UA"]) > abs(before["UA"] - retrain["UA"]):
        sentences.append("The accuracy on the forgotten images is closer to the model before than to retraining.")
    if retrain and math.isfinite(after["seconds"] + retrain["seconds"]):
        sentences.append(f"It took {number(after['seconds'])} seconds, retraining {number(retrain['seconds'])}.")
    if report.search:
        of, distance = counted(report.search["samples"], "forgotten image"), number(report.search["median_distance"], 2)
        sentences.append(
            f"The search found an adversarial example for {report.search['found']} of {of}, at a median L2 distance of "
            f"{distance}."
        )
    if report.highlight != report.before:
        sentences.append(f"The model before is {report.before}, the model after is {report.highlight}.")
    return " ".join(sentences)
