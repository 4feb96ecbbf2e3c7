"""What holds for every command: whose code is run, which files are written, how wrong arguments are answered."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_tools import forget, models_forgotten

from amun_ext import cli, data, defaults, models, tuning
from amun_ext.cli import audit, replay
from amun_ext.deletion import ledger, record_page
from amun_ext.deletion.results import RESULTS
from amun_ext.experiments import comparison, demo, scales
from amun_ext.search import ATTACKS
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS, PRESETS


@pytest.fixture
def original(digits_checkpoint: Path) -> Path:
    return digits_checkpoint


def with_own_code(folder: Path) -> None:
    """The user's module, and others that nobody has named: called like what the package and its processes import."""
    (folder / "mine.py").write_text(
        "from amun_ext import data, models\n"
        "def net(num_classes, in_channels):\n"
        "    return models.build('small-cnn', num_classes=num_classes, in_channels=in_channels, width=8)\n"
        "def digits():\n"
        "    return data.load('digits')\n"
    )
    for name in ("html", "matplotlib", "optuna", "scipy", "pickle", "socket", "tempfile"):
        (folder / f"{name}.py").write_text("import sys\nopen('ran', 'a').write(f'{__name__} in {sys.argv}\\n')\n")


def run_in(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """As the installed command does it: a script elsewhere, whose own folder is first on the path."""
    scripts = folder.parent / f"{folder.name}-bin"
    scripts.mkdir(exist_ok=True)
    (scripts / "amun").write_text(
        "import sys\nfrom amun_ext.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    arguments = [sys.executable, str(scripts / "amun"), *command.split(), "--out", "out"]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)


class TestCode:
    """Only what the user names is run, and only for that is the current folder looked at, last."""

    def test_a_foreign_checkpoint_and_the_users_own_functions(self, original: Path, tmp_path: Path) -> None:
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        models.load_checkpoint(original, model)
        torch.save({"state_dict": model.state_dict()}, tmp_path / "net.pt")
        with_own_code(tmp_path)
        ended = run_in(tmp_path, "forget --model net.pt --arch mine:net --data mine:digits --ids 1,2,3 --epochs 1")
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / "out/model.safetensors").exists()
        assert not (tmp_path / "ran").exists()

    def test_no_module_of_the_current_folder(self, original: Path, tmp_path: Path) -> None:
        with_own_code(tmp_path)
        ended = run_in(tmp_path, f"forget --model {original} --data digits --ids 1,2,3 --epochs 1")
        assert ended.returncode == 0, ended.stderr
        assert not (tmp_path / "ran").exists()

    @pytest.mark.slow
    def test_workers_import_as_the_command_does(self, original: Path, tmp_path: Path) -> None:
        with_own_code(tmp_path)
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        recipe = models.load_checkpoint(original, model)["recipe"]
        models.save_checkpoint(tmp_path / "net.safetensors", model, {"arch": "mine:net", "recipe": recipe})
        flags = "--arch mine:net --data mine:digits --num-models 2 --workers 2 --epochs 1"
        ended = run_in(tmp_path, f"references --model net.safetensors {flags}")
        assert ended.returncode == 0, ended.stderr
        assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()

    @pytest.mark.parametrize("command", ["search", "forget --ids 5", "tune --ids 5", "audit", "references", "shadows"])
    def test_a_checkpoint_cannot_ask_for_code(
        self, original: Path, tmp_path: Path, command: str, capsys, monkeypatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path, ""])
        (tmp_path / "helpers.py").write_text("open('ran', 'w')\n")
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        metadata = models.load_checkpoint(original, model) | {"arch": "helpers:build"}
        models.save_checkpoint("downloaded.safetensors", model, metadata)
        command += " --model downloaded.safetensors --data digits --out out"
        assert cli.main(command.split()) == 2
        assert "--arch must be given, because downloaded.safetensors asks to run code" in capsys.readouterr().err
        assert not Path("ran").exists()

    def test_nor_can_a_checkpoint_beside_it(self, original: Path, tmp_path: Path, capsys) -> None:
        """--arch is for all checkpoints of a command, but none of them has chosen it."""
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        metadata = models.load_checkpoint(original, model) | {"arch": "helpers:build"}
        models.save_checkpoint(tmp_path / "before.safetensors", model, metadata)
        beside = ["--original", str(tmp_path / "before.safetensors"), "--ids", "5", "--out", str(tmp_path / "out")]
        assert cli.main(["audit", "--model", str(original), "--data", "digits", *beside]) == 2
        assert "before.safetensors asks to run code" in capsys.readouterr().err
        assert cli.main(["audit", "--model", str(original), "--data", "digits", *beside, "--arch", "small-cnn"]) == 0


