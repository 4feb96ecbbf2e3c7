"""What amun tune goes by: its objectives, what it draws, and which trial it chooses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch.utils.data import TensorDataset
from tuning_tools import SHORT

from amun_ext import tuning
from amun_ext.tuning import context, objectives, space
from amun_ext.unlearning import METHODS, Targets
from amun_ext.unlearning.config import resolve_config


class TestObjectives:
    def test_kolmogorov_smirnov(self) -> None:
        low, high = np.arange(4.0), np.arange(4.0) + 10
        assert objectives.kolmogorov_smirnov(low, low) == 0
        assert objectives.kolmogorov_smirnov(low, high) == objectives.kolmogorov_smirnov(high, low) == 100
        assert objectives.kolmogorov_smirnov(low, low[:2]) == 50
        assert objectives.kolmogorov_smirnov(low, low[2:]) == 50
        # as scipy's, of five samples at least: of one on either side its p-value divides by zero
        random = np.random.default_rng(torch.randint(2**31, ()).item())
        for _ in range(20):
            first, second = (random.integers(0, 30, random.integers(5, 50)) / 7 for _ in range(2))  # with ties
            expected = 100 * ks_2samp(first, second, method="asymp").statistic
            assert objectives.kolmogorov_smirnov(first, second) == pytest.approx(expected)

    def test_row(self) -> None:
        report = {"UA": 90.0, "RA": 98.0, "TA": 80.0, "FT AUC": 55.0, "seconds": 3.0}
        log_odds = {"forget": np.array([1.0, 2.0]), "test": np.array([1.0, 9.0]), "retain": np.array([5.0])}
        original = {"UA": 100.0, "RA": 100.0, "TA": 84.0, "FT AUC": 60.0}
        retrained = {"UA": 84.0, "RA": 100.0, "TA": 82.0, "FT AUC": 51.0}
        row = objectives.objective_row(report, log_odds, original, retrained)
        assert row == {
            **{"UA": 90.0, "RA": 98.0, "TA": 80.0, "FT AUC": 55.0, "KS": 50.0},
            "expected gap": (6 + 2 + 4 + 5) / 4,
            "gap": (6 + 2 + 2 + 4) / 4,
        }
        assert "gap" not in objectives.objective_row(report, log_odds, original, None)
        alone = objectives.objective_row(report, log_odds, None, None)
        assert alone["expected gap"] == (10 + 0 + 0 + 5) / 4

    def test_floor(self) -> None:
        original = {"TA": 84.0}
        assert objectives.floor("held-out", original, 2.0) == 82.0
        assert objectives.floor("retrain", original, 2.0) == 0.0


class Noted:
    """A draw that takes the least of everything, and notes it."""

    def __init__(self) -> None:
        self.floats: dict[str, tuple] = {}
        self.choices: dict[str, tuple] = {}

    def suggest_float(self, name, low, high, *, log):
        self.floats[name] = (low, high, log)
        return low

    def suggest_categorical(self, name, choices):
        self.choices[name] = choices
        return choices[0]


class TestSpace:
    @pytest.mark.parametrize("method", [name for name in METHODS if name != "retrain"])
    def test_each_method_has_its_dimensions(self, method: str) -> None:
        draw = Noted()
        values = space.draw_parameters(method, draw)
        own = {"amun": ["include_forget"], "salun": ["mask"], "l1-sparse": ["gamma"], "distill": ["weight"]}
        own |= {"amun+salun": ["mask", "include_forget"], "scrub": ["kl_weight", "ascent_epochs"], "neggrad+": ["beta"]}
        own |= {"ssd": ["selection", "dampening"], "msg": ["reset_fraction"], "regun": ["forget_weight"]}
        training = ["lr", "schedule"] if METHODS[method].trains else []
        assert list(values) == [*training, *own.get(method, [])]
        assert draw.floats.get("lr", (1e-6, 1e-1, True)) == (1e-6, 1e-1, True)
        assert draw.choices.get("schedule", space.SPACE["schedule"].values) == ("step:1", "step:5", "constant")
        assert draw.floats.get("mask", (0.1, 0.9, False)) == (0.1, 0.9, False)
        assert draw.floats.get("gamma", (1e-5, 1e-3, True)) == (1e-5, 1e-3, True)
        # and these are options that the method takes
        inputs = {
            "targets": Targets(torch.zeros(1, 2), torch.zeros(1, 16, dtype=torch.uint8), {}),
            "held_out": TensorDataset(torch.zeros(1, 2), torch.zeros(1)),
        }
        chosen = resolve_config(method, default=space.options(values, SHORT), **inputs)
        assert chosen.recipe == (replace(SHORT, lr=1e-6, schedule="step:1") if training else SHORT)
        assert chosen.mask == values.get("mask")
        own = {name: values[name] for name in values.keys() & {"include_forget", "gamma"}}
        assert own.items() <= chosen.options.items()

    def test_tunable(self) -> None:
        assert tuning.tunable() == [name for name in METHODS if name != "retrain"]
        alone = [name for name, row in METHODS.items() if not row.needs_retain]
        assert tuning.tunable(with_retain=False) == alone


def trial(number: int, row: dict[str, float] | str | None, again: dict[str, float] | str | None = None) -> tuning.Trial:
    """With the rows of its two runs; a word in place of one is why it failed."""
    first, second = (context.TrialResult(run, {}) if isinstance(run, dict) else run for run in (row, again))
    result, failure = (None, first) if isinstance(first, str) else (first, None)
    return tuning.Trial("ft", number, {"lr": 0.1, "schedule": "constant"}, result, failure, second)


def tuned(*trials: tuning.Trial, objective: str) -> tuning.Tuning:
    original = context.TrialResult({"TA": 80.0, "expected gap": 5.0, "gap": 5.0}, {})
    made = {"retrained": None, "with_retain": True, "recipe": SHORT, "ids": [], "facts": {}}
    return tuning.Tuning({"ft": trials}, original=original, objective=objective, max_accuracy_drop=5.0, **made)


class TestChoice:
    def test_a_trial_that_loses_too_much_accuracy_is_never_chosen(self) -> None:
        measured = [(74.9, 1.0, 9.0), (75.0, 2.0, 8.0), (90.0, 2.0, 7.0), (70.0, 0.0, 6.0)]
        rows = [dict(zip(("TA", "expected gap", "gap"), each, strict=True)) for each in measured]
        kept = [trial(number, row) for number, row in enumerate(rows)]
        trials = [trial(4, "it diverged"), *kept]
        result = tuned(*trials, objective="held-out")
        assert result.best("ft") is kept[1]  # the first of equal ones
        assert result.best("ft", "retrain") is kept[3]
        assert [result.feasible(each) for each in trials] == [False, False, True, True, False]
        assert [result.feasible(each, "retrain") for each in trials] == [False, True, True, True, True]
        assert result.trial_counts()["ft"] == "5 trials, of which 1 diverged and 2 lost too much accuracy"
        no_better = replace(result, original=context.TrialResult({"TA": 80.0, "expected gap": 2.0, "gap": 5.0}, {}))
        assert "no better than doing nothing (expected gap 2.00, and 2.00" in no_better.trial_counts()["ft"]
        assert replace(result, max_accuracy_drop=10.0).best("ft") is kept[3]
        assert replace(result, max_accuracy_drop=-11.0).best("ft") is None

    def test_the_finalist_with_the_best_mean_is_chosen(self) -> None:
        def gap(value: float) -> dict[str, float]:
            return {"TA": 80.0, "gap": value}

        def best(*trials: tuning.Trial, objective: str = "retrain") -> int | None:
            chosen = tuned(*trials, objective=objective).best("ft", "retrain")
            return None if chosen is None else chosen.number

        lucky, diverges = trial(0, gap(1.0), gap(9.0)), trial(1, gap(1.5), "it diverged")
        steady, late = trial(2, gap(3.0), gap(4.0)), trial(3, gap(3.2))
        assert best(late, steady, diverges, lucky) == 2
        assert best(lucky, diverges) == 0
        assert best(diverges) is None
        assert best(lucky, diverges, steady, late, objective="held-out") == 0  # by another objective, by the first run
        assert (lucky.row, diverges.row, late.row) == (gap(5.0), None, gap(3.2))
