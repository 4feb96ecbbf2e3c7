"""amun tune: what is searched and on which data, how trials are judged, kills, workers, failures, files."""

import contextlib
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_tools import INTERRUPT, ROOT, SELF, alive, begun, ended_at, wait_for
from scipy.stats import ks_2samp
from test_report import Page
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, cli, data, models, parallel, tuning
from amun_ext.data import Splits, find_duplicates
from amun_ext.files import workplace
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.tuning import context, objectives, space, study
from amun_ext.tuning.result import FINALISTS
from amun_ext.unlearning import METHODS, Targets
from amun_ext.unlearning.config import load_tuned_options, resolve_config

TRAINING = Recipe(epochs=15, lr=0.1, schedule="cosine", batch_size=32)
SHORT = Recipe(epochs=1, lr=0.1, batch_size=32)
METADATA = {"recipe": json.dumps(asdict(TRAINING))}
IDS = torch.arange(20)


@pytest.fixture(scope="module")
def splits() -> Splits:
    digits = data.load("digits")
    return Splits(TensorDataset(*digits.train[:200]), TensorDataset(*digits.test[:160]), digits.classes)


@pytest.fixture(scope="module")
def original(splits) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=4)
    fit(model, [Pass([DataPart(splits.train)])], TRAINING, RunOptions())
    return model


@pytest.fixture
def tune(original, splits, tmp_path):
    def tuned(methods=("ft",), out: Path = tmp_path / "out", **options) -> tuning.Tuning:
        return tuning.tune(
            original,
            splits,
            IDS,
            list(methods),
            out=out,
            **{"trials": 3, "recipe": SHORT, "metadata": METADATA} | options,
        )

    return tuned


def told(result: tuning.Tuning) -> dict[str, list[tuple]]:
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
        for method, trials in result.trials.items()
    }


def rates(monkeypatch, low: float, high: float) -> None:
    changed = {**space.SPACE, "lr": (space.Between(low, high, log=True), lambda method: True)}
    monkeypatch.setattr(space, "SPACE", changed)


class TestObjectives:
    def test_kolmogorov_smirnov_in_closed_form(self) -> None:
        low, high = np.arange(4.0), np.arange(4.0) + 10
        assert objectives.kolmogorov_smirnov(low, low) == 0
        assert objectives.kolmogorov_smirnov(low, high) == objectives.kolmogorov_smirnov(high, low) == 100
        assert objectives.kolmogorov_smirnov(low, low[:2]) == 50
        assert objectives.kolmogorov_smirnov(low, low[2:]) == 50

    def test_kolmogorov_smirnov_as_scipy(self) -> None:
        """Of five samples at least: of one on either side scipy's p-value divides by zero."""
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
        values = space.drawn(method, draw)
        own = {"amun": ["include_forget"], "salun": ["mask"], "l1-sparse": ["gamma"]}
        own["distill"] = ["weight"]
        own["amun+salun"] = ["mask", "include_forget"]
        assert list(values) == ["lr", "schedule", *own.get(method, [])]
        assert draw.floats["lr"] == (1e-6, 1e-1, True)
        assert draw.choices["schedule"] == ("step:1", "step:5", "constant")
        assert draw.floats.get("mask", (0.1, 0.9, False)) == (0.1, 0.9, False)
        assert draw.floats.get("gamma", (1e-5, 1e-3, True)) == (1e-5, 1e-3, True)
        # and these are options that the method takes
        targets = Targets(torch.zeros(1, 2), torch.zeros(1, 16, dtype=torch.uint8), {})
        chosen = resolve_config(method, default=space.options(values, SHORT), targets=targets)
        assert chosen.recipe == replace(SHORT, lr=1e-6, schedule="step:1")
        assert chosen.mask == values.get("mask")
        assert {name: chosen.options[name] for name in values.keys() & {"include_forget", "gamma"}} == {
            name: values[name] for name in values.keys() & {"include_forget", "gamma"}
        }

    def test_tunable(self) -> None:
        assert tuning.tunable() == [name for name in METHODS if name != "retrain"]
        assert tuning.tunable(with_retain=False) == ["rl", "ga", "bs", "salun", "amun", "distill", "amun+salun"]


def rows(dataset: TensorDataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in dataset.tensors[0]}


