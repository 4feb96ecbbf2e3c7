"""Tasks in a process group: each rank takes the next one, and all have what one process gets, bit by bit."""

import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from kill_tools import wait_for
from rank_tools import run_ranks
from torch import nn
from torch.utils.data import TensorDataset
from tuning_tools import original, results, splits, tune

from amun_ext import InputError, data, models
from amun_ext.auditing.references import train_references
from amun_ext.deletion import Record, forget_ids
from amun_ext.deletion.request import retraining, sets
from amun_ext.distributed import RankError, alone, claimed
from amun_ext.experiments import compare, reproduce
from amun_ext.experiments.scales import SCALES
from amun_ext.files import to_jsonable
from amun_ext.parallel import workers
from amun_ext.training import Recipe
from amun_ext.unlearning import prepare

pytestmark = pytest.mark.slow
RECIPE = Recipe(epochs=1, lr=0.1, batch_size=32)
SMOKE = replace(SCALES["smoke"], trials=1)


def few() -> tuple[nn.Module, data.Splits]:
    digits = data.load("digits")
    torch.manual_seed(0)
    model = models.build("small-cnn", num_classes=10, in_channels=1, width=4)
    return model, data.Splits(TensorDataset(*digits.train[:50]), TensorDataset(*digits.test[:31]), digits.classes)


def fail_at_two(_: None, number: int) -> int:
    if number == 2:
        raise FloatingPointError("the third")
    return number


def done(count: int, work=lambda _, number: number) -> list[int]:
    with workers(work, None, 1) as run:
        return [key for key, _ in run((number, (number,)) for number in claimed(range(count)))]


def raised(*arguments: object, **options: object) -> str:
    try:
        train_references(*arguments, **options) if options else done(*arguments)
    except (InputError, FloatingPointError, RankError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def work_in_many_ways(folder: Path) -> dict[str, object]:
    model, samples = few()
    how = {"recipe": RECIPE, "out": folder / "references"}
    references = train_references(model, samples, models=4, **how)
    targets = prepare(model, samples, RECIPE, out=folder / "targets.safetensors", folds=3)
    return {
        "references": references.signals["log-odds"],
        "targets": targets.logits,
        "numbers": [done(count) for count in (5, 0, 1)],
        "failed": raised(5, fail_at_two),
        "after a failure": done(3),
        "other": raised(model, samples, models=4, **how | {"recipe": Recipe(epochs=2, lr=0.1)}),
        "workers": raised(model, samples, models=6, num_workers=2, **how),
    }


def test_ranks_take_turns_and_have_the_results_of_one_process(tmp_path: Path) -> None:
    outcomes = run_ranks(work_in_many_ways, 2, tmp_path)
    assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
    alone, samples = few()
    references = train_references(alone, samples, RECIPE, out=tmp_path / "one", models=4)
    targets = prepare(alone, samples, RECIPE, out=tmp_path / "one.safetensors", folds=3)
    for outcome in outcomes:
        assert torch.equal(outcome["references"], references.signals["log-odds"])
        assert torch.equal(outcome["targets"], targets.logits)
        assert "out must be a new folder" in outcome["other"]
        assert outcome["workers"].startswith("InputError: num_workers must be 1 in a process group")
    for name, count in (("numbers", (5, 0, 1)), ("after a failure", (3,))):
        parts = [outcome[name] if name == "numbers" else [outcome[name]] for outcome in outcomes]
        for expected, *each in zip(count, *parts, strict=True):
            assert sorted(itertools.chain(*each)) == list(range(expected))
    assert sorted(outcome["failed"] for outcome in outcomes) == [
        "FloatingPointError: the third",
        f"RankError: rank {0 + outcomes[1]['failed'].startswith('F')} failed: FloatingPointError: the third",
    ]
    assert not [*tmp_path.rglob("*unfinished*")]


def work_on_many_things(folder: Path) -> dict[str, object]:
    with alone():
        original()  # which it keeps
    tuned = tune(folder / "tuned", ("ft", "ga"), trials=4)
    made = reproduce.reproduce("table1", SMOKE, out=folder / "reproduced")
    return {"tuned": results(tuned), "compared": compared(folder / "compared"), "reproduced": cells(made)}


def compared(out: Path) -> object:
    request = sets(splits(), forget_ids(200, fraction=0.1), Record(), include_duplicates=True)
    rows = {"with": compare.resolve_configs(["ft", "amun"], True)}
    again = retraining(original(), Record(recipe=RECIPE))
    made = compare.compare(original(), splits().test, request, rows, again, seeds=2, out=out)
    lines = made.tables["with"].items()
    return to_jsonable({name: [cell.row | {"seconds": 0} for cell in line.cells.values()] for name, line in lines})


def cells(made: reproduce.Reproduction) -> list[dict[str, object]]:
    return [{**values, "seconds": 0} for _, values in made.cells]


def test_tune_compare_and_reproduce(tmp_path: Path) -> None:
    outcomes = run_ranks(work_on_many_things, 2, tmp_path)
    assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
    one = tmp_path / "one"
    assert outcomes[0]["tuned"] == outcomes[1]["tuned"]
    for method, trials in results(tune(one / "tuned", ("ft", "ga"), trials=4)).items():
        assert sorted(trial[0] for trial in outcomes[0]["tuned"][method]) == [0, 1, 2, 3]
        same = {repr(trial[1]): trial[3] for trial in outcomes[0]["tuned"][method]}
        for trial in trials:
            assert same.get(repr(trial[1]), trial[3]) == trial[3]
    for outcome in outcomes:
        assert outcome["compared"] == compared(one / "compared")
        assert outcome["reproduced"] == cells(reproduce.reproduce("table1", SMOKE, out=one / "reproduced"))


def killed_in_its_first(folder: Path) -> None:
    def work(model: nn.Module, number: int) -> int:
        if dist.get_rank() == 1:  # that of the group, in which the work is done alone
            (folder / "killed").write_text(str(number))
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for((folder / "killed").exists)
        (folder / str(number)).touch()
        return number

    done(4, work)


def test_a_killed_rank_ends_the_others_when_nothing_is_left_to_do(tmp_path: Path) -> None:
    first, second = run_ranks(killed_in_its_first, 2, tmp_path)
    assert "RankError: another rank has ended or does not answer" in first
    assert second == -signal.SIGKILL
    lost = {str(number) for number in range(4)} - {path.name for path in tmp_path.iterdir()}
    assert lost == {(tmp_path / "killed").read_text()}
