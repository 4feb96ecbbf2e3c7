"""The document of a comparison: a table and figures for each setting."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from amun_ext.deletion.request import ORIGINAL, RETRAIN
from amun_ext.evaluation.document import DATA
from amun_ext.experiments import compare_plots
from amun_ext.experiments.comparison import COLUMNS, NO_BETTER, NOOP, NOTHING, SETTINGS, explanations
from amun_ext.report import parts
from amun_ext.report.tables import Column, Row, Table, number, spread, value, word
from amun_ext.unlearning import METHODS

if TYPE_CHECKING:
    from amun_ext.experiments.comparison import Comparison, Statistic, TableRow

CAVEAT = (
    "The seeds change the randomness of the methods and the initial weights of retraining, but not the original model "
    "or the forget set. So the standard deviation says nothing about other models or other requests. The AUC is that "
    "of one simple attack."
)


def document(comparison: Comparison) -> parts.Document:
    failures = comparison.failures()
    return parts.Document(
        "Unlearning methods compared",
        [
            parts.Paragraph(_summary(comparison)),
            parts.Paragraph(CAVEAT, soft=True),
            *(block for setting in comparison.tables for block in _setting(comparison, setting)),
            *([parts.Glossary(failures, "Failed")] if failures else []),
            parts.Glossary(_methods(comparison) | DATA, "Methods"),
            parts.Glossary(explanations(), "Columns and remarks"),
            parts.Facts(_made(comparison)),
        ],
    )


def _summary(comparison: Comparison) -> str:
    sizes, seeds = comparison.sizes, comparison.seeds
    sentences = [
        f"{sizes['forget']} images are forgotten, {sizes['retain']} retained, and {sizes['test']} used for testing. "
        f"Every method ran with {seeds} seed{'s' * (seeds > 1)}. A good result is close to retraining without the "
        "forgotten images in every column; the no-op is the original model."
    ]
    for setting in comparison.tables:
        best = _best(comparison, setting)
        if best is not None:
            own, noop = (comparison.statistics(setting, name)["gap"] for name in (best, NOOP))
            title, gap = comparison.tables[setting][best].title, spread(own.mean, own.deviation, 2).text
            closest = f"{title} comes closest, with a gap of {gap} points; the no-op's is {number(noop.mean, 2)}."
            sentences.append(f"{SETTINGS[setting]}: {closest}")
    return " ".join(sentences)


def _best(comparison: Comparison, setting: str) -> str | None:
    """The method with the smallest gap, of those that are better than the no-op."""
    gaps = {
        name: comparison.statistics(setting, name)["gap"].mean
        for name in comparison.tables[setting]
        if name not in (RETRAIN, NOOP) and not {NOTHING, NO_BETTER} & {*comparison.remarks(setting, name)}
    }
    finite = {name: value for name, value in gaps.items() if math.isfinite(value)}
    return min(finite, key=lambda name: finite[name]) if finite else None


def _setting(comparison: Comparison, setting: str) -> list[parts.Block]:
    lines, rows = comparison.tables[setting], []
    statistics = {line.title: comparison.statistics(setting, name) for name, line in lines.items()}
    for name, line in lines.items():
        of = statistics[line.title]
        cells = [spread(of[column.name].mean, of[column.name].deviation, column.digits) for column in COLUMNS]
        remarks = ", ".join(comparison.remarks(setting, name))
        rows.append(Row(line.title, [*cells, value(len(line.rows), 0), word(remarks)]))
    columns = [*(Column(column.name) for column in COLUMNS), Column("n"), Column("remark", words=True)]

    def pair(of: Statistic) -> tuple[float, float]:
        return of.mean, of.deviation

    fixed, heading = (METHODS[RETRAIN].title, ORIGINAL), SETTINGS[setting]
    accuracies = {title: (pair(of["UA"]), pair(of["TA"])) for title, of in statistics.items()}
    gaps = {title: pair(of["gap"]) for title, of in statistics.items()}
    figures = [
        parts.Figure(
            "Forgetting against usefulness",
            partial(compare_plots.accuracies, accuracies, *fixed),
            "Mean and standard deviation over seeds; best is where the dashed lines of retraining meet. Methods "
            f"more than {compare_plots.REACH:g} points away are drawn hollow at the edge.",
            label=f"UA against TA, {heading}",
        ),
        parts.Figure(
            "Gap to retraining",
            partial(compare_plots.gaps, gaps, *fixed),
            "Mean and standard deviation over seeds. The dashed line is the gap of the no-op: a method beyond it is "
            "worse than doing nothing. Longer bars are cut.",
            label=f"Gap by method, {heading}",
        ),
    ]
    table = Table(setting, "method", columns, rows, marked=METHODS[RETRAIN].title)
    return [
        parts.Heading(heading),
        table,
        parts.Figures(figures, wide=True, key=compare_plots.key(statistics, *fixed)),
    ]


def _methods(comparison: Comparison) -> dict[str, str]:
    names = dict.fromkeys(name.partition(":")[0] for lines in comparison.tables.values() for name in lines)
    described = {METHODS[name].title: METHODS[name].description for name in names if name in METHODS}
    return described | {ORIGINAL: "the original model, unchanged"}


def _made(comparison: Comparison) -> dict[str, object]:
    how = {
        f"{line.title}, {SETTINGS[setting]}": _options(line)
        for setting, lines in comparison.tables.items()
        for name, line in lines.items()
        if line.config is not None and name != RETRAIN
    }
    retrain = next(iter(comparison.tables.values()))[RETRAIN]
    return {**comparison.facts, retrain.title: _options(retrain), **how}


def _options(line: TableRow) -> str:
    assert line.config is not None
    settings = line.config.to_dict()
    recipe = settings.pop("recipe")
    assert isinstance(recipe, dict)
    options = ", ".join(
        f"{name} {_short(value)}" for name, value in {**settings, **recipe}.items() if value is not None
    )
    return f"{options} (from: {line.config.source})"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
