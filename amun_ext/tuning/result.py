"""The result of a tuning: all trials, the choice by each objective, and the files."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amun_ext.files import atomic_folder, to_jsonable, workplace, write_json
from amun_ext.metrics.measures import Values
from amun_ext.report import Document, Result
from amun_ext.training import Recipe
from amun_ext.tuning.context import TrialResult
from amun_ext.tuning.objectives import COLUMNS, OBJECTIVES, floor
from amun_ext.tuning.space import Parameters, options
from amun_ext.unlearning.config import save_tuned_options

FINALISTS = 3  # trials of a method that are run a second time: the best of many single runs can be good by luck


@dataclass(frozen=True)
class Trial:
    """A set of options with its `result` or the reason of its `failure`; a finalist also has a `rerun`."""

    method: str
    number: int
    parameters: Parameters
    result: TrialResult | None
    failure: str | None
    rerun: TrialResult | str | None = None  # result or failure of a second run with another seed

    @property
    def row(self) -> Values | None:
        """The mean of the runs; None where one failed."""
        first, second = self.result, self.rerun or self.result
        if not isinstance(first, TrialResult) or not isinstance(second, TrialResult):
            return None
        return {name: (value + second.row[name]) / 2 for name, value in first.row.items()}


@dataclass(frozen=True, eq=False)
class Tuning(Result):
    """The result of `tune`. Its numbers are those of the proxy forget set, not of the request's own."""

    trials: Mapping[str, Sequence[Trial]]  # method -> by number
    original: TrialResult
    retrained: TrialResult | None
    objective: str
    with_retain: bool
    max_accuracy_drop: float
    recipe: Recipe
    ids: Sequence[int]  # of the proxy forget set, in the training set
    facts: Mapping[str, object]

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives whose column was measured."""
        return [name for name, each in OBJECTIVES.items() if each.column in self.original.row]

    def feasible(self, trial: Trial, objective: str | None = None) -> bool:
        """Whether the trial has a result that keeps the accuracy of the objective."""
        return self._keeps(None if trial.result is None else trial.result.row, objective)

    def finalists(self, method: str, objective: str | None = None) -> list[Trial]:
        """The feasible trials that an objective prefers, the best first, by their first runs; `FINALISTS` at most."""
        column = OBJECTIVES[objective or self.objective].column
        fit = [trial for trial in self.trials[method] if self.feasible(trial, objective)]
        return sorted(fit, key=lambda trial: trial.result.row[column] if trial.result else math.inf)[:FINALISTS]

    def best(self, method: str, objective: str | None = None) -> Trial | None:
        """The feasible trial that an objective prefers, the first of equal ones; None where none is feasible.

        By the objective of the search, finalists are compared by the mean of their runs; by another, by the first run.
        """
        finalists = self.finalists(method, objective)
        if objective in (None, self.objective):
            column = OBJECTIVES[self.objective].column
            finalists = [trial for trial in finalists if self._keeps(trial.row, objective)]
            finalists.sort(key=lambda trial: trial.row[column] if trial.row else math.inf)
        return next(iter(finalists), None)

    def _keeps(self, row: Values | None, objective: str | None) -> bool:
        return row is not None and row["TA"] >= floor(
            objective or self.objective, self.original.row, self.max_accuracy_drop
        )

    def tuned_options(self, objective: str | None = None) -> dict[tuple[str, bool], dict[str, Any]]:
        """For each method that has a best trial: arguments of `unlearn`."""
        found = {method: self.best(method, objective) for method in self.trials}
        return {
            (method, self.with_retain): options(trial.parameters, self.recipe)
            for method, trial in found.items()
            if trial is not None
        }

    def trial_counts(self) -> dict[str, str]:
        """Method -> a sentence about its trials."""
        sentences = {}
        for method, trials in self.trials.items():
            failed = sum(trial.result is None for trial in trials)
            lost = sum(not self.feasible(trial) for trial in trials) - failed
            twice = sum(trial.rerun is not None for trial in trials)
            sentences[method] = (
                f"{len(trials)} trials, of which {failed} diverged and {lost} lost too much accuracy"
                + f"; the best {twice} were repeated with another seed" * (twice > 0)
                + self._no_better(method)
            )
        return sentences

    def _no_better(self, method: str) -> str:
        """That the choice is no better than the model before, by its own objective."""
        column, best = OBJECTIVES[self.objective].column, self.best(method)
        if best is None or best.row is None or best.row[column] < self.original.row[column]:
            return ""
        values = f"{column} {best.row[column]:.2f}, and {self.original.row[column]:.2f} without any unlearning"
        return f"; WARNING: the best is no better than doing nothing ({values}): try more trials or another method"

    def document(self) -> Document:
        from amun_ext.tuning.document import document

        return document(self)

    def to_dict(self) -> dict[str, object]:
        """All trials, as plain JSON values."""
        names = self.objectives
        best = {name: {method: self.best(method, name) for method in self.trials} for name in names}
        content = {
            "objective": self.objective,
            "best": {
                objective: {method: trial and trial.number for method, trial in trials.items()}
                for objective, trials in best.items()
            },
            "original": self.original.row,
            "retrained": None if self.retrained is None else self.retrained.row,
            "trials": {method: [self._record(trial) for trial in trials] for method, trials in self.trials.items()},
            "columns": {name: about for name, (about, _) in COLUMNS.items() if name in self.original.row},
            "recipe": self.recipe,
            "facts": self.facts,
            "proxy_ids": self.ids,
        }
        return {key: to_jsonable(value) for key, value in content.items()}

    def _record(self, trial: Trial) -> dict[str, object]:
        measured: dict[str, object] = (
            {} if trial.result is None else {**trial.result.row, "seconds": trial.result.seconds}
        )
        if trial.rerun is not None:
            measured["rerun"] = trial.rerun.row if isinstance(trial.rerun, TrialResult) else trial.rerun
        return {
            "number": trial.number,
            **trial.parameters,
            "failure": trial.failure,
            "feasible": self.feasible(trial),
            **measured,
        }


def write(tuning: Tuning, folder: str | os.PathLike[str]) -> None:
    """tuned.json with the options chosen by `tuning.objective`, trials.json and tuning.html into `folder`."""
    about = {"objective": tuning.objective, "measured_on": "a proxy forget set", **tuning.facts}
    with workplace(folder, "tune") as place, atomic_folder(folder, place) as files:
        save_tuned_options(
            files / "tuned.json", tuning.tuned_options(), {key: to_jsonable(value) for key, value in about.items()}
        )
        write_json(files / "trials.json", tuning.to_dict())
        tuning.to_html(files / "tuning.html")
