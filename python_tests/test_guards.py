"""What ends a request with an exit status of its own, and no result."""

import json
from pathlib import Path

import pytest

from amun_ext import cli
from amun_ext.deletion.results import RESULTS


def forget(original: Path, out: Path, *options: str) -> int:
    command = ["forget", "--data", "digits", "--ids", "3,5", "--epochs", "1", "--quiet", "--method", "ga"]
    return cli.main([*command, "--model", str(original), "--out", str(out), *options])


def test_an_unchanged_model_is_refused(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget(original, tmp_path / "out", "--lr", "1e-30") == 4
    told = capsys.readouterr()
    assert told.err == "amun: refused: the model is unchanged: all its weights are bit-equal\n"
    assert not any((tmp_path / "out" / name).exists() for name in RESULTS)


def test_a_model_below_the_floor_is_refused(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, lr = tmp_path / "out", ("--lr", "0.001")
    assert forget(original, out, *lr, "--floor", "99.5") == 5
    told = capsys.readouterr().err
    assert "below the floor of 99.5 %" in told
    assert told.count("\n") == 1
    assert not any((out / name).exists() for name in RESULTS)
    assert forget(original, out, *lr, "--floor", "0") == 0  # goes on with what was made
    accuracy = json.loads((out / "report.json").read_text())["rows"]["GA"]["TA"]
    assert {path.name for path in out.iterdir()} == {*RESULTS}
    again = tmp_path / "again"
    assert forget(original, again, *lr, "--floor", str(accuracy)) == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("floor", ["-1", "101", "nan", "x", "", "1e1"])
def test_a_floor_is_a_percentage(original: Path, tmp_path: Path, floor: str) -> None:
    with pytest.raises(SystemExit):
        forget(original, tmp_path / "out", "--floor", floor)


@pytest.mark.parametrize("method", ["amun", "salun", "ga", "retrain"])
def test_a_dry_run_prints_the_plan_and_writes_nothing(original: Path, tmp_path: Path, capsys, method: str) -> None:
    command = ["forget", "--data", "digits", "--ids", "3,5", "--model", str(original), "--method", method, "--dry-run"]
    assert cli.main([*command, "--out", str(tmp_path / "out"), "--epochs", "2"]) == 0
    told = capsys.readouterr().out
    assert "samples to forget: 2, ids 3, 5\n" in told
    assert f"method: {method}\n" in told
    assert "unlearning would take about" in told
    assert ("retraining would take about" in told) == (method != "retrain")
    assert cli.main([each.replace("3,5", "3,99999") for each in command] + ["--out", str(tmp_path / "out")]) == 2
    assert list(tmp_path.iterdir()) == []
