"""A report in words and as an aligned table."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from amun_ext.evaluation.mia import FEW, auc

if TYPE_CHECKING:
    from amun_ext.evaluation.report import Report

PERCENT = "\u00a0%"  # never on a line of its own
CAVEAT = (
    "This is an empirical measurement: it describes these models on these images under one simple attack, "
    "and promises nothing about other attacks or other images."
)


def number(value: float, digits: int = 1, unit: str = "") -> str:
    """Fixed digits; a dash where there is no number."""
    return f"{value:.{digits}f}{unit}" if math.isfinite(value) else "-"


def counted(count: float, what: str) -> str:
    """The number and the noun, which agree."""
    return f"{count:.0f} {what}" + "s" * (count != 1)


def cells(report: Report) -> list[list[str]]:
    """The heading and one line per row, as strings."""
    lines = [
        [name, *(number(row[column.name], column.digits) for column in report.columns)]
        for name, row in report.rows.items()
    ]
    return [["", *(column.name for column in report.columns)], *lines]


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Headings and rows of cells, the first to the left, the others to the right, with a rule below the headings."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for name, *rest in lines
    ]
    return [shown[0], "-" * len(shown[0]), *shown[1:]]


def legend(entries: Mapping[str, str]) -> list[str]:
    """A line for each term and what it means."""
    width = max(map(len, entries))
    return [f"{term.ljust(width)}  {meaning}" for term, meaning in entries.items()]


def render(report: Report) -> str:
    """The table, aligned, what it says in words, and one line of legend per column."""
    columns = legend({column.name: column.explanation for column in report.columns})
    told, caveat = textwrap.wrap(summary(report), 100), textwrap.wrap(CAVEAT, 100)
    warned = [line for remark in report.remarks for line in textwrap.wrap(f"Warning: {remark}.", 100)]
    parts = (aligned(cells(report)), warned, told, columns, caveat)
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts if part)


def summary(report: Report) -> str:
    """One paragraph for a reader who has never heard of unlearning, from the numbers alone."""
    before, after = report.rows[report.before], report.rows[report.headline]
    retrain = report.rows[report.baseline] if report.baseline is not None else None

    def change(key: str) -> str:
        old, new = (number(row[key], unit=PERCENT) for row in (before, after))
        verb = "rose" if after[key] > before[key] else "fell"
        moved = f"stayed at {new}" if old == new else f"{verb} from {old} to {new}"
        now = f"is {new}" if report.headline == report.before else moved
        return f"{now}; retraining gives {number(retrain[key], unit=PERCENT)}" if retrain else now

    sentences = [
        f"Accuracy on the {counted(report.sizes['forget'], 'forgotten image')} {change('UA')}.",
        f"Accuracy on the {counted(report.sizes['test'], 'test image')} {change('TA')}.",
        "The chance that the model is surer of a forgotten image than of a test image, by which an attacker tells them "
        f"apart, {change('FT AUC')}; 50{PERCENT} is a coin toss.",
    ]
    scores = report.scores[report.headline]
    area = auc(scores["forget"], scores["test"])
    if area.samples < FEW:
        low, high = (number(end, unit=PERCENT) for end in area.interval())
        sentences.append(f"So few samples hardly tell that chance: its 95{PERCENT} interval is {low} to {high}.")
    if retrain and 2 * abs(after["UA"] - retrain["UA"]) > abs(before["UA"] - retrain["UA"]):
        sentences.append("That is nearer to the model before than to retraining: much is still to be forgotten.")
    if retrain and math.isfinite(after["seconds"] + retrain["seconds"]):
        sentences.append(f"It took {number(after['seconds'])} seconds, retraining {number(retrain['seconds'])}.")
    if report.search:
        of, distance = counted(report.search["samples"], "forgotten image"), number(report.search["median_distance"], 2)
        sentences.append(
            f"The search found an adversarial twin of {report.search['found']} of {of}, at a median L2 distance of "
            f"{distance}."
        )
    if report.headline != report.before:
        sentences.append(f"The model before is {report.before}, the model after is {report.headline}.")
    return " ".join(sentences)