def test_unwritable_results_are_refused_before_any_work(original, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    assert forget(original, tmp_path / "file/out", "--ids", "5") == 2
    assert "--out must be in a folder" in capsys.readouterr().err


NAMED_LIKE_OURS = (
    "examples.safetensors",
    "examples.safetensors.bak",
    "examples.safetensors.partial",
    ".examples.safetensors.old",
    "mask-of-mine.safetensors",
    "fine-tuning.safetensors",
    "retraining.safetensors.txt",
    "retraining-0.safetensors",
)


@pytest.mark.parametrize("command", ["forget --mask-fraction 0.5 --epochs 1 --retrain", "audit --retrain"])
def test_no_file_of_the_users_is_removed(original, tmp_path, command) -> None:
    """Nothing goes that this run has not made, whatever it is called."""
    for name in NAMED_LIKE_OURS:
        (tmp_path / name).write_text(name)
    name, *flags = command.split()
    flags += ["--model", str(original), "--data", "digits", "--ids", "3", "--out", str(tmp_path)]
    assert cli.main([name, *flags]) == 0
    assert all((tmp_path / name).read_text() == name for name in NAMED_LIKE_OURS)
    assert not [*tmp_path.glob("unfinished*")]


def test_the_model_that_is_to_forget_is_not_overwritten(original, tmp_path, capsys) -> None:
    own = tmp_path / "model.safetensors"
    own.write_bytes(before := original.read_bytes())
    assert forget(own, tmp_path, "--ids", "3") == 2
    assert "--out must be another folder" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_a_folder_of_the_user_is_not_used_as_a_workplace(original, tmp_path, capsys) -> None:
    (tmp_path / "unfinished-forget").mkdir()
    own = tmp_path / "unfinished-forget/README.txt"
    own.write_text("a thesis")
    assert forget(original, tmp_path, "--ids", "3") == 2
    assert "out must be free for a folder unfinished-forget" in capsys.readouterr().err
    assert own.read_text() == "a thesis"
    own.unlink()  # as a kill may leave it
    assert forget(original, tmp_path, "--ids", "3", "--epochs", "1") == 0


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("forget", "unfinished-forget"),
        ("forget", "model.safetensors"),
        ("forget", "report.html"),
        ("search", "curves"),
        ("search", "ddn.safetensors"),
        ("search", "ddn.safetensors.partial"),
        ("compare", "cells"),
        ("compare", "compare.json"),
        ("tune", "journal.log"),
        ("audit", "audit.md"),
        ("train", "net.safetensors"),
        ("demo", "report.html"),
    ],
)
def test_nothing_is_written_through_a_link(original, tmp_path, capsys, command, name) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    (out / name).symlink_to(elsewhere)
    flags = ["--model", str(original), "--data", "digits", "--ids", "3"]
    flags = {"train": ["--model", "small-cnn", "--data", "digits", "--epochs", "1"], "demo": []}.get(command, flags)
    flags += {"search": ["--methods", "ddn"], "tune": ["--trials", "1", "--epochs", "1"]}.get(command, [])
    place = out / name if command == "train" else out
    assert cli.main([command, *flags, "--out", str(place)]) == 2
    assert f"out must be without symbolic links in place of results, got {out / name}" in capsys.readouterr().err
    assert (out / name).is_symlink()
    assert not elsewhere.exists()


