"""amun replay: the same request again gives the same model; what the record is not of is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amun_ext import cli
from amun_ext.files import file_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, original: Path) -> Path:
    made = tmp_path_factory.mktemp("replay")
    shutil.copy(original, made / "original.safetensors")
    forget = f"forget --data digits --epochs 1 --quiet --ids 3,5 --model {made}/original.safetensors --out {made}/first"
    assert cli.main(forget.split()) == 0
    return made


def test_it_gives_the_same_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = folder / "first/record.json"
    assert cli.main(["replay", str(record), "--quiet", "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.endswith("the models are bit-equal\n")
    told = json.loads(record.read_text())
    assert told["child"] == file_digest(folder / "first/model.safetensors")
    assert told["command"][0] == "forget"
    assert told["seconds"]["AMUN"] == pytest.approx(told["stages"]["search"] + told["stages"]["unlearning"], abs=0.1)
    assert [*told["stages"]] == ["search", "unlearning", "measuring"]


def test_a_different_model_is_reported(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(folder / "first/model.safetensors")
    first = next(name for name, value in weights.items() if value.is_floating_point())
    weights[first].view(-1)[0] += 0.25
    save_file(weights, tmp_path / "model.safetensors")
    record = json.loads((folder / "first/record.json").read_text())
    record["child"] = file_digest(tmp_path / "model.safetensors")
    record["versions"]["torch"] = "1.0"
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert cli.main(["replay", str(tmp_path / "record.json"), "--quiet", "--out", str(tmp_path / "again")]) == 7
    told = capsys.readouterr().out
    assert "the models differ, by at most 0.25 in a weight" in told
    assert f"torch '1.0' instead of '{torch.__version__}'" in told


BROKEN = {
    "no JSON": "{",
    "a list": "[]",
    "a text": '"forget"',
    "no command": '{"format": "amun_ext.record.1"}',
    "another command": '{"format": "amun_ext.record.1", "command": ["train"]}',
    "an option of another version": '{"format": "amun_ext.record.1", "command": ["forget", "--later"]}',
    "a command for help": '{"format": "amun_ext.record.1", "command": ["forget", "--help"]}',
    "numbers": '{"format": "amun_ext.record.1", "command": ["forget", 3]}',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    (tmp_path / "record.json").write_text(BROKEN[kind])
    assert cli.main(["replay", str(tmp_path / "record.json"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_code_needs_to_be_named_and_the_model_to_be_the_same(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('run').touch()\n\ndef load():\n    return None\n")
    (tmp_path / "evil:load").touch()  # a file of that name makes no data of it
    record = json.loads((folder / "first/record.json").read_text())
    command = record["command"]
    at = command.index("digits")
    for change, told in (
        ({"command": [*command[:at], "evil:load", *command[at + 1 :]]}, "--code must be given for all code"),
        ({"command": [*command, "--arch", "evil:load"]}, "--code must be given for all code"),
        ({"parent": "another"}, "record must be of the model in"),
    ):
        (tmp_path / "record.json").write_text(json.dumps({**record, **change}))
        assert cli.main(["replay", "record.json", "--out", "again"]) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert cli.main(["replay", str(folder / "first/record.json"), "--out", str(folder / "first")]) == 2
    assert "--out must be a new folder" in capsys.readouterr().err
