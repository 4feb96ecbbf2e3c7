"""Arguments, files and models of the user's that are not what they must be: one line, which no terminal obeys."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from amun_ext import cli, data, models
from amun_ext.models.small_cnn import small_cnn

ABOUT = {"arch": "small-cnn", "width": "2", "recipe": '{"epochs": 1, "lr": 0.1}'}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("original") / "model.safetensors"
    models.save_checkpoint(path, small_cnn(10, 1, 2), ABOUT)
    return path


def amun(command: str, original: Path, out: Path | str, *more: str) -> int:
    return cli.main([command, "--model", str(original), "--data", "digits", "--out", str(out), *more])


def one_line(capsys) -> str:
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.endswith("\n")
    return told.removesuffix("\n")


@pytest.mark.parametrize("name", ["out", "model", "ids-file"])
def test_an_empty_path_is_not_the_current_folder(name: str, original, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        amun("forget", original, "out", "--ids-file", "a.csv", f"--{name}", "")
    assert f"argument --{name}: must be a path, got ''" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_a_training_that_ends_in_infinite_logits_names_lr(original, tmp_path, capsys) -> None:
    """One step, whose loss is that before it, to weights that are finite."""
    options = ["--ids", "3", "--method", "ft", "--epochs", "1", "--lr", "1e30", "--batch-size", "4000"]
    assert amun("forget", original, tmp_path / "out", *options) == 2
    assert "lower lr" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_in_place_of_a_file(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", str(tmp_path), "/"):
        assert cli.main(["train", "--model", "small-cnn", "--data", "digits", "--out", out]) == 2
        assert "--out must be a path that ends in .safetensors" in one_line(capsys)


def test_a_broken_link(original, tmp_path, capsys) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for out in (tmp_path / "link", tmp_path / "link" / "deeper"):
        assert amun("forget", original, out, "--ids", "3") == 2
        told = f"--out must be in a folder, got {tmp_path}/link, a broken symbolic link"
        assert one_line(capsys) == f"amun: error: {told}"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("command", ["forget", "audit"])
def test_a_link_to_itself(command: str, tmp_path, capsys) -> None:
    (loop := tmp_path / "loop.pt").symlink_to(loop)
    more = ["--arch", "small-cnn", "--ids", "3", *(["--retrain"] if command == "audit" else [])]
    assert amun(command, loop, tmp_path / "out", *more) == 2
    assert "loop.pt: Too many levels of symbolic links" in one_line(capsys)


def test_an_unreadable_model(original, tmp_path, capsys, monkeypatch) -> None:
    opened = os.open

    def refused(path, *arguments, **options):
        if Path(path).suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr("amun_ext.reading.os.open", refused)  # root may read everything
    assert amun("forget", original, tmp_path / "out", "--ids", "3") == 2
    told = f"checkpoint must be a file that can be read, got {original}: Permission denied"
    assert one_line(capsys) == f"amun: error: {told}"


@pytest.mark.parametrize("name", ["nothing.pt", "nothing.safetensors", ".", "/dev/zero"])
@pytest.mark.parametrize("more", [[], ["--arch", "small-cnn"]])
def test_a_model_that_is_no_file(name: str, more: list[str], tmp_path, capsys) -> None:
    assert amun("forget", Path(name), tmp_path / "out", "--ids", "3", *more) == 2
    assert one_line(capsys).startswith(f"amun: error: checkpoint must be a file, got {name}, which ")


def test_a_class_is_named_by_one_name(original, tmp_path, capsys, user) -> None:
    digits = data.load("digits")
    user.load = lambda: replace(digits, classes=("same", *digits.classes[1:-1], "same"))
    where = ["--data", "helpers_of_the_user:load", "--class"]
    assert amun("forget", original, tmp_path / "out", *where, "same") == 2
    assert "--class must be one of the numbers [0, 9], which have one name, got same" in one_line(capsys)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("audit", "audit.md"),
        ("compare", "compare.json"),
        ("search", "searches.html"),
        ("audit", "retrained.safetensors"),
        ("tune", "tuned.json"),
        ("tune", "journal.log"),
    ],
)
def test_a_file_of_the_user_is_not_replaced(command: str, name: str, original, tmp_path, capsys) -> None:
    (tmp_path / name).write_text("mine")
    more = ["--ids", "3-9", *["--retrain"] * (command == "audit")]
    assert amun(command, original, tmp_path, *more) == 2
    assert name in one_line(capsys)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_models_without_other_ids_are_not_replaced(original, tmp_path, capsys) -> None:
    path = tmp_path / "retrained.safetensors"
    models.save_checkpoint(path, small_cnn(10, 1, 2), {"forgotten": "[4]"})
    before = path.read_bytes()
    assert amun("audit", original, tmp_path, "--ids", "3-9", "--retrain") == 2
    assert f"--out must be a folder without other retrained models, got {path}" in one_line(capsys)
    assert path.read_bytes() == before


def test_a_sparse_file_is_no_large_model(tmp_path, capsys) -> None:
    path = tmp_path / "model.pt"
    torch.save(small_cnn(10, 1, 2).state_dict(), path)
    os.truncate(path, 2**42)
    assert amun("forget", path, tmp_path / "out", "--arch", "small-cnn", "--width", "90000", "--ids", "3") == 2
    assert f"amun: error: {path} must be a checkpoint" in one_line(capsys)


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "", "1_0", "9" * 5000])
def test_number_of_models_to_retrain(number: str, original, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        amun("audit", original, tmp_path / "out", "--ids", "1-50", f"--retrain={number}")
    assert "argument --retrain: must be a whole number from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--ids-file", "a\x1b[31m\nb.txt"],
            r"file of ids, got a\x1b[31m\nb.txt, which does not exist",
        ),
        (["--class", "\x1b]0;title\x07"], r"got '\x1b]0;title\x07'"),
        (["--class", "cafe\u0301"], r"got 'cafe\u0301'"),
        (["--class", "\uff13"], "or a number below 10, got '\uff13'"),
        (["--ids", "3", "--tuned", "a\nb.json"], r"a\nb.json must be a file of tuned options"),
    ],
)
def test_no_name_is_printed_raw(arguments: list[str], told: str, original, tmp_path, capsys) -> None:
    assert amun("forget", original, tmp_path / "out", *arguments) == 2
    assert told in one_line(capsys)


def test_an_unknown_argument_is_printed_in_one_line(original, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        amun("forget", original, tmp_path / "out", "--ids", "3", "a\x1b[31m\nb")
    assert r"unrecognized arguments: a\x1b[31m\nb" in capsys.readouterr().err


def test_a_folder_whose_name_cannot_be_printed_is_refused(original, tmp_path, capsys) -> None:
    assert amun("forget", original, tmp_path / "a\x1b[31m", "--ids", "3") == 2
    assert r"--out must be a path that can be printed, got" in one_line(capsys)


class Breaks(nn.Module):
    """A model that breaks when it is trained, or at once."""

    def __init__(self, error: BaseException, at_once: bool) -> None:
        super().__init__()
        self.net, self.error, self.at_once = small_cnn(10, 1, 2), error, at_once

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or self.at_once:
            raise self.error
        return self.net(x)


ERRORS = {
    "OutOfMemoryError: CUDA out of memory.": torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 TiB"),
    "MemoryError": MemoryError(),
    "KeyError: 'x'": KeyError("x"),
    "SystemExit: 3": SystemExit(3),  # as a status it says something else
}


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A module of the user's, named by its first argument."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    module = ModuleType("helpers_of_the_user")
    module.build = lambda num_classes, in_channels: module.model
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("told", ERRORS)
def test_a_model_that_raises_during_the_work(told: str, user, tmp_path, capsys) -> None:
    user.model = Breaks(ERRORS[told], at_once=False)
    models.save_checkpoint(tmp_path / "m.safetensors", user.model, {})
    arguments = ["--arch", "helpers_of_the_user:build", "--ids", "1-5", "--method", "rl"]
    assert amun("forget", tmp_path / "m.safetensors", tmp_path / "out", *arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"amun: failed: {told} (--debug shows where)"
    assert "Traceback (most recent call last):" not in said
    assert amun("forget", tmp_path / "m.safetensors", tmp_path / "out", *arguments, "--debug") == 1
    assert "Traceback (most recent call last):" in capsys.readouterr().err


@pytest.mark.parametrize("told", ERRORS)
def test_a_model_that_raises_at_once(told: str, user, tmp_path, capsys) -> None:
    user.model = Breaks(ERRORS[told], at_once=True)
    models.save_checkpoint(tmp_path / "m.safetensors", user.model, {})
    arguments = ["--arch", "helpers_of_the_user:build", "--ids", "1-5"]
    assert amun("forget", tmp_path / "m.safetensors", tmp_path / "out", *arguments) == 2
    assert "amun: error: model must take inputs of shape (2, 1, 8, 8), got " in one_line(capsys)


@pytest.mark.parametrize("text", ["raise SystemExit", "1 +", "import nothing_of_this_name", "raise KeyError('x')"])
def test_a_module_that_cannot_be_imported(text: str, original, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("broken_of_the_user.py").write_text(text)
    assert amun("forget", original, tmp_path / "out", "--arch", "broken_of_the_user:build", "--ids", "1-5") == 2
    assert "model 'broken_of_the_user:build' must be an importable module:function, got " in one_line(capsys)
