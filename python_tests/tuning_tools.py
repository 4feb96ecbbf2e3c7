"""Small studies: a network for 200 digits, and `amun tune` of it with trials of one epoch."""

import contextlib
import functools
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import data, models, tuning
from amun_ext.data import Splits
from amun_ext.training import DataPart, Pass, Recipe, fit
from amun_ext.tuning import space

TRAINING = Recipe(epochs=15, lr=0.1, schedule="cosine", batch_size=32)
SHORT = Recipe(epochs=1, lr=0.1, batch_size=32)
METADATA = {"recipe": json.dumps(asdict(TRAINING))}
IDS = torch.arange(20)


def untrained() -> nn.Module:
    return models.build("small-cnn", num_classes=10, in_channels=1, width=4)


@functools.cache
def splits() -> Splits:
    digits = data.load("digits")
    return Splits(TensorDataset(*digits.train[:200]), TensorDataset(*digits.test[:160]), digits.classes)


@functools.cache
def original() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = untrained()
    fit(model, [Pass([DataPart(splits().train)])], TRAINING)
    return model


def tune(out: Path, methods: tuple[str, ...] = ("ft",), **options: object) -> tuning.Tuning:
    given = {"model": original(), "splits": splits(), "ids": IDS, "methods": list(methods), "out": out}
    return tuning.tune(**given | {"trials": 3, "recipe": SHORT, "metadata": METADATA} | options)


def results(tuned: tuning.Tuning) -> dict[str, list[tuple]]:
    """Everything of the trials but how long they took."""
    return {
        method: [
            (
                trial.number,
                dict(trial.parameters),
                trial.failure,
                *(run and (run.row, run.log_odds) for run in (trial.result, trial.rerun)),
            )
            for trial in trials
        ]
        for method, trials in tuned.trials.items()
    }


def set_rates(monkeypatch, low: float, high: float) -> None:
    changed = {**space.SPACE, "lr": space.Between(low, high, log=True)}
    monkeypatch.setattr(space, "SPACE", changed)


def finished(out: Path) -> dict[int, str]:
    """Trial -> what was said at its end. 6 is Optuna's number for a change of a trial's state."""
    ends = {}
    for line in (out / "journal.log").read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry["op_code"] == 6 and entry["state"]:  # 0: it begins
                assert entry["trial_id"] not in ends
                ends[entry["trial_id"]] = line
    return ends
