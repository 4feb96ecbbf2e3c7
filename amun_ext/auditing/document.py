"""What an audit says: the verdict and why, measures with intervals, attacks, and who looks like a member."""

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

# The baseline is drawn as a reader expects it: dashed.
MODELS = {
    ORIGINAL: parts.Mark(ORIGINAL, "retain"),
    RETRAINED: parts.Mark(RETRAINED, "test", (4, 1.6)),
    AUDITED: parts.Mark(AUDITED, "forget"),
}
LEAST = 0.1  # percent, where the axes of a ROC curve begin
SHOWN = 10  # samples in a list
CAVEAT = (
    "An audit is an empirical measurement: it describes these models on these samples under these attacks. A stronger "
    "attack may find what they do not, and the interval of one model does not hold what another run would change."
)
INTERVALS = "In brackets: 95 % intervals, of these samples; of several models the range of theirs."
TEST = (
    "The verdict is of two one-sided tests at the 5 % level, one for each side of the margin; both together are the "
    "90 % interval that it names."
)
CURVES = (
    "Every attack gives each sample a score; forget samples above a threshold are called members, and so are some test "
    "samples. The measures above are those of the first attack. The dotted line is a coin; a model that has forgotten "
    "lies on it, or on the line of the retrained model."
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
            parts.Items(sentences(audit)),
            *tested,
            parts.Paragraph(CAVEAT, soft=True),
            parts.Heading("Measures"),
            parts.Paragraph(INTERVALS, soft=True),
            _measures(audit),
            parts.Glossary(explained),
            parts.Heading("Attacks"),
            parts.Key([mark for name, mark in MODELS.items() if name in audit.observations]),
            parts.Figures(
                [
                    parts.Figure(each, partial(_roc, audit, each), label=f"ROC curve of {each}")
                    for each in audit.attacks
                ],
                CURVES,
            ),
            _attacks(audit),
            *confidence(
                {name: observed.attacks["confidence"] for name, observed in audit.observations.items()},
                {name: name for name in audit.observations},
                audit.sizes,
                "Thin curves are normals of the same mean and deviation.",
            ),
            *members,
            parts.Facts(audit.facts),
        ],
    )


def reason(audit: Audit) -> str:
    """Of the verdict, a sentence or two."""
    verdict = audit.verdict
    said = f"{verdict.reason[0].upper()}{verdict.reason[1:]}."
    if verdict.answer != CANNOT_TELL or math.isnan(verdict.required_ids):
        return said
    if verdict.required_ids > audit.sizes["forget"] + audit.sizes["retain"]:
        return f"{said} No number of ids that the training set has would decide it."
    ids = f"{verdict.required_ids:,.0f} ids rather than {audit.sizes['forget']:,}"
    return f"{said} With {ids} this difference would decide."


def sentences(audit: Audit) -> list[str]:
    """What else a reader should know, in order of weight."""
    members = audit.members
    told = [*audit.flags]
    others = {attack: each for attack, each in audit.verdicts.items() if each is not audit.verdict}
    told += [f"By {attack} alone: {each.answer} ({each.reason})" for attack, each in others.items()]
    told.append(
        f"To {members.attack} {len(members.samples)} of {audit.sizes['forget']} forget samples look more like members "
        f"than 99 % of the test samples do; {members.expected_by_chance:.1f} would by chance."
    )
    if audit.runs:
        told.append(
            f"U-LiRA against {audit.runs['runs']:.0f} other runs of the method: FT AUC {audit.runs['mean']:.1f} +- "
            f"{audit.runs['deviation']:.1f}, mean and deviation over runs and samples."
        )
    if audit.harm:
        lost, gained = audit.harm["retain_samples_lost"], audit.harm["retain_samples_gained"]
        told.append(
            f"Of {audit.sizes['retain']} retained samples {lost:.0f} are wrong that the model it is compared with has "
            f"right, {gained:.0f} the other way round."
        )
    return [f"{each[0].upper()}{each[1:]}{'' if each.endswith('.') else '.'}" for each in told]


def _cell(of: Estimate | None, digits: int = 1) -> Cell:
    return interval(math.nan, math.nan, math.nan) if of is None else interval(of.value, of.low, of.high, digits)


def _measures(audit: Audit) -> Table:
    """A measure in every row, a model in every column."""
    rows = [
        Row(measure.name, [_cell(row.get(measure.name), measure.digits) for row in audit.rows.values()])
        for measure in audit.measures
    ]
    return Table("measures", "measure", [Column(name) for name in audit.rows], rows)


def _attacks(audit: Audit) -> Table:
    """A model in every row, under its attack."""
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
    told = f"{len(cards)} of {len(found)}; audit.json has the ids of all."
    return [parts.Heading(title), Table("members", "id", columns, rows), parts.Images(cards, "As pictures", told)]


def _class(audit: Audit, label: int) -> str:
    return audit.classes[label] if audit.classes else str(label)


def _roc(audit: Audit, attack: str) -> str:
    def draw(axes: Any) -> None:
        axes.plot([LEAST, 100], [LEAST, 100], color=INK, linewidth=0.8, linestyle=(0, (1.2, 1.6)))
        for name, mark in MODELS.items():
            if name in audit.observations:
                scores = audit.observations[name].attacks[attack]
                curve = roc(scores["forget"], scores["test"])
                false, true = (np.maximum(side, LEAST / 2) for side in (curve.fpr, curve.tpr))
                axes.step(false, true, where="post", linewidth=1.8, **line(mark))
        ends = (LEAST, 100)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set(xlabel="test samples called members, %", ylabel="forget samples, %")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")

    return svg(f"roc {attack}", draw)
