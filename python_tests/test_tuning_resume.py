"""amun tune goes on after a stop, alone or with workers, and takes no other study for its own."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from kill_tools import ROOT, alive, begun, wait_for
from torch import nn
from torch.utils.data import TensorDataset
from tuning_tools import IDS, METADATA, SHORT, finished, original, results, splits, tune, untrained

from amun_ext import InputError, parallel, tuning
from amun_ext.data import Splits
from amun_ext.files import workplace
from amun_ext.training import Recipe
from amun_ext.tuning import context
from amun_ext.tuning.result import FINALISTS


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class TestResume:
    @pytest.mark.parametrize("at", [0, 11, 14])
    def test_a_resumed_study_equals_an_uninterrupted_one(self, out, tmp_path, monkeypatch, at: int) -> None:
        trials, attempts = 13, 13 + FINALISTS
        whole = results(tune(tmp_path / "whole", ["amun"], trials=trials))
        made = []

        def stops(*arguments) -> context.TrialResult | str:
            if len(made) == at:
                raise KeyboardInterrupt
            made.append(arguments)
            return attempt(*arguments)

        attempt = context.run_trial
        monkeypatch.setitem(tuning.tune.__globals__, "run_trial", stops)
        with pytest.raises(KeyboardInterrupt):
            tune(out, ["amun"], trials=trials)
        monkeypatch.setitem(tuning.tune.__globals__, "run_trial", lambda *given: made.append(given) or attempt(*given))
        assert results(tune(out, ["amun"], trials=trials)) == whole
        assert len(made) == attempts  # none twice
        assert results(tune(out, ["amun"], trials=trials)) == whole
        assert len(made) == attempts

    def test_a_kill_in_the_middle_of_a_write(self, out) -> None:
        first = results(tune(out))
        journal = out / "journal.log"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])  # of the last trial
        (lock := out / "journal.log.lock").symlink_to(journal)  # for which Optuna would wait, and then remove it
        assert results(tune(out)) == first
        assert lock.is_symlink()

    def test_every_cut_of_the_journal(self, out, monkeypatch) -> None:
        """Whatever a kill has left of the journal, what was finished stays, and all are there in the end."""
        monkeypatch.setitem(tuning.tune.__globals__, "run_trial", lambda *job: repr(sorted(job[3].items())))
        first = results(tune(out, trials=3))["ft"]
        journal = out / "journal.log"
        whole, ends = journal.read_bytes(), set()
        for end in range(0, len(whole), max(1, len(whole) // 40)):
            journal.write_bytes(whole[:end])
            before = finished(out)
            assert results(tune(out, trials=3))["ft"] == first, end
            assert {*before} <= finished(out).keys()
            ends.add(len(before))
        assert ends == {0, 1, 2}

    def test_a_broken_journal_is_refused(self, out) -> None:
        tune(out)
        journal = out / "journal.log"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(lines[0] + b"not JSON\n" + b"".join(lines[1:]))
        with pytest.raises(InputError, match="out must have a journal that can be read"):
            tune(out)

    def test_two_processes_at_once_are_refused(self, out) -> None:
        tune(out)
        with workplace(out, "tune"), pytest.raises(InputError, match="in use by another process"):
            tune(out)

    CHANGES = {  # noqa: RUF012
        "methods": {"methods": ["rl"]},
        "objective": {"objective": "retrain"},
        "with_retain": {"methods": ["rl"], "with_retain": False},
        "recipe": {"recipe": replace(SHORT, epochs=2)},
        "max_accuracy_drop": {"max_accuracy_drop": 3.0},
        "seed": {"seed": 1},
        "previously_forgotten": {"metadata": {**METADATA, "forgotten": "[30]"}},
        "ids": {"ids": IDS + 1},
    }

    def test_another_study_is_refused(self, out) -> None:
        tune(out, trials=1)
        less = Splits(splits().train, TensorDataset(*splits().test[:100]), splits().classes)
        for name, change in {**self.CHANGES, "model": {"model": untrained()}, "test_data": {"splits": less}}.items():
            with pytest.raises(InputError, match=f"out must be a new folder or one of this study.* with .*{name}"):
                tune(out, trials=1, **change)
        (out / "study.json").write_text("[1]")
        with pytest.raises(InputError, match=r"study\.json"):
            tune(out, trials=1)
        (out / "study.json").unlink()
        with pytest.raises(InputError, match="a journal but no"):
            tune(out, trials=1)

    def test_lr_and_schedule_of_the_recipe_do_not_identify_a_study(self, out) -> None:
        first = tune(out, trials=2)
        assert results(tune(out, trials=2, recipe=replace(SHORT, lr=0.5, schedule="cosine"))) == results(first)


@pytest.mark.slow
class TestWorkers:
    def test_two_workers_give_the_same_result(self, out, tmp_path) -> None:
        one = results(tune(out, ["ft", "salun"], trials=5))
        assert results(tune(tmp_path / "two", ["ft", "salun"], trials=5, num_workers=2)) == one

    def test_errors_and_ends_of_workers_are_reported(self, tmp_path) -> None:
        """An error of theirs is raised here, and one that is killed is not waited for."""
        forget, rest = TensorDataset(*splits().train[:20]), TensorDataset(*splits().train[20:])
        given = context.TrialContext(forget, rest, splits().test, True, None, 0)
        wrong, long = {"recipe": SHORT, "gamma": -1.0}, {"recipe": Recipe(epochs=10**6, lr=0.1)}
        with parallel.workers(partial(begun, given, tmp_path), original(), 2) as attempts:
            with pytest.raises(InputError, match="gamma must be"):
                list(attempts(iter([(0, ("wrong", "l1-sparse", wrong, 0))])))
            outcomes = attempts(iter([(1, ("long", "ft", long, 0)), (2, ("killed", "ft", long, 0))]))
            with pytest.raises(OSError, match="a worker ended during its work"):
                next(outcomes)

    def test_workers_end_with_their_parent(self, tmp_path) -> None:
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
            "given = context.TrialContext(forget, rest, rest, True, None, 0)\n"
            "job = 'ft', {'recipe': Recipe(epochs=10**6, lr=1e-6)}, 0\n"
            f"work = partial(begun, given, pathlib.Path({str(tmp_path)!r}))\n"
            "with parallel.workers(work, model, 2) as attempts:\n"
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

    def test_a_model_that_cannot_be_pickled(self, out) -> None:
        model = nn.Sequential(original())
        model.hook = lambda: None
        with pytest.raises(InputError, match="num_workers must be 1 for a model or init that cannot be pickled"):
            tune(out, trials=2, model=model, metadata=None, num_workers=2)