class TestSets:
    def test_halves(self, splits) -> None:
        first, second = tuning.split_test_set(splits.test, 1)
        assert (len(first), len(second)) == (80, 80)
        assert rows(first) | rows(second) == rows(splits.test)
        assert torch.equal(first.tensors[0], tuning.split_test_set(splits.test, 1)[0].tensors[0])
        assert not torch.equal(first.tensors[0], tuning.split_test_set(splits.test, 2)[0].tensors[0])
        with pytest.raises(InputError, match="test must be of four samples"):
            tuning.split_test_set(TensorDataset(*splits.test[:3]), 0)

    def test_stand_in(self) -> None:
        images = torch.rand(12, 4)
        images[7] = images[3]
        retain = TensorDataset(images, torch.arange(12))
        with_copy = 0
        for seed in range(20):
            forget, rest, drawn = context.proxy_forget_set(retain, 5, seed)
            assert forget.tensors[1].tolist() == drawn.tolist()
            assert not find_duplicates(forget, rest)
            one = len({3, 7} & set(drawn.tolist())) == 1
            with_copy += one
            assert len(forget) == 5
            assert len(rest) == 7 - one
            assert torch.equal(rest.tensors[0], images[rest.tensors[1]])
        assert 0 < with_copy < 20
        assert len(context.proxy_forget_set(retain, 9, 0)[0]) == 6  # half of all
        with pytest.raises(InputError, match="four samples at least"):
            context.proxy_forget_set(TensorDataset(images[:3], torch.arange(3)), 1, 0)
        same = TensorDataset(torch.zeros(6, 4), torch.arange(6))
        with pytest.raises(InputError, match="copies of 3 samples"):
            context.proxy_forget_set(same, 3, 0)

    def test_neither_the_request_nor_what_was_forgotten_is_looked_at(self, tune, splits, monkeypatch) -> None:
        seen = []

        def attempt(given: context.TrialContext, *_: object) -> str:
            seen.append(given)
            return "not tried"

        monkeypatch.setattr(context, "attempt", attempt)
        result = tune(trials=1, objective="retrain", metadata={**METADATA, "forgotten": "[150, 151, 152]"})
        (given,) = seen
        gone = rows(TensorDataset(*splits.train[:20])) | rows(TensorDataset(*splits.train[150:153]))
        assert (len(given.forget), len(given.retain)) == (20, 200 - 20 - 3 - 20)
        for dataset in (given.forget, given.retain):
            assert not rows(dataset) & gone
        assert not rows(given.forget) & rows(given.retain)
        assert torch.equal(given.forget.tensors[0], splits.train.tensors[0][torch.tensor(result.ids)])
        assert rows(given.held_out) == rows(tuning.split_test_set(splits.test, 0)[0])


