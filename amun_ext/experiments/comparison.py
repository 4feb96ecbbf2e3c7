"""The result of a comparison: the paper's table over seeds, and remarks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from amun_ext.deletion.request import RETRAIN
from amun_ext.files import to_jsonable
from amun_ext.metrics import gap
from amun_ext.metrics.measures import REPORT_MEASURES, Measure, Values
from amun_ext.report import Document, Result
from amun_ext.unlearning.config import MethodConfig

NOOP = "no-op"
SETTINGS = {"with": "with D_R", "without": "D_F only"}  # name -> heading
NOTHING, NO_BETTER, TOO_MUCH, NEEDS = "like doing nothing", "worse than nothing", "forgets too much", "needs D_R"
REMARKS = {
    NOTHING: "its UA is within two standard errors (over samples and seeds) of the no-op's",
    NO_BETTER: "its gap is no smaller than the no-op's",
    TOO_MUCH: "its FT AUC is more than two of its standard errors (DeLong) below that of retraining",
    NEEDS: "the method trains on D_R only",
}
MEASURED = tuple(each for each in REPORT_MEASURES if not each.has_baseline)  # of each seed by itself
COLUMNS: tuple[Measure, ...] = (  # of a table, the seconds last
    *(each for each in REPORT_MEASURES if each.name not in ("FT SE", "seconds", "speed-up")),
    *(each for each in REPORT_MEASURES if each.name == "seconds"),
)


@dataclass(frozen=True)
class Statistic:
    """Over seeds; NaN where there are none, or too few."""

    mean: float
    deviation: float
    n: int


@dataclass(frozen=True)
class RunResult:
    """The measures of one seed by column, or why there is no model."""

    row: Values
    failed: str = ""
    left_out: int = 0  # forget samples without an adversarial example


@dataclass(frozen=True)
class TableRow:
    """A row of a table. `config` is None for the no-op, and where the method cannot be run in this setting."""

    title: str
    config: MethodConfig | None
    cells: Mapping[int, RunResult]  # by seed

    @property
    def rows(self) -> list[Values]:
        return [cell.row for cell in self.cells.values() if not cell.failed]

    def over_seeds(self, column: str) -> Statistic:
        return statistic([row[column] for row in self.rows])


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """The result of `compare`."""

    tables: Mapping[str, Mapping[str, TableRow]]  # setting -> row -> line: retrain, no-op, and the methods
    sizes: Mapping[str, int]  # forget, retain, test -> number of samples
    seeds: int
    ids: Sequence[int]  # of the forget set
    facts: Mapping[str, object]

    def statistics(self, setting: str, name: str) -> dict[str, Statistic]:
        """Every measure, and the gap: that of each seed to the mean of retraining, as in the paper (section 3.3)."""
        line, retrain = self.tables[setting][name], self.tables[setting][RETRAIN]
        baseline = {column.name: retrain.over_seeds(column.name).mean for column in MEASURED}
        measures = {column.name: line.over_seeds(column.name) for column in MEASURED}
        return measures | {"gap": statistic([gap(row, baseline) for row in line.rows])}

    def remarks(self, setting: str, name: str) -> list[str]:
        """Short remarks on a row, see REMARKS."""
        line = self.tables[setting][name]
        failed, left_out = sum(bool(cell.failed) for cell in line.cells.values()), _left_out(line)
        said = [f"{failed} of {len(line.cells)} failed"] if failed else []
        said += [f"{left_out} samples left out"] if left_out else []
        if name in (RETRAIN, NOOP):
            return said
        if line.config is None:
            return [NEEDS]
        own, noop, retrain = (self.statistics(setting, row) for row in (name, NOOP, RETRAIN))
        share = own["UA"].mean / 100
        of_sample = 100 * math.sqrt(share * (1 - share) / self.sizes["forget"]) if line.rows else math.nan
        of_seeds = own["UA"].deviation / math.sqrt(own["UA"].n) if own["UA"].n > 1 else 0.0
        unmoved = abs(own["UA"].mean - noop["UA"].mean) <= 2 * math.hypot(of_sample, of_seeds)
        said += [NOTHING] if unmoved else [NO_BETTER] if own["gap"].mean >= noop["gap"].mean else []
        below = retrain["FT AUC"].mean - own["FT AUC"].mean
        return said + ([TOO_MUCH] if below > 2 * own["FT SE"].mean else [])

    def failures(self) -> dict[str, str]:
        """Which cells have no model, and why."""
        return {
            f"{line.title}, {SETTINGS[setting]}, seed {seed}": cell.failed
            for setting, lines in self.tables.items()
            for line in lines.values()
            for seed, cell in line.cells.items()
            if cell.failed
        }

    def document(self) -> Document:
        from amun_ext.experiments.compare_document import document

        return document(self)

    def to_dict(self) -> dict[str, object]:
        """As plain JSON values, with the cells of every seed."""
        tables = {
            setting: {name: self._line(setting, name) for name in lines} for setting, lines in self.tables.items()
        }
        common = {key: getattr(self, key) for key in ("sizes", "seeds", "facts", "ids")}
        return {
            key: to_jsonable(value) for key, value in {"tables": tables, "columns": explanations(), **common}.items()
        }

    def _line(self, setting: str, name: str) -> dict[str, object]:
        line = self.tables[setting][name]
        statistics = self.statistics(setting, name)
        return {
            "title": line.title,
            "options": None if line.config is None else line.config.to_dict(),
            "options_source": None if line.config is None else line.config.source,
            **{key: {"mean": of.mean, "deviation": of.deviation, "n": of.n} for key, of in statistics.items()},
            "remarks": self.remarks(setting, name),
            "cells": {
                seed: {"row": cell.row, "failed": cell.failed or None, "left_out": cell.left_out}
                for seed, cell in line.cells.items()
            },
        }


def explanations() -> dict[str, str]:
    """Of the columns and remarks, by name."""
    columns = {column.name: column.explanation for column in COLUMNS}
    own = {
        "gap": "mean distance of UA, RA, TA and FT AUC from the means of retraining, points; retraining has noise only",
        "n": "number of seeds; cells show their mean ± standard deviation",
    }
    return columns | own | REMARKS


def statistic(values: Sequence[float]) -> Statistic:
    """Mean, standard deviation and number."""
    mean = float(np.mean(values)) if values else math.nan
    return Statistic(mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, len(values))


def _left_out(line: TableRow) -> int:
    return max((cell.left_out for cell in line.cells.values()), default=0)
