"""The command amun tune: its files, its status, and that it goes on when it was stopped."""

import json
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from kill_tools import INTERRUPT, SELF, alive, ended_at, wait_for
from tuning_tools import METADATA, finished, original, set_rates, splits

from amun_ext import cli, data, models
from amun_ext.unlearning.config import load_tuned_options


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    about = {"arch": "small-cnn", "width": "4", **METADATA, "training_data": data.fingerprint(splits().train)}
    models.save_checkpoint(folder / "model.safetensors", original(), about)
    parts = {
        f"{part}_{name}": tensor.numpy()
        for part in ("train", "test")
        for name, tensor in zip(("images", "labels"), getattr(splits(), part).tensors, strict=True)
    }
    np.savez(folder / "data.npz", **parts)
    return folder / "model.safetensors"


def request(checkpoint: Path, out: Path) -> list[str]:
    where = {"--model": checkpoint, "--data": checkpoint.with_name("data.npz"), "--ids": "0-19", "--out": out}
    return [str(part) for pair in where.items() for part in pair]


def arguments(checkpoint: Path, out: Path, more: str) -> list[str]:
    return ["tune", *request(checkpoint, out), "--epochs", "1", "--batch-size", "32", *more.split()]


class TestCommand:
    def test_forget_takes_its_result(self, checkpoint, tmp_path, capsys) -> None:
        out = tmp_path / "out"
        assert cli.main(arguments(checkpoint, out, "--methods amun,ft --trials 2 --max-accuracy-drop 50")) == 0
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
        told = [*request(checkpoint, tmp_path / "forgotten"), "--method", "ft", "--tuned", str(out / "tuned.json")]
        assert cli.main(["forget", *told]) == 0
        facts = json.loads((tmp_path / "forgotten/report.json").read_text())["facts"]
        assert json.dumps(asdict(choices["ft", True]["recipe"])) in json.dumps(facts)

    def test_help(self, capsys) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["tune", "--help"])
        assert ended.value.code == 0
        assert "--lr" not in capsys.readouterr().out  # it is searched

    def test_bad_input_leaves_no_file(self, checkpoint, tmp_path, refused) -> None:
        refused(arguments(checkpoint, tmp_path / "out", "--methods magic"), "methods must be some of")
        assert not (tmp_path / "out").exists()

    def test_a_method_without_a_choice_changes_the_status(self, checkpoint, tmp_path, capsys, monkeypatch) -> None:
        set_rates(monkeypatch, 1e20, 1e30)
        assert cli.main(arguments(checkpoint, tmp_path / "out", "--methods ft --trials 2")) == 3
        assert "no trial of ft keeps the accuracy" in capsys.readouterr().err

    @pytest.mark.slow
    @pytest.mark.parametrize(("end", "status"), [(SELF, -signal.SIGKILL), (INTERRUPT, 130)], ids=["killed", "Ctrl-C"])
    def test_a_stopped_command_resumes(self, checkpoint, tmp_path, end: str, status: int) -> None:
        out = tmp_path / "out"
        more = "--methods ft,rl --trials 6 --max-accuracy-drop 50 --workers"
        stopped = ended_at("amun_ext.tuning.study.tell", 4, arguments(checkpoint, out, f"{more} 2"), end)
        assert stopped.returncode == status, stopped.stderr
        children = [int(pid) for pid in stopped.stdout.split()]
        assert len(children) == 2
        wait_for(lambda: not any(alive(child) for child in children))
        if end == INTERRUPT:
            assert stopped.stderr.splitlines()[-1] == "amun: stopped; run the same command again to resume"
            assert "Traceback" not in stopped.stderr
        before = finished(out)
        assert len(before) == 3
        assert cli.main(arguments(checkpoint, out, f"{more} 1")) == 0
        record = json.loads((out / "trials.json").read_text())["trials"]
        assert {method: len(trials) for method, trials in record.items()} == {"ft": 6, "rl": 6}
        after = finished(out)
        assert {key: after[key] for key in before} == before  # none was done again