class TestTune:
    def test_trials_choices_and_files(self, tune, original, splits, tmp_path) -> None:
        methods = ["amun", "salun"]
        result = tune(methods, trials=4, objective="retrain", facts={"data": "digits"})
        assert {method: len(trials) for method, trials in result.trials.items()} == {"amun": 4, "salun": 4}
        names = {"UA", "RA", "TA", "FT AUC", "KS", "expected gap", "gap"}
        for method, trials in result.trials.items():
            assert [trial.number for trial in trials] == [0, 1, 2, 3]
            assert all(trial.result.row.keys() == names and trial.result.seconds > 0 for trial in trials)
            gaps = [trial.result.row["gap"] for trial in trials]
            finalists = [trials[number] for number in np.argsort(gaps, kind="stable")[:3]]
            assert [trial for trial in trials if trial.rerun] == sorted(finalists, key=lambda trial: trial.number)
            assert all(
                trial.row["gap"] == (trial.result.row["gap"] + trial.rerun.row["gap"]) / 2 for trial in finalists
            )
            assert result.best(method) is min(finalists, key=lambda trial: trial.row["gap"])
            kept = [trial for trial in trials if trial.result.row["TA"] >= result.original.row["TA"] - 5]
            assert result.best(method, "held-out") is min(
                kept, key=lambda trial: trial.result.row["expected gap"], default=None
            )
        assert result.retrained.row["gap"] == 0
        tuning.write(result, tmp_path / "out")
        choices = load_tuned_options(tmp_path / "out/tuned.json")[0]
        assert choices == result.tuned_options() == result.tuned_options("retrain")
        best = result.best("salun")
        assert choices["salun", True] == {
            "mask": best.parameters["mask"],
            "recipe": replace(SHORT, lr=best.parameters["lr"], schedule=best.parameters["schedule"]),
        }
        record = json.loads((tmp_path / "out/trials.json").read_text())
        assert record["best"]["retrain"]["salun"] == best.number
        assert record["trials"]["salun"][best.number]["gap"] == best.result.row["gap"]
        assert record["proxy_ids"] == result.ids
        assert not {*result.ids} & {*range(20)}
        page = (tmp_path / "out/tuning.html").read_text()
        Page(page)
        for word in (
            "amun: gap by learning rate",
            "salun: confidence, as chosen",
            "salun: confidence, retrained",
            "digits",
        ):
            assert word in page
        files = {path.name for path in (tmp_path / "out").iterdir()}
        kept = {"study.json", "journal.log", "examples.safetensors", "retrained.safetensors"}
        assert files == {"tuned.json", "trials.json", "tuning.html", *kept}

    def test_a_trial_is_what_unlearn_does(self, tune, original, splits) -> None:
        result = tune(["l1-sparse"], trials=2)
        held_out, _ = tuning.split_test_set(splits.test, 0)
        trial = result.trials["l1-sparse"][1]
        gone = {*range(20), *result.ids}
        left = torch.tensor([number for number in range(200) if number not in gone])
        forget, retain = (TensorDataset(*splits.train[index]) for index in (torch.tensor(result.ids), left))
        options = space.options(trial.parameters, SHORT)
        model = resolve_config("l1-sparse", default=options).unlearn(original, forget, retain, seed=0)
        given = context.TrialContext(
            original, forget, retain, held_out, True, None, 0, {"original": result.original.row}
        )
        assert given.observe(model).row == trial.result.row

    def test_without_the_retain_set(self, tune, tmp_path) -> None:
        result = tune(["ga"], with_retain=False, trials=2)
        assert list(result.tuned_options()) == [("ga", False)]
        assert told(result) != told(tune(["ga"], trials=2, out=tmp_path / "with"))

    def test_seed_decides(self, tune, tmp_path) -> None:
        first = tune(["amun"], trials=3)
        assert told(tune(["amun"], trials=3, out=tmp_path / "again")) == told(first)
        other = tune(["amun"], trials=3, out=tmp_path / "other", seed=1)
        assert other.ids != first.ids
        assert [trial.parameters for trial in other.trials["amun"]] != [
            trial.parameters for trial in first.trials["amun"]
        ]

    def test_trials_differ_and_learn_from_those_before(self, tune, tmp_path) -> None:
        """Ten at random; later ones follow what was found, which is another thing by another objective."""
        objective = {
            name: tune(["ft"], trials=14, objective=name, out=tmp_path / name) for name in ("held-out", "retrain")
        }
        drawn = {name: [trial.parameters["lr"] for trial in result.trials["ft"]] for name, result in objective.items()}
        assert len(set(drawn["retrain"])) == 14
        assert drawn["held-out"][:10] == drawn["retrain"][:10]
        assert drawn["held-out"][10:] != drawn["retrain"][10:]

    def test_examples_and_retrained_model_are_made_once(self, tune, tmp_path, monkeypatch) -> None:
        (own := tmp_path / "out/retraining.safetensors").parent.mkdir()
        own.touch()
        first = tune(["amun"], trials=2, objective="retrain")
        assert own.exists()

        def again(*_: object, **__: object) -> None:
            raise AssertionError("that was done")

        monkeypatch.setattr("amun_ext.search.loop.Search.run", again)
        monkeypatch.setattr(sys.modules["amun_ext.tuning.tune"], "save_checkpoint", again)
        more = tune(["amun"], trials=4, objective="retrain")
        assert told(more)["amun"][:2] == told(first)["amun"]
        assert more.retrained.row == first.retrained.row


