"""The document of a tuning: the chosen options, and for each method its trials and their confidence."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from amun_ext.metrics.measures import Values
from amun_ext.report import parts
from amun_ext.report.figures import COLOURS, INK, MARKERS, SERIES, SETS, line, svg
from amun_ext.report.tables import Cell, Column, Row, Table, number, value, word
from amun_ext.tuning.context import QUANTILES, TrialResult
from amun_ext.tuning.objectives import COLUMNS, OBJECTIVES
from amun_ext.tuning.space import SPACE, OneOf, Parameters

if TYPE_CHECKING:
    from amun_ext.tuning.result import Trial, Tuning

BEFORE, RETRAIN = "no-op (original)", "retrain"
CAVEAT = (
    "These numbers are not results: they were measured on a proxy forget set instead of the request, and the best of "
    "many trials looks better than it is. Measure the chosen options on the request itself, with the other half of the "
    "test set."
)
SIZE = (3.6, 2.9)


def document(tuning: Tuning) -> parts.Document:
    failed = {
        f"{method}, trial {trial.number}": f"{name} {trial.parameters[name]:.3g}: {trial.failure}"
        for method, trials in tuning.trials.items()
        for trial in trials
        for name in [_main_parameter(trial)]
        if trial.failure is not None
    }
    return parts.Document(
        "Tuning",
        [
            parts.Paragraph(_summary(tuning)),
            parts.Paragraph(CAVEAT, soft=True),
            _choices(tuning),
            parts.Items([f"{method}: {sentence}" for method, sentence in tuning.trial_counts().items()]),
            parts.Glossary({name: COLUMNS[name][0] for name in COLUMNS if name in tuning.original.row}),
            *(block for method in tuning.trials for block in _method(tuning, method)),
            *([parts.Glossary(failed, "What diverged")] if failed else []),
            _trials(tuning),
            parts.Facts(tuning.facts),
        ],
    )


def _summary(tuning: Tuning) -> str:
    objective = OBJECTIVES[tuning.objective]
    objective_text = f"The options for which {objective.explanation}: those with the smallest {objective.column}"
    kept = f", among the trials that lose at most {tuning.max_accuracy_drop:g} points of accuracy on held-out data"
    return objective_text + (kept if objective.keeps_accuracy else "") + "."


def _choices(tuning: Tuning) -> Table:
    """A row for each choice and for the models to compare with."""
    models: dict[str, tuple[Values | None, Parameters]] = {BEFORE: (tuning.original.row, {})}
    for method in tuning.trials:
        for objective in tuning.objectives:
            if (trial := tuning.best(method, objective)) is not None:
                models[f"{method}, by {objective}"] = trial.row, trial.parameters
    models[RETRAIN] = None if tuning.retrained is None else tuning.retrained.row, {}
    return _table("choices", {("", name): each for name, each in models.items() if each[0]}, tuning, marked=RETRAIN)


def _trials(tuning: Tuning) -> Table:
    rows = {
        (method, str(trial.number)): (trial.row, trial.parameters)
        for method, trials in tuning.trials.items()
        for trial in trials
    }
    return _table("trials", rows, tuning, of="trial", groups_of="method", folded=True)


def _table(
    name: str,
    models: dict[tuple[str, str], tuple[Values | None, Parameters]],
    tuning: Tuning,
    *,
    of: str = "model",
    **more: Any,
) -> Table:
    """(group, name) of each row -> its measures and the options that were searched."""
    columns = [column for column in COLUMNS if column in tuning.original.row]
    searched = list(dict.fromkeys(each for _, parameters in models.values() for each in parameters))
    rows = [
        Row(
            title,
            [
                *(value(math.nan if row is None else row[each], COLUMNS[each][1]) for each in columns),
                *(_parameter_cell(parameters.get(each)) for each in searched),
            ],
            group,
        )
        for (group, title), (row, parameters) in models.items()
    ]
    return Table(name, of, [Column(each) for each in [*columns, *searched]], rows, **more)


def _parameter_cell(of: object) -> Cell:
    if isinstance(of, float):
        return Cell(f"{of:.3g}", {"": of})
    return word("" if of is None else str(of))


def _method(tuning: Tuning, method: str) -> list[parts.Block]:
    best = tuning.best(method)
    found = [trial for trial in tuning.trials[method] if trial.result is not None]
    models = {
        "before": tuning.original,
        "as chosen": None if best is None else best.result,
        "retrained": tuning.retrained,
    }
    shown = {title: result for title, result in models.items() if result is not None}
    sets = [quantiles for result in shown.values() for quantiles in result.log_odds.values()]
    # All panels of a method have one axis, without the outermost percent of each set.
    ends = min(quantiles[1] for quantiles in sets), max(quantiles[-2] for quantiles in sets)
    column = OBJECTIVES[tuning.objective].column
    figures = []
    if found:
        caption = "Hollow: lost too much accuracy. Ringed: chosen. Dotted: the original model."
        first = _main_parameter(found[0])
        draw = partial(_draw_trials, tuning, method, found, best, first)
        figures.append(parts.Figure(f"{method}: {column} by {first}", draw, caption))
    for title, result in shown.items():
        caption = f"The largest distance between the curves (KS) is {number(result.row['KS'])} points."
        draw = partial(_draw_confidence, f"{method} {title}", result, ends)
        figures.append(parts.Figure(f"{method}: confidence, {title}", draw, caption))
    chosen = "No trial keeps the accuracy." if best is None else f"Chosen: trial {best.number}."
    schedules = [parts.Mark(schedule, colour, points=MARKERS["o"]) for schedule, colour in _colours().items()]
    key = [*schedules, SETS["forget"], parts.Mark("held out", "test", SETS["test"].dashes)]
    return [parts.Heading(method), parts.Figures(figures, chosen, key=key)]


def _main_parameter(trial: Trial) -> str:
    """The first of the search space: the learning rate, where there is one."""
    return next(iter(trial.parameters))


def _colours() -> dict[str, str]:
    """Schedule -> colour, different from those of the sets."""
    schedules = SPACE["schedule"]
    assert isinstance(schedules, OneOf)
    return {schedule: f"series-{2 + index % (SERIES - 2)}" for index, schedule in enumerate(schedules.values)}


def _draw_trials(tuning: Tuning, method: str, found: list[Trial], best: Trial | None, first: str) -> str:
    """`first` is the parameter of the horizontal axis."""
    column, colours = OBJECTIVES[tuning.objective].column, _colours()

    def draw(axes: Any) -> None:
        for trial in found:
            assert trial.result is not None
            colour = COLOURS[colours.get(str(trial.parameters.get("schedule")), "series-2")][0]
            face = colour if tuning.feasible(trial) else "none"
            at = trial.parameters[first], trial.result.row[column]
            axes.plot(*at, marker="o", markersize=5, color=colour, markerfacecolor=face, clip_on=False)
            if trial is best:
                axes.plot(*at, marker="o", markersize=11, color=colour, markerfacecolor="none", clip_on=False)
        axes.axhline(tuning.original.row[column], color=INK, linewidth=0.8, linestyle=(0, (1.2, 1.2)))
        axes.set(xscale="log", xlabel=first, ylabel=column)
        axes.set_ylim(bottom=0.0)

    return svg(f"{method} rates", draw, SIZE)


def _draw_confidence(salt: str, result: TrialResult, ends: tuple[float, float]) -> str:
    def draw(axes: Any) -> None:
        for name in ("test", "forget"):
            axes.plot(result.log_odds[name], 100.0 * QUANTILES, linewidth=2.0, markevery=10, **line(SETS[name]))
        axes.set(xlim=ends, ylim=(0.0, 100.0), xlabel="log-odds of the true class", ylabel="% of the set below")

    return svg(salt, draw, SIZE)
