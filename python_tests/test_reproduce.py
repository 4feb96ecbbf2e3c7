"""amun reproduce: every experiment from training to page in seconds, shared work made once, a killed run goes on."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from kill_tools import ended_at

from amun_ext import cli
from amun_ext.deletion.ids import some_ids
from amun_ext.experiments import reproduce
from amun_ext.experiments.estimate import passes
from amun_ext.experiments.paper import unlearning
from amun_ext.experiments.reproduce import EXPERIMENTS, Reproduction
from amun_ext.experiments.results import Results
from amun_ext.experiments.scales import SCALES
from amun_ext.report.parts import Figures
from amun_ext.unlearning.config import resolve_config


def command(name: str, out: Path, *flags: str) -> list[str]:
    return ["reproduce", name, "--scale", "smoke", "--out", str(out), "--quiet", *flags]


def cells(out: Path, name: str) -> list:
    return json.loads((out / f"{name}.json").read_text())["cells"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """One folder of all experiments, which share what they can."""
    return tmp_path_factory.mktemp("reproduced") / "out"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(name: str, out: Path, capsys) -> None:
    assert cli.main(command(name, out)) == 0
    assert EXPERIMENTS[name].claim.split()[0] in capsys.readouterr().out
    written = cells(out, name)
    assert written
    assert any(value is not None for each in written for value in each["values"].values())
    assert "</svg>" in (out / f"{name}.html").read_text() or not (out / f"{name}-1.svg").exists()
    assert Reproduction.read(out / f"{name}.json").document().tables
    assert not (out / "unfinished-reproduce").exists()


def test_a_picture_is_read_by_itself(out: Path) -> None:
    assert cli.main(command("figure1", out)) == 0
    (figures,) = (
        each for each in Reproduction.read(out / "figure1.json").document().blocks if isinstance(each, Figures)
    )
    assert figures.key
    for number, figure in enumerate(figures.figures, 1):
        file = out / f"figure1-{number}.svg"
        texts = [each.text for each in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]
        assert {figure.title, figure.about, *(mark.name for mark in figures.key)} <= {*texts}
        assert "var(" not in file.read_text()


class TestSharedWork:
    def test_a_second_run_measures_and_trains_nothing(self, out: Path, monkeypatch) -> None:
        assert cli.main(command("table1", out)) == 0
        before = cells(out, "table1")
        monkeypatch.setattr("amun_ext.experiments.lab.observe", None)
        monkeypatch.setattr("amun_ext.experiments.lab.fit", None)
        for name in ("table1", "table8"):
            assert cli.main(command(name, out)) == 0
            assert cells(out, name) == before

    def test_another_seed_keeps_the_cells_of_the_first(self, out: Path) -> None:
        assert cli.main(command("table1", out)) == 0
        kept = {path: path.stat().st_mtime_ns for path in (out / "cache").iterdir()}
        assert cli.main(command("table1", out, "--seeds", "2")) == 0
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
        models = [each["cell"]["model"] for each in cells(out, "table1")]
        assert sorted({*models}) == [0, 1]
        assert models.count(0) == models.count(1)

    def test_a_killed_run_goes_on_with_workers(self, tmp_path: Path) -> None:
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        assert cli.main(command("figure1", whole)) == 0
        stop = ended_at("amun_ext.experiments.reproduce._measured", 6, command("figure1", killed))
        assert stop.returncode == -signal.SIGKILL
        kept = {path.name: path.stat().st_mtime_ns for path in (killed / "cache").glob("*.json")}
        assert len(kept) == 5
        assert not (killed / "figure1.json").exists()
        assert cli.main(command("figure1", killed, "--workers", "2")) == 0
        assert all((killed / "cache" / name).stat().st_mtime_ns == time for name, time in kept.items())
        assert cells(killed, "figure1") == cells(whole, "figure1")


class TestCommand:
    def test_list_names_all(self, capsys) -> None:
        assert cli.main(["reproduce", "--list"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(EXPERIMENTS)

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_a_dry_run_says_what_it_takes(self, name: str, tmp_path: Path, capsys) -> None:
        flags = ["--scale", "smoke", "--dry-run", "--out", str(tmp_path / "out")]
        assert cli.main(["reproduce", name, *flags]) == 0
        out = capsys.readouterr().out
        assert "cells" in out
        assert "hours" in out
        assert not (tmp_path / "out").exists()

    def test_bad_input_is_refused(self, refused, tmp_path: Path) -> None:
        refused(["reproduce", "--out", str(tmp_path)], "NAME must be given")
        refused(command("figure9", tmp_path), "experiment must be")
        refused(command("figure1", tmp_path, "--seeds", "0"), "seeds must be")
        refused(command("figure9", tmp_path, "--dry-run"), "experiment must be")
        refused(command("figure1", tmp_path, "--dry-run", "--seeds", "0"), "seeds must be")
        refused(command("figure1", tmp_path, "--workers", "0"), "num_workers must be")


@pytest.mark.parametrize("fraction", SCALES["small"].fractions)
def test_options_tuned_before_are_those_of_the_methods(fraction: float) -> None:
    tuned = SCALES["small"].tuned_options(fraction)
    assert {("amun", True), ("amun", False), ("l1-sparse", True)} <= {*tuned}
    for method, retain in tuned:
        assert resolve_config(method, retain, tuned=tuned).source == "tuned"


def test_networks_trained_by_trades_may_have_fewer_references() -> None:
    scale = replace(SCALES["paper"], robust_references=4)
    fewer, same = (EXPERIMENTS["table5"].resized(each) for each in (scale, SCALES["paper"]))
    assert (fewer.references, same.references) == (4, SCALES["paper"].references)
    assert fewer.identity() != same.identity()  # the cells of the one are not those of the other


def test_passes_over_the_training_set() -> None:
    smoke = SCALES["smoke"]
    trained = smoke.training.epochs
    assert passes(EXPERIMENTS["theorem41"], smoke) == {"plain": trained}
    assert passes(EXPERIMENTS["figure1"], smoke) == {"plain": trained + 18 * smoke.ablation_epochs}
    # for each training an original, a retrained model, and two references on half of 200 and 100 images; one epoch
    once = 2 * trained + 2 * trained * 150 / 200 + 1
    assert passes(EXPERIMENTS["table4"], smoke) == {"clipped": once, "clipped, no BatchNorm": once}


class TestGaps:
    def test_gaps_are_to_the_mean_of_retraining(self) -> None:
        def row(method: str, *values: float) -> tuple[dict, dict]:
            return {"method": method}, dict(zip(("UA", "RA", "TA", "FT AUC"), values, strict=True))

        runs = [row("retrain", 80, 100, 82, 50), row("retrain", 84, 100, 84, 52), row("amun", 90, 99, 81, 53)]
        results, baseline = Results(runs, "any"), {"method": "retrain"}
        # of amun |90 - 82|, |99 - 100|, |81 - 83|, |53 - 51|
        assert unlearning.gaps(results, "FT AUC", baseline, method="amun") == [13 / 4]
        assert unlearning.gaps(results, "FT AUC", baseline, method="retrain") == [4 / 4, 4 / 4]

    def test_printed_gaps_that_their_cells_do_not_allow(self) -> None:
        rows = unlearning.published("T1_50")
        assert not rows["AMUN"]["can follow"]
        assert rows["AMUN"]["of cells"] == pytest.approx(0.565)
        assert rows["BS"]["can follow"]
        assert all(each["can follow"] for name, each in unlearning.published("T1_10").items() if name != "RL")

    @pytest.mark.parametrize(("data", "told"), [("tiny-imagenet", "16.49"), ("cifar10", "1.91"), ("digits", None)])
    def test_printed_gaps_are_beside_results_on_the_same_data(self, data: str, told: str | None) -> None:
        values = {**dict.fromkeys(("UA", "RA", "TA", "FT AUC", "FT AUC, confidence"), 50.0)}
        cells = [({"method": name, "fraction": 0.1}, values) for name in ("retrain", "amun")]
        texts = [str(block) for block in EXPERIMENTS["table2"].blocks(Results(cells, data))]
        assert any(f"AMUN {told}" in text for text in texts) == (told is not None)


def test_a_diverged_cell_has_a_remark(out: Path, tmp_path: Path, monkeypatch) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr("amun_ext.unlearning.config.unlearn", diverge)
    lab, todo = reproduce._begun("table1", "smoke", tmp_path, None, None, "cpu", 1)
    lab.cache.scratch.mkdir(parents=True)
    cell = next(cell for cell in todo if cell["method"] == "ft")
    assert unlearning.unlearned(lab, **cell) == {"failed": "the loss is nan"}


def test_tuned_options_are_chosen_once_and_used(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    scale = replace(SCALES["smoke"], trials=2)
    lab, _ = reproduce._begun("table1", scale, tmp_path, None, None, "cpu", 1)
    lab.cache.scratch.mkdir(parents=True)
    config = lab.config("ft", True, 0.1)
    assert config.source == "tuned"
    assert config.recipe.epochs == scale.epochs
    (kept,) = (tmp_path / "cache").glob("tuned-ft*.json")
    before = kept.stat().st_mtime_ns
    assert lab.config("ft", True, 0.1) == config
    assert kept.stat().st_mtime_ns == before
    weak = lab.config("amun", True, 0.1, search="ffgsm")
    assert (weak.source, weak.search["method"]) == ("tuned", "ffgsm")
    assert lab.config("amun", True, 0.1).search["method"] == scale.search
    assert len([*(tmp_path / "cache").glob("tuned-amun*.json")]) == 2
    # half of the test set has been used
    assert len(lab.test) == 50
    assert not {*lab.test.tolist()} & {*some_ids(100, count=50, seed=0).tolist()}
