"""amun purge: everything that has traces of forgotten samples is listed and removed, and nothing else."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amun_ext import cli
from amun_ext.files import workplace
from amun_ext.unlearning.cross_fit import FORMAT as TARGETS

DIGITS = ("--data", "digits", "--quiet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original, two requests, and what comes of searches, an audit, references and a stopped command."""
    folder = tmp_path_factory.mktemp("purge")
    train = ["train", *DIGITS, "--model", "small-cnn", "--width", "4", "--epochs", "1"]
    for name, seed in (("original", "0"), ("other", "1")):
        assert cli.main([*train, "--seed", seed, "--out", str(folder / f"{name}.safetensors")]) == 0
    original = ("--model", str(folder / "original.safetensors"))
    ga = ("--method", "ga", "--epochs", "1")
    assert (
        cli.main(
            ["forget", *DIGITS, *original, "--epochs", "1", "--ids", "3,5", "--with-images", "--out", str(folder / "a")]
        )
        == 0
    )
    second = ("--model", str(folder / "a/model.safetensors"), "--ids", "7,8", "--out", str(folder / "b"))
    assert cli.main(["forget", *DIGITS, *ga, *second]) == 0
    search = ["search", *DIGITS, *original, "--methods", "ffgsm", "--no-curves"]
    for name, ids in (("searched", "5-9"), ("others", "20-22")):
        assert cli.main([*search, "--ids", ids, "--out", str(folder / name)]) == 0
    references = ["references", *DIGITS, *original, "--num-models", "2", "--epochs", "1"]
    assert cli.main([*references, "--out", str(folder / "references")]) == 0
    prepare = ["prepare", *DIGITS, *original, "--folds", "2", "--epochs", "1"]
    assert cli.main([*prepare, "--out", str(folder / "targets.safetensors")]) == 0
    (folder / "searched/notes.safetensors").write_text("mine")
    save_file({"logits": torch.zeros(1)}, folder / "damaged.safetensors", {"format": TARGETS, "metadata": "{"})
    save_file({"mine": torch.zeros(1)}, folder / "references/reference-mine.safetensors")
    (folder / "b/page.html").write_text("data:image, of mine")
    (folder / "link.safetensors").symlink_to(folder / "original.safetensors")
    (folder / "unfinished-mine").mkdir()
    (folder / "unfinished-mine/README.txt").write_text("mine")
    (folder / "away").mkdir()
    with contextlib.suppress(KeyboardInterrupt), workplace(folder / "away", "forget") as place:
        (place / "examples.safetensors").write_text("half")
        raise KeyboardInterrupt
    return folder


TRACES = {
    "a/model.safetensors",
    "a/report.html",
    "away/unfinished-forget",
    "original.safetensors",
    "other.safetensors",
    "references/reference-0000.safetensors",
    "references/reference-0001.safetensors",
    "searched/ffgsm.safetensors",
    "searched/searches.html",
    "targets.safetensors",
}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_all_is_listed_and_removed(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, receipt = tmp_path / "all", tmp_path / "purged.json"
    shutil.copytree(made, folder, symlinks=True)
    before = files(folder)
    command = ["purge", "--model", str(folder / "b/model.safetensors"), str(folder)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert files(folder) == before
    assert {name for name in TRACES if str(folder / name) not in shown} == set()
    digest = hashlib.sha256((folder / "original.safetensors").read_bytes()).hexdigest()
    assert cli.main([*command, "--yes", "--receipt", str(receipt)]) == 0
    left = {name for name in before if name not in TRACES and not name.startswith("away/")}
    assert files(folder) == left
    told = json.loads(receipt.read_text())
    assert {Path(each["file"]).relative_to(folder).as_posix() for each in told["removed"]} == TRACES
    assert digest in [each.get("sha256") for each in told["removed"]]
    assert told["samples"] == 4
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "Nothing was found." in capsys.readouterr().out


def test_files_in_use_are_not_removed(made: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "all"
    shutil.copytree(made, folder, symlinks=True)
    shutil.copytree(made / "away/unfinished-forget", folder / "aa/unfinished-forget")
    command = ["purge", "--model", str(folder / "b/model.safetensors"), str(folder), "--yes"]
    there = files(folder)
    assert cli.main([*command, "--receipt", str(folder / "b/model.safetensors/purged.json")]) == 1
    assert files(folder) == there  # nothing is removed without a receipt
    capsys.readouterr()
    with workplace(folder / "away", "forget") as place:
        assert cli.main([*command, "--receipt", str(tmp_path / "purged.json")]) == 2
        assert "unfinished-forget" in capsys.readouterr().err
        assert place.is_dir()
        assert TRACES - {"away/unfinished-forget"} <= files(folder)
        assert (folder / "aa/unfinished-forget").is_dir()
    assert not (tmp_path / "purged.json").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--yes"], "--receipt must be given with --yes"),
        (["--receipt", "new.json"], "--receipt must be given with --yes"),
        (["--yes", "--receipt", "there.json"], "--receipt must be a new file"),
        (["--model", "original.safetensors"], "model must be a checkpoint"),
        (["missing"], "FOLDER must be a folder"),
    ],
)
def test_bad_input_is_refused(made: Path, tmp_path: Path, monkeypatch, capsys, options: list[str], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("mine")
    shutil.copy(made / "original.safetensors", tmp_path)
    assert cli.main(["purge", "--model", str(made / "b/model.safetensors"), str(made), *options]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1
