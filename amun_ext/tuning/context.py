"""What all trials share: the proxy forget set, and how a trial is run and measured."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.data import find_duplicates
from amun_ext.data.images import Data, subset
from amun_ext.deletion.ids import some_ids, split
from amun_ext.evaluation import evaluate
from amun_ext.metrics.measures import Values
from amun_ext.models.reinitialise import Init
from amun_ext.search import AdversarialSet
from amun_ext.tuning.objectives import objective_row
from amun_ext.unlearning.config import resolve_config
from amun_ext.validation import InputError, require

QUANTILES = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class TrialResult:
    """The measures of a model on the sets of a trial."""

    row: Values  # by the names of COLUMNS
    log_odds: Mapping[str, list[float]]  # forget, test -> their quantiles at QUANTILES
    seconds: float | None = None  # to make it


@dataclass(frozen=True, eq=False)
class TrialContext:
    """The sets of all trials, and the rows of the original and the retrained model to compare with."""

    forget: TensorDataset  # the proxy forget set
    retain: TensorDataset
    test: TensorDataset  # to choose options with
    with_retain: bool
    adversarial: AdversarialSet | None
    seed: int
    inputs: Mapping[str, Any] = field(default_factory=dict)  # of `resolve_config`, which some methods need
    init: Init = None
    rows: Mapping[str, Values] = field(default_factory=dict)

    def observe(self, model: nn.Module, seconds: float | None = None) -> TrialResult:
        report = evaluate({"": model}, forget=self.forget, retain=self.retain, test=self.test, baseline=None)
        log_odds = report.scores[""]
        row = objective_row(report.rows[""], log_odds, self.rows.get("original"), self.rows.get("retrained"))
        shown = {name: np.quantile(log_odds[name], QUANTILES).tolist() for name in ("forget", "test")}
        return TrialResult(row, shown, seconds)


def run_trial(
    context: TrialContext, original: nn.Module, method: str, options: Mapping[str, Any], run: int = 0
) -> TrialResult | str:
    """The result of these options, or why they have none. Every `run` has its own seed."""
    start = time.perf_counter()
    config = resolve_config(method, context.with_retain, default=options, **context.inputs)
    config = config.with_init(context.init)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\d+ of \d+ forget samples")  # the search has warned once
            model = config.unlearn(
                original,
                context.forget,
                context.retain,
                adversarial=context.adversarial,
                seed=context.seed + run,
            )
    except FloatingPointError as error:
        return str(error)
    seconds = time.perf_counter() - start
    try:
        return context.observe(model, seconds)
    except InputError as error:  # the sets fit the original, so this model's logits are not finite
        return str(error)


def split_test_set(test: Data, seed: int) -> tuple[Data, Data]:
    """(held out, rest): a random half of the test set to choose options with, and the other half to measure on."""
    require(len(test) >= 4, "test", "of four samples at least, to be split in two", len(test))
    return split(test, some_ids(len(test), count=len(test) // 2, seed=seed))


def proxy_forget_set(retain: TensorDataset, count: int, seed: int) -> tuple[TensorDataset, TensorDataset, Tensor]:
    """(forget, retain, rows of forget): `count` samples, drawn from the retain set of the request, or half if fewer.

    Copies of drawn samples are in neither set.
    """
    expected = "such that four samples at least are left to tune on"
    require(len(retain) >= 4, "ids", expected, f"{len(retain)} left")
    rows = some_ids(len(retain), count=min(count, len(retain) // 2), seed=seed)
    forget, rest = split(retain, rows)
    kept = torch.ones(len(rest), dtype=torch.bool, device="cpu")
    kept[[row for _, row in find_duplicates(forget, rest)]] = False
    require(int(kept.sum()) >= 2, "ids", expected, f"copies of {len(forget)} samples")
    return forget, subset(rest, kept), rows