def test_demo_at_a_hundredth_of_its_length(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(demo, "TRAINING", Recipe(epochs=1, lr=0.05, batch_size=64))
    monkeypatch.setattr(demo, "FINE_TUNING", Recipe(epochs=1, lr=0.01))
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert "data:image" not in (tmp_path / "demo/report.html").read_text()
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {"original.safetensors", "unlearned.safetensors", "report.html", "report.json"}
    rows = json.loads((tmp_path / "demo/report.json").read_text())["rows"]
    assert list(rows) == [demo.ORIGINAL, demo.HEADLINE, demo.WITH_FORGET, demo.RETRAIN]
    printed = capsys.readouterr().out
    assert all(row in printed for row in rows)
    # What it wrote is a checkpoint like any other, and knows what it has forgotten.
    unlearned = tmp_path / "demo/unlearned.safetensors"
    free = next(number for number in range(2000) if number not in models_forgotten(unlearned))
    arguments = [
        "forget",
        "--model",
        str(unlearned),
        "--data",
        "fashion-mnist-mini",
        "--ids",
        str(free),
        "--epochs",
        "1",
    ]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("command", ["forget --epochs 1", "audit"])
def test_a_page_has_forgotten_images_only_with_images(original, tmp_path, command) -> None:
    name, *flags = command.split()
    flags += ["--model", str(original), "--data", "digits", "--ids", "0-199"]
    for more, shown in ([], False), (["--with-images"], True):
        assert cli.main([name, *flags, *more, "--out", str(tmp_path / str(shown))]) == 0
        (page,) = (tmp_path / str(shown)).glob("*.html")
        assert ("data:image" in page.read_text()) == shown


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_help(command, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: amun" in printed
    assert ("--with-images" in printed) == (command in (["demo"], ["forget"], ["audit"]))


def test_help_shows_the_names_that_there_are(capsys) -> None:
    tables = {"methods": METHODS, "attacks": ATTACKS, "datasets": data.DATASETS}
    assert {name: tuple(table.own) for name, table in tables.items()} == defaults.TABLES
    assert tuple(models.MODELS) == defaults.MODELS
    assert tuple(PRESETS) == defaults.PRESETS
    assert tuple(tuning.OBJECTIVES) == defaults.OBJECTIVES
    assert tuple(comparison.SETTINGS) == defaults.SETTINGS
    assert tuple(scales.SCALES) == defaults.SCALES
    shown = {
        "forget": RESULTS,
        "ledger": (ledger.FILE, record_page.PAGE),
        "replay": (f"{replay.OTHER} not equal",),
        "audit": [f"{status} {answer}" for answer, status in audit.EXIT_STATUS.items() if status],
    }
    for command, names in shown.items():
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        told = capsys.readouterr().out
        assert [name for name in names if name not in told] == []


@pytest.mark.parametrize("bad", [[], ["audti"], ["forget", "--iid", "3"], ["train", "--seed", "x"]])
def test_a_wrong_argument_is_answered_in_one_line(bad, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(bad)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("amun")
    assert told.count("\n") == 1
    assert "--help" in told


@pytest.mark.parametrize("bad", [["--device", "abacus"], ["--device", "meta"], ["--seed", "-1"], ["--seed", "9" * 30]])
def test_bad_options_end_before_any_work(original, tmp_path, capsys, bad) -> None:
    with pytest.raises(SystemExit) as ended:
        forget(original, tmp_path / "out", "--ids", "5", *bad)
    assert ended.value.code == 2
    assert f"argument {bad[0]}: must be" in capsys.readouterr().err


def test_info_names_versions_kernels_and_the_build() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "amun_ext.info"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(cli.__file__).parents[2],
    ).stdout
    for word in (torch.__version__, "attack_loss, search_step_", "torch_target", "flags", "CPU", "CUDA"):
        assert word in printed