class TestGoingOn:
    @pytest.mark.parametrize("at", [0, 11, 14])
    def test_as_if_it_had_not_been_stopped(self, tune, tmp_path, monkeypatch, at: int) -> None:
        trials, attempts = 13, 13 + FINALISTS
        whole = told(tune(["amun"], trials=trials, out=tmp_path / "whole"))
        made = []

        def stops(*arguments) -> context.TrialResult | str:
            if len(made) == at:
                raise KeyboardInterrupt
            made.append(arguments)
            return attempt(*arguments)

        attempt = context.attempt
        monkeypatch.setattr(context, "attempt", stops)
        with pytest.raises(KeyboardInterrupt):
            tune(["amun"], trials=trials)
        monkeypatch.setattr(context, "attempt", lambda *arguments: made.append(arguments) or attempt(*arguments))
        assert told(tune(["amun"], trials=trials)) == whole
        assert len(made) == attempts  # none twice
        assert told(tune(["amun"], trials=trials)) == whole
        assert len(made) == attempts

    def test_a_kill_in_the_middle_of_a_write(self, tune, tmp_path) -> None:
        first = told(tune())
        journal = tmp_path / "out/journal.log"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])  # of the last trial
        (lock := tmp_path / "out/journal.log.lock").symlink_to(
            journal
        )  # for which Optuna would wait, and then remove it
        assert told(tune()) == first
        assert lock.is_symlink()

    def test_every_cut_of_the_journal(self, tune, tmp_path, monkeypatch) -> None:
        """Whatever a kill has left of the journal, what was finished stays, and all are there in the end."""
        monkeypatch.setattr(context, "attempt", lambda given, method, options, _: repr(sorted(options.items())))
        first = told(tune(trials=3))["ft"]
        journal = tmp_path / "out/journal.log"
        whole, ends = journal.read_bytes(), set()
        for end in range(0, len(whole), max(1, len(whole) // 40)):
            journal.write_bytes(whole[:end])
            before = finished(tmp_path / "out")
            assert told(tune(trials=3))["ft"] == first, end
            assert {*before} <= finished(tmp_path / "out").keys()
            ends.add(len(before))
        assert ends == {0, 1, 2}

    def test_a_broken_journal_is_refused(self, tune, tmp_path) -> None:
        tune()
        journal = tmp_path / "out/journal.log"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(lines[0] + b"not JSON\n" + b"".join(lines[1:]))
        with pytest.raises(InputError, match="out must have a journal that can be read"):
            tune()

    def test_two_at_once_are_refused(self, tune, tmp_path) -> None:
        tune()
        with workplace(tmp_path / "out", "tune"), pytest.raises(InputError, match="at which one is"):
            tune()

    CHANGES = {  # noqa: RUF012
        "methods": {"methods": ["rl"]},
        "objective": {"objective": "retrain"},
        "with_retain": {"methods": ["rl"], "with_retain": False},
        "recipe": {"recipe": replace(SHORT, epochs=2)},
        "max_accuracy_drop": {"max_accuracy_drop": 3.0},
        "seed": {"seed": 1},
        "previously_forgotten": {"metadata": {**METADATA, "forgotten": "[30]"}},
    }

    @pytest.mark.parametrize("name", CHANGES)
    def test_another_study_is_refused(self, tune, name: str) -> None:
        tune(trials=1)
        with pytest.raises(InputError, match=f"out must be a new folder or one of this study.*other.*{name}"):
            tune(trials=1, **self.CHANGES[name])

    def test_another_model_or_other_data_are_refused(self, tune, original, splits, tmp_path) -> None:
        tune(trials=1)
        another = models.build("small-cnn", num_classes=10, in_channels=1, width=4)
        less = Splits(splits.train, TensorDataset(*splits.test[:100]), splits.classes)
        told = {"recipe": SHORT, "metadata": METADATA, "out": tmp_path / "out", "trials": 1}
        with pytest.raises(InputError, match="with model"):
            tuning.tune(another, splits, IDS, ["ft"], **told)
        with pytest.raises(InputError, match="with test_data"):
            tuning.tune(original, less, IDS, ["ft"], **told)
        with pytest.raises(InputError, match="with ids"):
            tuning.tune(original, splits, IDS + 1, ["ft"], **told)
        (tmp_path / "out/study.json").write_text("[1]")
        with pytest.raises(InputError, match=r"study\.json"):
            tune(trials=1)
        (tmp_path / "out/study.json").unlink()
        with pytest.raises(InputError, match="a journal but no"):
            tune(trials=1)

    def test_lr_and_schedule_of_the_recipe_are_no_matter(self, tune) -> None:
        first = tune(trials=2)
        assert told(tune(trials=2, recipe=replace(SHORT, lr=0.5, schedule="cosine"))) == told(first)


@pytest.mark.slow
class TestWorkers:
    def test_two_do_what_one_does(self, tune, tmp_path) -> None:
        one = told(tune(["ft", "salun"], trials=5))
        assert told(tune(["ft", "salun"], trials=5, num_workers=2, out=tmp_path / "two")) == one

    def test_what_becomes_of_them_is_told(self, original, splits, tmp_path) -> None:
        """An error of theirs is raised here, and one that is killed is not waited for."""
        forget, rest = TensorDataset(*splits.train[:20]), TensorDataset(*splits.train[20:])
        given = context.TrialContext(original, forget, rest, splits.test, True, None, 0)
        wrong, long = {"recipe": SHORT, "gamma": -1.0}, {"recipe": Recipe(epochs=10**6, lr=0.1)}
        with parallel.process_pool(partial(begun, given, tmp_path), original, 2) as attempts:
            with pytest.raises(InputError, match="gamma must be"):
                list(attempts(iter([(0, ("wrong", "l1-sparse", wrong, 0))])))
            outcomes = attempts(iter([(1, ("long", "ft", long, 0)), (2, ("killed", "ft", long, 0))]))
            with pytest.raises(OSError, match="a worker ended during its work"):
                next(outcomes)

    def test_they_end_with_the_one_who_asked(self, tmp_path) -> None:
        """Also amid a trial that takes long, and when that one could not say goodbye."""
        script = (
            "import multiprocessing, pathlib, torch\n"
            "from torch.utils.data import TensorDataset\n"
            "from amun_ext.models import build\n"
            "from amun_ext.training import Recipe\n"
            "from functools import partial\n"
            "from kill_tools import begun\n"
            "from amun_ext import parallel\n"
            "from amun_ext.tuning import context\n"
            "forget, rest = (TensorDataset(torch.rand(9, 1, 8, 8), torch.arange(9)) for _ in range(2))\n"
            "model = build('small-cnn', num_classes=9, in_channels=1)\n"
            "given = context.TrialContext(torch.nn.Identity(), forget, rest, rest, True, None, 0)\n"
            "job = 'ft', {'recipe': Recipe(epochs=10**6, lr=1e-6)}, 0\n"
            f"work = partial(begun, given, pathlib.Path({str(tmp_path)!r}))\n"
            "with parallel.process_pool(work, model, 2) as attempts:\n"
            "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
            "    next(attempts((name, (name, *job)) for name in ('one', 'other')))\n"
        )
        path = f"{ROOT}{os.pathsep}{ROOT / 'python_tests'}"
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
        )
        children = [int(pid) for pid in process.stdout.readline().split()]
        assert len(children) == 2
        try:
            wait_for(lambda: len([*tmp_path.iterdir()]) == 2)  # both are at their trials
            assert all(alive(child) for child in children)
            process.kill()
            process.wait()
            wait_for(lambda: not any(alive(child) for child in children))
        finally:
            for child in filter(alive, children):
                os.kill(child, signal.SIGKILL)
            process.stdout.close()

    def test_a_model_that_cannot_travel(self, tune, original, splits, tmp_path) -> None:
        original = nn.Sequential(original)
        original.hook = lambda: None
        with pytest.raises(InputError, match="num_workers must be 1 for a model or init that cannot be pickled, got 2"):
            tuning.tune(original, splits, IDS, ["ft"], out=tmp_path / "out", recipe=SHORT, trials=2, num_workers=2)


class TestTrials:
    def test_diverged_ones_count_and_say_why(self, tune, monkeypatch, tmp_path) -> None:
        rates(monkeypatch, 1e20, 1e30)
        result = tune(["ft", "ga"], trials=3)
        for trials in result.trials.values():
            assert len(trials) == 3
            assert all(trial.result is None for trial in trials)
        assert "the loss is nan; lower lr (now" in result.trials["ft"][0].failure
        assert result.tuned_options() == {}
        assert result.counted()["ft"] == "3 trials, of which 3 diverged and 0 lost too much accuracy"
        tuning.write(result, tmp_path / "out")
        page = (tmp_path / "out/tuning.html").read_text()
        assert "What diverged" in page
        assert "No trial keeps the accuracy" in page
        record = json.loads((tmp_path / "out/trials.json").read_text())
        assert record["best"]["held-out"] == {"ft": None, "ga": None}
        assert "lower lr" in record["trials"]["ft"][2]["failure"]

    def test_logits_that_are_not_finite_are_a_failure(self, original, splits, monkeypatch) -> None:
        given = context.TrialContext(
            original, TensorDataset(*splits.train[:9]), TensorDataset(*splits.train[9:]), splits.test, True, None, 0
        )

        def broken(*_: object, **__: object) -> nn.Module:
            model = models.build("small-cnn", num_classes=10, in_channels=1, width=4)
            model[-1].weight.data.fill_(torch.inf)
            return model

        monkeypatch.setattr("amun_ext.unlearning.config.unlearn", broken)
        outcome = context.attempt(given, "ft", {"recipe": SHORT})
        assert isinstance(outcome, str)
        assert "not finite" in outcome

    def test_what_loses_too_much_accuracy_is_never_chosen(self) -> None:
        def trial(number: int, accuracy: float, expected: float, real: float) -> tuning.Trial:
            row = {"TA": accuracy, "expected gap": expected, "gap": real}
            return tuning.Trial("ft", number, {"lr": 0.1, "schedule": "constant"}, context.TrialResult(row, {}), None)

        failed = tuning.Trial("ft", 4, {"lr": 0.1, "schedule": "constant"}, None, "it diverged")
        trials = [
            trial(0, 74.9, 1.0, 9.0),
            trial(1, 75.0, 2.0, 8.0),
            trial(2, 90.0, 2.0, 7.0),
            trial(3, 70.0, 0.0, 6.0),
        ]
        original = context.TrialResult({"TA": 80.0, "expected gap": 5.0, "gap": 5.0}, {})
        made = {"original": original, "retrained": None, "with_retain": True, "recipe": SHORT, "ids": [], "facts": {}}
        result = tuning.Tuning({"ft": [failed, *trials]}, objective="held-out", max_accuracy_drop=5.0, **made)
        assert result.best("ft") is trials[1]  # the first of equal ones
        assert result.best("ft", "retrain") is trials[3]
        assert [result.feasible(each) for each in [failed, *trials]] == [False, False, True, True, False]
        assert [result.feasible(each, "retrain") for each in [failed, *trials]] == [False, True, True, True, True]
        assert result.counted()["ft"] == "5 trials, of which 1 diverged and 2 lost too much accuracy"
        no_better = replace(result, original=context.TrialResult({"TA": 80.0, "expected gap": 2.0, "gap": 5.0}, {}))
        told = "the best is no better than doing nothing (expected gap 2.00, and 2.00 without any unlearning)"
        assert told in no_better.counted()["ft"]
        assert replace(result, max_accuracy_drop=10.0).best("ft") is trials[3]
        assert replace(result, max_accuracy_drop=-11.0).best("ft") is None

    def test_the_best_of_two_runs_is_chosen_among_those_that_lead(self) -> None:
        def trial(number: int, first: float, again: float | str | None) -> tuning.Trial:
            seen, more = (
                context.TrialResult({"TA": 80.0, "gap": run}, {}) if isinstance(run, float) else run
                for run in (first, again)
            )
            return tuning.Trial("ft", number, {"lr": 0.1, "schedule": "constant"}, seen, None, more)

        def best(*trials: tuning.Trial, objective: str = "retrain") -> int | None:
            made = {
                "original": context.TrialResult({"TA": 80.0, "gap": 5.0}, {}),
                "retrained": None,
                "with_retain": True,
            }
            result = tuning.Tuning(
                {"ft": trials}, objective=objective, max_accuracy_drop=5.0, recipe=SHORT, ids=[], facts={}, **made
            )
            chosen = result.best("ft", "retrain")
            return None if chosen is None else chosen.number

        lucky, diverges, steady, late = (
            trial(0, 1.0, 9.0),
            trial(1, 1.5, "it diverged"),
            trial(2, 3.0, 4.0),
            trial(3, 3.2, None),
        )
        assert best(late, steady, diverges, lucky) == 2
        assert best(lucky, diverges) == 0
        assert best(diverges) is None
        assert best(lucky, diverges, steady, late, objective="held-out") == 0  # by another objective, by the first run
        assert (lucky.row, diverges.row, late.row) == ({"TA": 80.0, "gap": 5.0}, None, {"TA": 80.0, "gap": 3.2})

    def test_the_sampler_knows_what_is_lost(self, tune, monkeypatch, tmp_path) -> None:
        rates(monkeypatch, 1e-4, 10.0)
        result = tune(["rl"], trials=4, max_accuracy_drop=5.0)
        with study.journal(tmp_path / "out/journal.log") as storage:
            kept = study.finished(study.opened(storage, "rl"))
        floor = result.original.row["TA"] - 5
        assert [trial.constraints["accuracy"] for trial in kept if trial.constraints] == pytest.approx(
            [floor - trial.result.row["TA"] for trial in result.trials["rl"] if trial.result]
        )
        assert [trial.value for trial in kept] == [
            trial.result and trial.result.row["expected gap"] for trial in result.trials["rl"]
        ]

    def test_no_trial_keeps_the_accuracy(self, tune, monkeypatch, tmp_path) -> None:
        rates(monkeypatch, 1.0, 2.0)
        result = tune(["rl"], trials=2, max_accuracy_drop=0.0)
        assert result.best("rl") is None
        tuning.write(result, tmp_path / "out")
        assert load_tuned_options(tmp_path / "out/tuned.json")[0] == {}


class TestInput:
    BAD = {  # noqa: RUF012
        "no method": ({"methods": []}, "methods must be some of .*, got none"),
        "unknown method": ({"methods": ["ft", "magic"]}, "methods must be some of .*, got 'magic'"),
        "retrain": ({"methods": ["retrain"]}, "methods must be some of .*, got 'retrain'"),
        "twice": ({"methods": ["ft", "ft"]}, "methods must be different"),
        "needs retain": ({"with_retain": False}, "without the retain set, got 'ft'"),
        "objective": ({"objective": "luck"}, "objective must be one of .*'held-out', 'retrain'.*got 'luck'"),
        "trials": ({"trials": 0}, "trials must be a whole number from 1 on"),
        "num_workers": ({"num_workers": 0}, "num_workers must be a whole number from 1 on"),
        "seed": ({"seed": -1}, "seed must be a whole number from 0 on"),
        "drop": ({"max_accuracy_drop": -1.0}, "max_accuracy_drop must be points"),
        "no number": ({"max_accuracy_drop": math.nan}, "max_accuracy_drop must be points"),
        "no recipe": (
            {"objective": "retrain", "metadata": {}},
            "retraining must be of a checkpoint that knows its recipe",
        ),
        "other data": ({"metadata": {"training_data": "x"}}, "data must be those that the checkpoint was trained on"),
        "forgotten": ({"metadata": {"forgotten": "[3]"}}, "ids must be not forgotten by an earlier request"),
    }

    @pytest.mark.parametrize("name", BAD)
    def test_is_refused_before_any_work(self, tune, tmp_path, name: str) -> None:
        options, message = self.BAD[name]
        with pytest.raises(InputError, match=message):
            tune(**options)
        assert not (tmp_path / "out").exists()

    def test_without_optuna(self, tune, monkeypatch, tmp_path) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
        with pytest.raises(InputError, match=re.escape("pip install 'amun_ext[tune]'")):
            tune()
        assert not (tmp_path / "out").exists()

    def test_optuna_is_not_imported_before_it_is_used(self) -> None:
        told = "import sys, amun_ext.cli; sys.exit('optuna' in sys.modules)"
        subprocess.run([sys.executable, "-c", told], check=True, cwd=Path(cli.__file__).parents[2])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, original, splits) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    about = {"arch": "small-cnn", "width": "4", **METADATA, "training_data": data.fingerprint(splits.train)}
    models.save_checkpoint(folder / "model.safetensors", original, about)
    parts = {
        f"{part}_{name}": tensor.numpy()
        for part in ("train", "test")
        for name, tensor in zip(("images", "labels"), getattr(splits, part).tensors, strict=True)
    }
    np.savez(folder / "data.npz", **parts)
    return folder / "model.safetensors"


