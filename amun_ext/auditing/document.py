"""The document of an audit: verdict and reason, measures with intervals, attacks, and suspected members."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from amun_ext.auditing.verdict import AUDITED, CANNOT_TELL, FORGOTTEN, ORIGINAL, RETRAINED
from amun_ext.evaluation.document import confidence
from amun_ext.metrics.auc import roc
from amun_ext.metrics.measures import Estimate
from amun_ext.report import parts
from amun_ext.report.figures import INK, line, png_uri, svg
from amun_ext.report.tables import Cell, Column, Row, Table, interval, value, word

if TYPE_CHECKING:
    from amun_ext.auditing import Audit

MODELS = {
    ORIGINAL: parts.Mark(ORIGINAL, "retain"),
    RETRAINED: parts.Mark(RETRAINED, "test", (4, 1.6)),
    AUDITED: parts.Mark(AUDITED, "forget"),
}
MIN_RATE = 0.1  # percent, where the axes of a ROC curve begin
SHOWN = 10  # samples in a list
CAVEAT = (
    "An audit is an empirical measurement: it describes these models on these samples under these attacks. A stronger "
    "attack may find more, and the interval of one model does not include the variation between training runs."
)
INTERVALS = "In brackets: 95 % intervals over samples; for several models, the range of their intervals."
TEST = (
    "The verdict comes from two one-sided tests at the 5 % level, one for each side of the margin; together they "
    "correspond to the 90 % interval above."
)
CURVES = (
    "Each attack scores every sample and calls samples above a threshold members: the curves show how many forget "
    "and test samples are called members at each threshold. The measures above use the first attack. The dotted line "
    "is random guessing; a model that has forgotten lies on it, or on the line of the retrained model."
)


def document(audit: Audit) -> parts.Document:
    answer, members = audit.verdict.answer, _members(audit)
    tone = {FORGOTTEN: "good", CANNOT_TELL: "unsure"}.get(answer, "bad")
    explained = {measure.name: measure.explanation for measure in audit.measures}
    tested = [] if math.isnan(audit.verdict.interval[0]) else [parts.Paragraph(TEST, soft=True)]
    return parts.Document(
        f"Audit: {answer}",
        [
            parts.Answer(answer.capitalize(), reason(audit), tone),
            parts.Items(findings(audit)),
            *tested,
            parts.Paragraph(CAVEAT, soft=True),
            parts.Heading("Measures"),
            parts.Paragraph(INTERVALS, soft=True),
            _measures(audit),
            parts.Glossary(explained),
            parts.Heading("Attacks"),
            parts.Figures(
                [
                    parts.Figure(each, partial(_roc, audit, each), label=f"ROC curve of {each}")
                    for each in audit.attacks
                ],
                CURVES,
                key=[mark for name, mark in MODELS.items() if name in audit.observations],
            ),
            _attacks(audit),
            *confidence(
                {name: observed.attacks["confidence"] for name, observed in audit.observations.items()},
                {name: name for name in audit.observations},
                audit.sizes,
                "Thin curves are normal distributions with the same mean and standard deviation.",
            ),
            *members,
            parts.Facts(audit.facts),
        ],
    )


def reason(audit: Audit) -> str:
    """The reason for the verdict, and how many ids would decide it."""
    verdict = audit.verdict
    text = f"{verdict.reason[0].upper()}{verdict.reason[1:]}."
    if verdict.answer != CANNOT_TELL or math.isnan(verdict.required_ids):
        return text
    if verdict.required_ids > audit.sizes["forget"] + audit.sizes["retain"]:
        return f"{text} The training set has too few samples to decide this."
    ids = f"{verdict.required_ids:,.0f} ids instead of {audit.sizes['forget']:,}"
    return f"{text} With {ids} the same difference would decide."


def findings(audit: Audit) -> list[str]:
    """Sentences, the most important first."""
    members = audit.members
    found = [*audit.flags]
    others = {attack: each for attack, each in audit.verdicts.items() if each is not audit.verdict}
    found += [f"By {attack} alone: {each.answer} ({each.reason})" for attack, each in others.items()]
    found.append(
        f"Under {members.attack}, {len(members.samples)} of {audit.sizes['forget']} forget samples look more like "
        f"members than 99 % of the test samples; {members.expected_by_chance:.1f} are expected by chance."
    )
    if audit.runs:
        found.append(
            f"U-LiRA against {audit.runs['runs']:.0f} other runs of the method: FT AUC {audit.runs['mean']:.1f} +- "
            f"{audit.runs['deviation']:.1f}, mean and standard deviation over runs and samples."
        )
    if audit.harm:
        lost, gained = audit.harm["retain_samples_lost"], audit.harm["retain_samples_gained"]
        found.append(
            f"Of {audit.sizes['retain']} retained samples, {lost:.0f} are misclassified that the baseline classifies "
            f"correctly, and {gained:.0f} the other way round."
        )
    return [f"{each[0].upper()}{each[1:]}{'' if each.endswith('.') else '.'}" for each in found]


def _cell(of: Estimate | None, digits: int = 1) -> Cell:
    return interval(math.nan, math.nan, math.nan) if of is None else interval(of.value, of.low, of.high, digits)


def _measures(audit: Audit) -> Table:
    """A row for each of AUDIT_MEASURES (amun_ext/metrics/measures.py), a column for each model."""
    rows = [
        Row(measure.name, [_cell(row.get(measure.name), measure.digits) for row in audit.rows.values()])
        for measure in audit.measures
    ]
    return Table("measures", "measure", [Column(name) for name in audit.rows], rows)


def _attacks(audit: Audit) -> Table:
    """One row per model, grouped by attack."""
    columns = list(next(iter(next(iter(audit.attacks.values())).values())))
    rows = [
        Row(model, [_cell(row[column]) for column in columns], attack)
        for attack, models in audit.attacks.items()
        for model, row in models.items()
    ]
    return Table("attacks", "model", [Column(name) for name in columns], rows, groups_of="attack")


def _members(audit: Audit) -> list[parts.Block]:
    """The forget samples that look most like members."""
    found, title = audit.members.samples, "Forget samples that look most like members"
    if not found:
        return []
    columns = [Column("class", words=True), Column("above % of the test samples"), Column("confidence in its class, %")]
    rows = [
        Row(str(each.id), [word(_class(audit, each.label)), value(each.above, 2), value(100 * each.confidence)])
        for each in found[:SHOWN]
    ]
    cards: list[tuple[Sequence[Sequence[parts.Picture]], str]] = [
        (
            [[parts.Picture(f"forget sample {each.id}", partial(png_uri, picture))]],
            f"id {each.id}, {_class(audit, each.label)}",
        )
        for each, picture in zip(found, audit.pictures, strict=False)
    ]
    about = f"{len(cards)} of {len(found)}; audit.json lists all ids."
    pictures = [parts.Images(cards, "As pictures", about)] if cards else []
    return [parts.Heading(title), Table("members", "id", columns, rows), *pictures]


def _class(audit: Audit, label: int) -> str:
    return audit.classes[label] if audit.classes else str(label)


def _roc(audit: Audit, attack: str) -> str:
    def draw(axes: Any) -> None:
        axes.plot([MIN_RATE, 100], [MIN_RATE, 100], color=INK, linewidth=0.8, linestyle=(0, (1.2, 1.6)))
        for name, mark in MODELS.items():
            if name in audit.observations:
                scores = audit.observations[name].attacks[attack]
                curve = roc(scores["forget"], scores["test"])
                false, true = (np.maximum(side, MIN_RATE / 2) for side in (curve.fpr, curve.tpr))
                axes.step(false, true, where="post", linewidth=1.8, **line(mark))
        ends = (MIN_RATE, 100)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set(xlabel="test samples called members, %", ylabel="forget samples, %")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")

    return svg(f"roc {attack}", draw)
