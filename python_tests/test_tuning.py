"""amun tune: what is searched and on which data, how trials are judged, and which is chosen."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from page_tools import Page
from torch import nn
from torch.utils.data import TensorDataset
from tuning_tools import METADATA, SHORT, original, results, set_rates, splits, tune, untrained

from amun_ext import InputError, cli, tuning
from amun_ext.data import find_duplicates
from amun_ext.tuning import context, space, study
from amun_ext.unlearning.config import load_tuned_options, resolve_config


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows(dataset: TensorDataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in dataset.tensors[0]}


class TestSets:
    def test_halves(self) -> None:
        first, second = tuning.split_test_set(splits().test, 1)
        assert (len(first), len(second)) == (80, 80)
        assert rows(first) | rows(second) == rows(splits().test)
        assert torch.equal(first.tensors[0], tuning.split_test_set(splits().test, 1)[0].tensors[0])
        assert not torch.equal(first.tensors[0], tuning.split_test_set(splits().test, 2)[0].tensors[0])
        with pytest.raises(InputError, match="test must be of four samples"):
            tuning.split_test_set(TensorDataset(*splits().test[:3]), 0)

    def test_proxy_forget_set(self) -> None:
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

    def test_no_trial_uses_the_request_or_forgotten_samples(self, out, monkeypatch) -> None:
        seen = []

        def attempt(given: context.TrialContext, *_: object) -> str:
            seen.append(given)
            return "not tried"

        monkeypatch.setitem(tuning.tune.__globals__, "run_trial", attempt)
        result = tune(out, trials=1, objective="retrain", metadata={**METADATA, "forgotten": "[150, 151, 152]"})
        (given,) = seen
        gone = rows(TensorDataset(*splits().train[:20])) | rows(TensorDataset(*splits().train[150:153]))
        assert (len(given.forget), len(given.retain)) == (20, 200 - 20 - 3 - 20)
        for dataset in (given.forget, given.retain):
            assert not rows(dataset) & gone
        assert not rows(given.forget) & rows(given.retain)
        assert torch.equal(given.forget.tensors[0], splits().train.tensors[0][torch.tensor(result.ids)])
        assert rows(given.test) == rows(tuning.split_test_set(splits().test, 0)[0])


class TestTune:
    def test_trials_choices_and_files(self, out) -> None:
        methods = ["amun", "salun"]
        result = tune(out, methods, trials=4, objective="retrain", facts={"data": "digits"})
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
        tuning.write(result, out)
        choices = load_tuned_options(out / "tuned.json")[0]
        assert choices == result.tuned_options() == result.tuned_options("retrain")
        best = result.best("salun")
        assert choices["salun", True] == {
            "mask": best.parameters["mask"],
            "recipe": replace(SHORT, lr=best.parameters["lr"], schedule=best.parameters["schedule"]),
        }
        record = json.loads((out / "trials.json").read_text())
        assert record["best"]["retrain"]["salun"] == best.number
        assert record["trials"]["salun"][best.number]["gap"] == best.result.row["gap"]
        assert record["proxy_ids"] == result.ids
        assert not {*result.ids} & {*range(20)}
        page = (out / "tuning.html").read_text()
        Page(page)
        for word in (
            "amun: gap by lr",
            "salun: confidence, as chosen",
            "salun: confidence, retrained",
            "digits",
        ):
            assert word in page
        files = {path.name for path in out.iterdir()}
        kept = {"study.json", "journal.log", "examples.safetensors", "retrained.safetensors"}
        assert files == {"tuned.json", "trials.json", "tuning.html", *kept}

    def test_a_trial_gives_the_result_of_unlearn(self, out) -> None:
        result = tune(out, ["l1-sparse"], trials=2)
        held_out, _ = tuning.split_test_set(splits().test, 0)
        trial = result.trials["l1-sparse"][1]
        gone = {*range(20), *result.ids}
        left = torch.tensor([number for number in range(200) if number not in gone])
        forget, retain = (TensorDataset(*splits().train[index]) for index in (torch.tensor(result.ids), left))
        options = space.options(trial.parameters, SHORT)
        model = resolve_config("l1-sparse", default=options).unlearn(original(), forget, retain, seed=0)
        given = context.TrialContext(forget, retain, held_out, True, None, 0, rows={"original": result.original.row})
        assert given.observe(model).row == trial.result.row

    def test_without_the_retain_set(self, out, tmp_path) -> None:
        result = tune(out, ["ga"], with_retain=False, trials=2)
        assert list(result.tuned_options()) == [("ga", False)]
        assert results(result) != results(tune(tmp_path / "with", ["ga"], trials=2))

    def test_seed_decides(self, out, tmp_path) -> None:
        first = tune(out, ["amun"], trials=3)
        assert results(tune(tmp_path / "again", ["amun"], trials=3)) == results(first)
        other = tune(tmp_path / "other", ["amun"], trials=3, seed=1)
        assert other.ids != first.ids
        assert [trial.parameters for trial in other.trials["amun"]] != [
            trial.parameters for trial in first.trials["amun"]
        ]

    def test_trials_differ_and_depend_on_earlier_ones(self, tmp_path) -> None:
        """Ten at random; later ones follow what was found, which is another thing by another objective."""
        objective = {name: tune(tmp_path / name, trials=14, objective=name) for name in ("held-out", "retrain")}
        drawn = {name: [trial.parameters["lr"] for trial in result.trials["ft"]] for name, result in objective.items()}
        assert len(set(drawn["retrain"])) == 14
        assert drawn["held-out"][:10] == drawn["retrain"][:10]
        assert drawn["held-out"][10:] != drawn["retrain"][10:]

    def test_examples_and_retrained_model_are_made_once(self, out, monkeypatch) -> None:
        (own := out / "retraining.safetensors").parent.mkdir()
        own.touch()
        first = tune(out, ["amun"], trials=2, objective="retrain")
        assert own.exists()

        def again(*_: object, **__: object) -> None:
            raise AssertionError("that was done")

        monkeypatch.setattr("amun_ext.search.loop.Search.run", again)
        monkeypatch.setattr(sys.modules["amun_ext.tuning.tune"], "save_checkpoint", again)
        more = tune(out, ["amun"], trials=4, objective="retrain")
        assert results(more)["amun"][:2] == results(first)["amun"]
        assert more.retrained.row == first.retrained.row


class TestTrials:
    def test_diverged_trials_count_and_have_a_reason(self, out, monkeypatch) -> None:
        set_rates(monkeypatch, 1e20, 1e30)
        result = tune(out, ["ft", "ga"], trials=3)
        for trials in result.trials.values():
            assert len(trials) == 3
            assert all(trial.result is None for trial in trials)
        assert "the loss is nan; lower lr (now" in result.trials["ft"][0].failure
        assert result.tuned_options() == {}
        assert result.trial_counts()["ft"] == "3 trials, of which 3 diverged and 0 lost too much accuracy"
        tuning.write(result, out)
        page = (out / "tuning.html").read_text()
        assert "What diverged" in page
        assert "No trial keeps the accuracy" in page
        record = json.loads((out / "trials.json").read_text())
        assert record["best"]["held-out"] == {"ft": None, "ga": None}
        assert "lower lr" in record["trials"]["ft"][2]["failure"]

    def test_logits_that_are_not_finite_are_a_failure(self, monkeypatch) -> None:
        forget, retain = TensorDataset(*splits().train[:9]), TensorDataset(*splits().train[9:])
        given = context.TrialContext(forget, retain, splits().test, True, None, 0)

        def broken(*_: object, **__: object) -> nn.Module:
            model = untrained()
            model[-1].weight.data.fill_(torch.inf)
            return model

        monkeypatch.setattr("amun_ext.unlearning.config.unlearn", broken)
        outcome = context.run_trial(given, original(), "ft", {"recipe": SHORT})
        assert isinstance(outcome, str)
        assert "not finite" in outcome

    def test_the_sampler_knows_the_lost_accuracy(self, out, monkeypatch) -> None:
        set_rates(monkeypatch, 1e-4, 10.0)
        result = tune(out, ["rl"], trials=4, max_accuracy_drop=5.0)
        with study.journal(out / "journal.log") as storage:
            kept = study.finished(study.opened(storage, "rl"))
        floor = result.original.row["TA"] - 5
        assert [trial.constraints["accuracy"] for trial in kept if trial.constraints] == pytest.approx(
            [floor - trial.result.row["TA"] for trial in result.trials["rl"] if trial.result]
        )
        assert [trial.value for trial in kept] == [
            trial.result and trial.result.row["expected gap"] for trial in result.trials["rl"]
        ]

    def test_no_trial_keeps_the_accuracy(self, out, monkeypatch) -> None:
        set_rates(monkeypatch, 1.0, 2.0)
        result = tune(out, ["rl"], trials=2, max_accuracy_drop=0.0)
        assert result.best("rl") is None
        tuning.write(result, out)
        assert load_tuned_options(out / "tuned.json")[0] == {}


class TestInput:
    BAD = [  # noqa: RUF012
        ({"methods": []}, "methods must be"),
        ({"methods": ["ft", "magic"]}, "methods must be"),
        ({"methods": ["retrain"]}, "methods must be"),
        ({"methods": ["ft", "ft"]}, "methods must be different"),
        ({"with_retain": False}, "without the retain set, got 'ft'"),
        ({"objective": "luck"}, "objective must be"),
        ({"trials": 0}, "trials must be"),
        ({"num_workers": 0}, "num_workers must be"),
        ({"seed": -1}, "seed must be"),
        ({"max_accuracy_drop": -1.0}, "max_accuracy_drop must be"),
        ({"max_accuracy_drop": math.nan}, "max_accuracy_drop must be"),
        ({"objective": "retrain", "metadata": {}}, "retraining must be of a checkpoint with a recipe"),
        ({"metadata": {"training_data": "x"}}, "data must be those that the checkpoint was trained on"),
        ({"metadata": {"forgotten": "[3]"}}, "ids must be not forgotten by an earlier request"),
    ]

    def test_is_refused_before_any_work(self, out) -> None:
        for options, message in self.BAD:
            with pytest.raises(InputError, match=message):
                tune(out, **options)
            assert not out.exists()

    def test_without_optuna(self, out, monkeypatch) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
        with pytest.raises(InputError, match=re.escape("pip install 'amun_ext[tune]'")):
            tune(out)
        assert not out.exists()

    def test_optuna_is_not_imported_before_it_is_used(self) -> None:
        told = "import sys, amun_ext.cli; sys.exit('optuna' in sys.modules)"
        subprocess.run([sys.executable, "-c", told], check=True, cwd=Path(cli.__file__).parents[2])
