"""A comparison as one HTML page: no scripts, no other files, no network."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from amun_ext.deletion.request import ORIGINAL, RETRAIN
from amun_ext.evaluation import compare_plots, markup
from amun_ext.evaluation.text import number
from amun_ext.experiments.comparison import NO_BETTER, NOOP, NOTHING, SETTINGS, explanations
from amun_ext.unlearning import METHODS

if TYPE_CHECKING:
    from amun_ext.experiments.comparison import Comparison, Line, Statistic

CAVEAT = (
    "One checkpoint is given: the seeds differ in what the methods draw and in the first weights of retraining, not in "
    "the model before nor in what is forgotten. So a deviation says nothing about other models or other requests. The "
    "AUC is that of one simple attack."
)
CSS = """
body { max-width: 84rem } .pictures { margin-top: 1.2rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1rem 1.8rem }
.pictures p { font-size: .875rem }
th, td { padding: .4rem .55rem } th:last-child, td:last-child { text-align: left; white-space: normal }
"""


def render(comparison: Comparison) -> str:
    settings = [_setting(comparison, setting) for setting in comparison.tables]
    sections = [_opening(comparison), *settings, markup.terms(explanations()), _failures(comparison), _made(comparison)]
    return markup.document("Unlearning methods compared", sections, CSS)


def _opening(comparison: Comparison) -> str:
    return f"""<h1>Unlearning methods compared</h1>
<p>{escape(_summary(comparison))}</p>
<p class="soft">{CAVEAT}</p>
"""


def _summary(comparison: Comparison) -> str:
    sizes, seeds = comparison.sizes, comparison.seeds
    sentences = [
        f"{sizes['forget']} images are to be forgotten, {sizes['retain']} to be retained; {sizes['test']} are there to "
        f"test with. Every method ran with {seeds} seed{'s' * (seeds > 1)}. The goal is to be like retraining without "
        "the forgotten images, in every column; the no-op is the model before."
    ]
    for setting in comparison.tables:
        best = _best(comparison, setting)
        if best is not None:
            own, noop = (comparison.statistics(setting, name)["gap"] for name in (best, NOOP))
            title = comparison.tables[setting][best].title
            sentences.append(
                f"{SETTINGS[setting]}: {title} comes closest, with a gap of {own.told(2)} points; the no-op's is "
                f"{number(noop.mean, 2)}."
            )
    return " ".join(sentences)


def _best(comparison: Comparison, setting: str) -> str | None:
    """The method with the smallest gap, among those that do something."""
    gaps = {
        name: comparison.statistics(setting, name)["gap"].mean
        for name in comparison.tables[setting]
        if name not in (RETRAIN, NOOP) and not {NOTHING, NO_BETTER} & {*comparison.remarks(setting, name)}
    }
    finite = {name: value for name, value in gaps.items() if math.isfinite(value)}
    return min(finite, key=lambda name: finite[name]) if finite else None


def _setting(comparison: Comparison, setting: str) -> str:
    lines = comparison.tables[setting]
    seen = {line.title: comparison.statistics(setting, name) for name, line in lines.items()}

    def spread(of: Statistic) -> tuple[float, float]:
        return of.mean, of.deviation

    fixed = METHODS[RETRAIN].title, ORIGINAL
    accuracies = compare_plots.accuracies(
        {title: (spread(of["UA"]), spread(of["TA"])) for title, of in seen.items()}, *fixed
    )
    gaps = compare_plots.gaps({title: spread(of["gap"]) for title, of in seen.items()}, *fixed)
    reach = f"{compare_plots.REACH:g}"
    return f"""<h2>{escape(SETTINGS[setting])}</h2>
{markup.table(comparison.cells(setting), marked=METHODS[RETRAIN].title)}<div class="pictures">
<figure role="img" aria-label="UA against TA, {escape(SETTINGS[setting])}"><figcaption><b>Forgetting against
usefulness</b></figcaption>{accuracies}<p class="soft">Mean and standard deviation over seeds; best is where the dashed
lines of retraining meet. What is more than {reach} points away stands at the edge, hollow.</p></figure>
<figure role="img" aria-label="Gap by method, {escape(SETTINGS[setting])}"><figcaption><b>Gap to retraining</b>
</figcaption>{gaps}<p class="soft">Mean and standard deviation over seeds. Beyond the dashed line, the no-op's gap, it
would be better to do nothing; what is far beyond is cut.</p></figure>
</div>
"""


def _failures(comparison: Comparison) -> str:
    failures = comparison.failures()
    return f"<h2>Failed</h2>\n{markup.terms(failures)}" if failures else ""


def _made(comparison: Comparison) -> str:
    how = {
        f"{line.title}, {SETTINGS[setting]}": _options(line)
        for setting, lines in comparison.tables.items()
        for name, line in lines.items()
        if line.plan is not None and name != RETRAIN
    }
    retrain = next(iter(comparison.tables.values()))[RETRAIN]
    return markup.facts({**comparison.facts, retrain.title: _options(retrain), **how})


def _options(line: Line) -> str:
    assert line.plan is not None
    told = line.plan.to_dict()
    recipe = told.pop("recipe")
    assert isinstance(recipe, dict)
    options = ", ".join(f"{name} {_short(value)}" for name, value in {**told, **recipe}.items() if value is not None)
    return f"{options} (from: {line.plan.source})"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