def arguments(checkpoint: Path, out: Path, *more: str) -> list[str]:
    told = [
        "--model",
        str(checkpoint),
        "--data",
        str(checkpoint.with_name("data.npz")),
        "--ids",
        "0-19",
        "--out",
        str(out),
    ]
    return ["tune", *told, "--epochs", "1", "--batch-size", "32", *more]


class TestCommand:
    def test_what_it_writes_is_what_forget_takes(self, checkpoint, tmp_path, capsys) -> None:
        out = tmp_path / "out"
        assert (
            cli.main(arguments(checkpoint, out, "--methods", "amun,ft", "--trials", "2", "--max-accuracy-drop", "50"))
            == 0
        )
        printed = capsys.readouterr().out
        assert "wrote tuned.json, trials.json and tuning.html" in printed
        assert "amun, by held-out" in printed
        choices = load_tuned_options(out / "tuned.json")[0]
        assert list(choices) == [("amun", True), ("ft", True)]
        assert choices["ft", True]["recipe"].batch_size == 32
        about = json.loads((out / "tuned.json").read_text())["metadata"]
        assert (about["objective"], about["seed"]) == ("held-out", 0)  # amun compare measures on the other half
        assert about["data"] == "data.npz"
        assert "80 of 160 test samples" in about["held_out"]
        told = [
            *arguments(checkpoint, tmp_path / "forgotten")[1:9],
            "--method",
            "ft",
            "--tuned",
            str(out / "tuned.json"),
        ]
        assert cli.main(["forget", *told]) == 0
        facts = json.loads((tmp_path / "forgotten/report.json").read_text())["facts"]
        assert json.dumps(asdict(choices["ft", True]["recipe"])) in json.dumps(facts)

    def test_help(self, capsys) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["tune", "--help"])
        assert ended.value.code == 0
        assert "--lr" not in capsys.readouterr().out  # it is searched

    def test_bad_input_is_one_line_status_2_and_no_file(self, checkpoint, tmp_path, capsys) -> None:
        assert cli.main(arguments(checkpoint, tmp_path / "out", "--methods", "magic")) == 2
        assert "amun: error: methods must be some of" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_method_without_a_choice_is_told_by_status(self, checkpoint, tmp_path, capsys, monkeypatch) -> None:
        rates(monkeypatch, 1e20, 1e30)
        assert cli.main(arguments(checkpoint, tmp_path / "out", "--methods", "ft", "--trials", "2")) == 3
        assert "no trial of ft keeps the accuracy" in capsys.readouterr().err

    @pytest.mark.slow
    @pytest.mark.parametrize(("end", "status"), [(SELF, -signal.SIGKILL), (INTERRUPT, 130)], ids=["killed", "Ctrl-C"])
    def test_a_stopped_command_goes_on(self, checkpoint, tmp_path, end: str, status: int) -> None:
        out = tmp_path / "out"
        more = ("--methods", "ft,rl", "--trials", "6", "--workers", "2", "--max-accuracy-drop", "50")
        stopped = ended_at("amun_ext.tuning.study.tell", 4, arguments(checkpoint, out, *more), end)
        assert stopped.returncode == status, stopped.stderr
        children = [int(pid) for pid in stopped.stdout.split()]
        assert len(children) == 2
        wait_for(lambda: not any(alive(child) for child in children))
        if end == INTERRUPT:
            assert stopped.stderr.splitlines()[-1] == "amun: stopped; the same command goes on where it was"
            assert "Traceback" not in stopped.stderr
        before = finished(out)
        assert len(before) == 3
        assert cli.main(arguments(checkpoint, out, *more[:-4], "--workers", "1", "--max-accuracy-drop", "50")) == 0
        record = json.loads((out / "trials.json").read_text())["trials"]
        assert {method: len(trials) for method, trials in record.items()} == {"ft": 6, "rl": 6}
        after = finished(out)
        assert {key: after[key] for key in before} == before  # none was done again


def finished(out: Path) -> dict[int, str]:
    """Trial -> what was said at its end. 6 is Optuna's number for a change of a trial's state."""
    lines = (out / "journal.log").read_text(errors="replace").splitlines()
    ends = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry["op_code"] == 6 and entry["state"]:  # 0: it begins
                assert entry["trial_id"] not in ends
                ends[entry["trial_id"]] = line
    return ends
