"""A search for options as one HTML page: no scripts, no other files, no network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from amun_ext.evaluation import markup
from amun_ext.evaluation.markup import SERIES
from amun_ext.evaluation.plots import COLOURS, svg
from amun_ext.evaluation.text import number
from amun_ext.tuning.objectives import COLUMNS, OBJECTIVES
from amun_ext.tuning.space import SPACE, OneOf
from amun_ext.tuning.stage import QUANTILES, Seen

if TYPE_CHECKING:
    from amun_ext.tuning.result import Trial, Tuning

CAVEAT = (
    "Of these numbers none is a result: they were measured on a set that stands in for the request's, and the best of "
    "many trials looks better than it is. Measure what was chosen on the request itself, with the other half of the "
    "test set."
)
SIZE = (3.6, 2.9)
CSS = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); gap: 1rem 1.8rem }
.pictures p { font-size: .875rem }
"""


def render(tuning: Tuning) -> str:
    opening = f'<h1>Tuning</h1>\n<p>{escape(_summary(tuning))}</p>\n<p class="soft">{CAVEAT}</p>\n'
    explained = markup.terms({name: COLUMNS[name][0] for name in tuning.original.row})
    methods = [_method(tuning, method) for method in tuning.trials]
    table = markup.table(tuning.cells(), marked="retrain") + explained
    return markup.document("Tuning", [opening, table, *methods, _failures(tuning), markup.facts(tuning.facts)], CSS)


def _summary(tuning: Tuning) -> str:
    objective = OBJECTIVES[tuning.by]
    asked = f"The options for which {objective.explanation}: those with the least {objective.column}"
    kept = f", among the trials that lose at most {tuning.max_drop:g} points of accuracy on held-out data"
    return asked + (kept if objective.keeps_accuracy else "") + "."


def _method(tuning: Tuning, method: str) -> str:
    best = tuning.best(method)
    found = [trial for trial in tuning.trials[method] if trial.seen is not None]
    models = {
        "before": tuning.original,
        "as chosen": None if best is None else best.seen,
        "retrained": tuning.retrained,
    }
    shown = {title: seen for title, seen in models.items() if seen is not None}
    ends = _ends(shown.values())
    panels = [_rates(tuning, method, found, best)] if found else []
    panels += [_confidence(method, title, seen, ends) for title, seen in shown.items()]
    chosen = "No trial keeps the accuracy." if best is None else f"Chosen: trial {best.number}."
    return f"""<h2>{escape(method)}</h2>
<p>{escape(tuning.counted()[method])}. {chosen}</p>
<div class="pictures">
{"".join(panels)}</div>
"""


def _rates(tuning: Tuning, method: str, found: list[Trial], best: Trial | None) -> str:
    column = OBJECTIVES[tuning.by].column
    schedules = SPACE["schedule"][0]
    assert isinstance(schedules, OneOf)
    colours = {schedule: f"series-{index % SERIES}" for index, schedule in enumerate(schedules.values)}

    def draw(axes: Any) -> None:
        for trial in found:
            assert trial.seen is not None
            colour = COLOURS[colours[trial.parameters["schedule"]]][0]
            face = colour if tuning.feasible(trial) else "none"
            at = trial.parameters["lr"], trial.seen.row[column]
            axes.plot(*at, marker="o", markersize=5, color=colour, markerfacecolor=face, clip_on=False)
            if trial is best:
                axes.plot(*at, marker="o", markersize=11, color=colour, markerfacecolor="none", clip_on=False)
        axes.axhline(tuning.original.row[column], color=COLOURS["ink"][0], linewidth=0.8, linestyle=(0, (1.2, 1.2)))
        axes.set(xscale="log", xlabel="learning rate", ylabel=column)
        axes.set_ylim(bottom=0.0)

    key = "".join(
        f'<span><i style="color: var(--{colour})"></i>{escape(schedule)}</span>' for schedule, colour in colours.items()
    )
    told = "Hollow: too much accuracy was lost. Ringed: the choice. Dotted: the model before."
    return _panel(f"{method}: {column} by learning rate", key, svg(f"{method} rates", draw, SIZE), told)


def _ends(models: Iterable[Seen]) -> tuple[float, float]:
    """Of the axis that all panels of a method have, but for the outermost percent of a set."""
    sets = [quantiles for seen in models for quantiles in seen.log_odds.values()]
    return min(quantiles[1] for quantiles in sets), max(quantiles[-2] for quantiles in sets)


def _confidence(method: str, title: str, seen: Seen, ends: tuple[float, float]) -> str:
    def draw(axes: Any) -> None:
        for name, style in (("test", (0, (4, 1.5))), ("forget", "-")):
            axes.plot(seen.log_odds[name], 100.0 * QUANTILES, color=COLOURS[name][0], linewidth=2.0, linestyle=style)
        axes.set(xlim=ends, ylim=(0.0, 100.0), xlabel="log-odds of the true class", ylabel="% of the set below")

    key = (
        '<span><i style="color: var(--forget)"></i>forget</span>'
        '<span><i style="color: var(--test); border-top-style: dashed"></i>held out</span>'
    )
    told = f"The curves are {number(seen.row['KS'])} points apart where they are farthest (KS)."
    return _panel(f"{method}: confidence, {title}", key, svg(f"{method} {title}", draw, SIZE), told)


def _panel(title: str, key: str, picture: str, told: str) -> str:
    return f"""<figure role="img" aria-label="{escape(title)}"><figcaption><b>{escape(title)}</b></figcaption>
<p class="key">{key}</p>
{picture}<p class="soft">{escape(told)}</p></figure>
"""


def _failures(tuning: Tuning) -> str:
    failed = {
        f"{method}, trial {trial.number}": f"lr {trial.parameters['lr']:.3g}: {trial.failure}"
        for method, trials in tuning.trials.items()
        for trial in trials
        if trial.failure is not None
    }
    return f"<h2>What diverged</h2>\n{markup.terms(failed)}" if failed else ""
