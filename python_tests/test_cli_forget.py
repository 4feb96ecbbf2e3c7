"""amun train and amun forget on small data: what they write, every method, and each error as one line and no file."""

import dataclasses
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import forget, models_forgotten, told
from kill_tools import ended_at
from safetensors import SafetensorError, safe_open

from amun_ext import cli, data, find_min_adversarial, models, tuning
from amun_ext.deletion.results import RESULTS
from amun_ext.experiments import demo
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS, PRESETS
from amun_ext.unlearning.config import save_tuned_options


@pytest.fixture
def original(digits_checkpoint: Path) -> Path:
    return digits_checkpoint


class TestTrain:
    def test_metadata_of_the_checkpoint(self, original: Path) -> None:
        with safe_open(original, "pt") as file:
            metadata = file.metadata()
        assert metadata["arch"] == "small-cnn"
        assert metadata["width"] == "8"
        assert json.loads(metadata["recipe"])["epochs"] == 3
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        models.load_checkpoint(original, model)
        images, labels = data.load("digits").test.tensors
        with torch.no_grad():
            assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.5

    def test_seed_decides(self, original: Path, tmp_path: Path) -> None:
        arguments = (
            "train --data digits --model small-cnn --width 8 --epochs 3 --lr 0.1 --schedule cosine --batch-size 64"
        )
        again = tmp_path / "again.safetensors"
        assert cli.main([*arguments.split(), "--out", str(again)]) == 0
        first, second = (safe_open(path, "pt") for path in (original, again))
        assert all(torch.equal(first.get_tensor(key), second.get_tensor(key)) for key in first.keys())  # noqa: SIM118


class TestForget:
    def test_a_whole_class(self, original: Path, tmp_path: Path, capsys) -> None:
        """By name or number; of digits, whose names are numerals, both are the same."""
        assert forget(original, tmp_path / "out", "--class", "3", "--epochs", "1") == 0
        labels = data.load("digits").train.tensors[1]
        assert told(tmp_path / "out")["facts"]["ids"] == (labels == 3).nonzero()[:, 0].tolist()
        for wrong in ("11", "three", "-1", ""):
            assert forget(original, tmp_path / "no", f"--class={wrong}") == 2
            assert "--class must be one of 0, 1, 2" in capsys.readouterr().err
        assert not (tmp_path / "no").exists()

    def test_what_is_left_of_a_class(self, original: Path, tmp_path: Path, capsys) -> None:
        """An earlier request may have been for some of it, or for all."""
        rows = (data.load("digits").train.tensors[1] == 3).nonzero()[:, 0].tolist()
        assert forget(original, tmp_path / "some", "--ids", f"{rows[0]},{rows[4]}", "--epochs", "1") == 0
        after = tmp_path / "some/model.safetensors"
        assert forget(after, tmp_path / "rest", "--class", "3", "--epochs", "1") == 0
        assert told(tmp_path / "rest")["facts"]["ids"] == [row for row in rows if row not in (rows[0], rows[4])]
        assert forget(tmp_path / "rest/model.safetensors", tmp_path / "no", "--class", "3") == 2
        assert "--class must be one that has samples left, got '3'" in capsys.readouterr().err

    def test_writes_model_report_and_page(self, original: Path, tmp_path: Path, capsys) -> None:
        assert forget(original, tmp_path / "out", "--ids", "3,17,40-60", "--retrain", "--epochs", "1") == 0
        assert {path.name for path in (tmp_path / "out").iterdir()} == {*RESULTS}
        report = json.loads((tmp_path / "out/report.json").read_text())
        assert list(report["rows"]) == ["no-op (original)", "AMUN", "retrain"]
        assert report["sizes"]["forget"] == 23
        assert report["facts"]["fine_tuned_on"] == "D_R + D_A"
        assert report["facts"]["ids"] == [3, 17, *range(40, 61)]
        assert report["facts"]["ids_without_example"] == []
        assert "retrain" in capsys.readouterr().out
        assert "data:image" not in (tmp_path / "out/report.html").read_text()
        before, after = (safe_open(path, "pt") for path in (original, tmp_path / "out/model.safetensors"))
        assert any(not torch.equal(before.get_tensor(key), after.get_tensor(key)) for key in before.keys())  # noqa: SIM118

    def test_the_result_can_forget_again(self, original: Path, tmp_path: Path) -> None:
        assert forget(original, tmp_path / "first", "--fraction", "0.02", "--epochs", "1") == 0
        first = tmp_path / "first/model.safetensors"
        (free,) = [number for number in range(30) if number not in models_forgotten(first)][:1]
        assert forget(first, tmp_path / "second", "--ids", str(free), "--epochs", "1") == 0
        assert set(models_forgotten(tmp_path / "second/model.safetensors")) == {free, *models_forgotten(first)}

    def test_earlier_requests_stay_forgotten(self, original: Path, tmp_path: Path, capsys) -> None:
        """What an earlier request took out is in no set of a later one, or fine-tuning would bring it back."""
        assert forget(original, tmp_path / "first", "--ids", "0-99", "--epochs", "1") == 0
        first = tmp_path / "first/model.safetensors"
        assert forget(first, tmp_path / "second", "--ids", "100-149", "--epochs", "1") == 0
        sizes = json.loads((tmp_path / "second/report.json").read_text())["sizes"]
        assert (sizes["forget"], sizes["retain"]) == (50, 1197 - 150)
        assert forget(first, tmp_path / "third", "--ids", "99,100") == 2
        assert "ids must be not forgotten by an earlier request, got row 99" in capsys.readouterr().err

    def test_other_training_data_are_refused(self, original: Path, tmp_path: Path, capsys) -> None:
        assert forget(original, tmp_path / "out", "--data", "fashion-mnist-mini", "--ids", "3") == 2
        assert "those that the checkpoint was trained on" in capsys.readouterr().err

    def test_samples_without_an_example_are_reported(self, original, tmp_path, capsys, monkeypatch) -> None:
        def partly(*arguments, **options):
            result = find_min_adversarial(*arguments, **options)
            return dataclasses.replace(result, found=torch.tensor([True, False, True]))

        monkeypatch.setattr("amun_ext.deletion.request.find_min_adversarial", partly)
        assert forget(original, tmp_path / "out", "--ids", "30,20,10", "--epochs", "1") == 3
        assert "no adversarial example was found: ids 20" in capsys.readouterr().err
        assert json.loads((tmp_path / "out/report.json").read_text())["facts"]["ids_without_example"] == [20]
        assert models_forgotten(tmp_path / "out/model.safetensors") == [10, 30]

    def test_without_the_retain_set_and_with_the_forget_set(self, original: Path, tmp_path: Path) -> None:
        flags = ("--without-retain", "--with-forget", "--epochs", "1")
        assert forget(original, tmp_path / "out", "--ids", "1,2,3", *flags) == 0
        report = json.loads((tmp_path / "out/report.json").read_text())
        assert report["facts"]["fine_tuned_on"] == "D_F + D_A"
        assert report["baseline"] is None


class TestMethods:
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method(self, original: Path, tmp_path: Path, method: str) -> None:
        needed = []
        if "held_out" in METHODS[method].inputs:
            others = {f"{part}_images": np.random.RandomState(0).rand(20, 8, 8) for part in ("train", "test")}
            labels = {f"{part}_labels": np.arange(20) % 10 for part in ("train", "test")}
            needed = ["--held-out", str(tmp_path / "others.npz")]
            np.savez(needed[1], **others, **labels)
        if "targets" in METHODS[method].inputs:
            needed = ["--targets", str(tmp_path / "targets.safetensors")]
            told_to = ["--model", str(original), "--data", "digits", "--folds", "2", "--out", needed[1]]
            assert cli.main(["prepare", *told_to]) == 0
        request = ("--ids", "40-60", "--method", method, *needed)
        request += ("--epochs", "1") if METHODS[method].trains else ("--batch-size", "8")
        assert forget(original, tmp_path / "out", *request) == 0
        assert {path.name for path in (tmp_path / "out").iterdir()} == {*RESULTS}
        report, row = told(tmp_path / "out"), METHODS[method]
        title = "retrain" if method == "retrain" else row.title
        assert list(report["rows"]) == ["no-op (original)", title]
        assert report["highlight"] == title
        assert report["baseline"] == ("retrain" if method == "retrain" else None)
        assert report["rows"][title]["seconds"] > 0
        facts = report["facts"]
        assert (facts["method"], facts["recipe"]["epochs"]) == (method, 1)
        assert facts["options_source"] == ("the checkpoint" if method == "retrain" else "defaults")
        assert facts.get("mask") == row.fraction
        assert (report["search"] is not None) == ("amun" in method)
        assert models_forgotten(tmp_path / "out/model.safetensors") == [*range(40, 61)]

    def test_a_method_without_training_has_no_learning_rate(self, original: Path, tmp_path: Path, refused) -> None:
        command = ["forget", "--model", str(original), "--data", "digits", "--ids", "1", "--out", str(tmp_path / "out")]
        refused([*command, "--method", "ssd", "--lr", "0.1"], "lr must be left out")

    def test_amun_and_other_methods_have_their_own_recipes(self, original: Path, tmp_path: Path) -> None:
        for method in ("amun", "ga"):
            assert forget(original, tmp_path / method, "--ids", "40-60", "--method", method) == 0
        amun, ga = (told(tmp_path / method)["facts"] for method in ("amun", "ga"))
        assert amun["recipe"] == dataclasses.asdict(demo.FINE_TUNING)
        assert (amun["include_forget"], amun["search"]) == (False, "ddn")
        assert ga["recipe"] == dataclasses.asdict(METHODS["ga"].options["recipe"].default)

    def test_options_override_a_preset(self, original: Path, tmp_path: Path) -> None:
        preset = ("--method", "salun", "--preset", "unlearn-saliency-2023", "--epochs", "1", "--no-augment")
        assert forget(original, tmp_path / "out", "--ids", "40-60", *preset) == 0
        facts = told(tmp_path / "out")["facts"]
        assert facts["options_source"] == "preset unlearn-saliency-2023"
        assert (facts["mask"], facts["mask_gradient_only"]) == (0.5, True)
        assert (facts["true_label"], facts["order"]) == (True, "sequential")
        recipe = PRESETS["unlearn-saliency-2023"]["salun"]["recipe"]
        assert facts["recipe"] == dataclasses.asdict(recipe) | {"epochs": 1, "augment": False}

    def test_a_preset_overrides_the_default_and_a_flag_overrides_the_preset(self, original, tmp_path) -> None:
        flags = ("--ids", "40-60", "--preset", "amun-paper", "--search", "ddn", "--epochs", "1", "--no-augment")
        assert forget(original, tmp_path / "a", *flags) == 0
        assert told(tmp_path / "a")["facts"]["fine_tuned_on"] == "D_R + D_F + D_A"
        assert forget(original, tmp_path / "b", *flags, "--no-with-forget") == 0
        assert told(tmp_path / "b")["facts"]["fine_tuned_on"] == "D_R + D_A"

    def test_options_from_a_file_by_method_and_retain_set(self, original: Path, tmp_path: Path, capsys) -> None:
        choices = {
            ("ga", True): {"recipe": Recipe(epochs=2, lr=1e-4)},
            ("ga", False): {"recipe": Recipe(epochs=1, lr=1e-5), "mask": 0.25},
        }
        save_tuned_options(tmp_path / "tuned.json", choices, {"seed": 3})
        flags = ("--ids", "40-60", "--tuned", str(tmp_path / "tuned.json"))
        assert forget(original, tmp_path / "with", *flags, "--method", "ga") == 0
        assert forget(original, tmp_path / "without", *flags, "--method", "ga", "--without-retain") == 0
        first, second = (told(tmp_path / name)["facts"] for name in ("with", "without"))
        assert (first["recipe"]["lr"], first.get("mask"), first["retain_set"]) == (1e-4, None, "used")
        assert (second["recipe"]["lr"], second["mask"], second["retain_set"]) == (1e-5, 0.25, "not used")
        assert second["options_source"] == "tuned"
        test = data.load("digits").test
        half = tuning.split_test_set(test, 3)[1]
        assert told(tmp_path / "without")["sizes"]["test"] == len(half)
        assert second["tested_on"] == f"{len(half)} of {len(test)} test samples; amun tune has used the others"
        assert forget(original, tmp_path / "none", *flags, "--method", "rl") == 2
        assert "method must be one of ['ga'], which have tuned options with" in capsys.readouterr().err

    def test_every_option_of_the_recipe_has_a_flag(self, original: Path, tmp_path: Path) -> None:
        flags = "--epochs 1 --lr 0.02 --schedule step:1 --batch-size 40 --augment --batch-norm frozen --channels-last"
        more = "--precision bfloat16 --accumulation-steps 2"
        assert forget(original, tmp_path / "out", "--ids", "40-60", *flags.split(), *more.split()) == 0
        assert told(tmp_path / "out")["facts"]["recipe"] == dataclasses.asdict(
            Recipe(1, 0.02, "step:1", 40, augment=True, batch_norm="frozen", precision="bfloat16")
        ) | {"channels_last": True, "accumulation_steps": 2}

    def test_a_mask_keeps_the_other_weights(self, original: Path, tmp_path: Path) -> None:
        flags = ("--ids", "40-60", "--mask-fraction", "0.1", "--epochs", "1", "--lr", "0.05")
        assert forget(original, tmp_path / "out", *flags) == 0
        assert told(tmp_path / "out")["facts"]["mask"] == 0.1
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        names = [name for name, _ in model.named_parameters()]
        before, after = (safe_open(path, "pt") for path in (original, tmp_path / "out/model.safetensors"))
        changed = torch.cat([(before.get_tensor(name) != after.get_tensor(name)).flatten() for name in names])
        assert 0.05 < changed.float().mean() <= 0.1

    def test_retraining_uses_the_recipe_of_the_checkpoint(self, original: Path, tmp_path: Path, capsys) -> None:
        assert forget(original, tmp_path / "method", "--ids", "40-60", "--method", "retrain") == 0
        recipe = told(tmp_path / "method")["facts"]["recipe"]
        assert (recipe["epochs"], recipe["lr"], recipe["batch_size"]) == (3, 0.1, 64)
        assert forget(original, tmp_path / "beside", "--ids", "40-60", "--retrain", "--epochs", "1") == 0
        retrained, beside = (told(tmp_path / name)["rows"]["retrain"] for name in ("method", "beside"))
        assert retrained["UA"] == beside["UA"]
        assert retrained["FT AUC"] == beside["FT AUC"]
        model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
        models.load_checkpoint(original, model)
        torch.save(model.state_dict(), foreign := tmp_path / "net.pt")
        arch = ("--arch", "small-cnn", "--width", "8", "--ids", "40-60", "--method", "retrain")
        assert forget(foreign, tmp_path / "foreign", *arch) == 2
        assert "retraining must be of a checkpoint with a recipe" in capsys.readouterr().err
        assert forget(foreign, tmp_path / "foreign", *arch, "--epochs", "1", "--lr", "0.1") == 0


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "more"), [("fine-tuning", ()), ("retraining", ("--retrain",))])
def test_a_killed_command_resumes_its_training(original, tmp_path, kept, more) -> None:
    """Killed outright in the middle; called again it ends where one that was left alone ends."""
    flags = ["--ids", "40-60", "--method", "amun+salun", "--seed", "3", *more]
    flags += ["--epochs", "4" if kept == "fine-tuning" else "1"]
    command = ["forget", "--model", str(original), "--data", "digits", "--out", str(tmp_path / "out"), *flags]
    # When two epochs of it are done: fine-tuning comes first, and writes a file too.
    write = 3 if kept == "fine-tuning" else 4
    assert ended_at("amun_ext.training.resume.Checkpoint.write", write, command).returncode == -signal.SIGKILL
    left = safe_open(tmp_path / f"out/unfinished-forget/{kept}.safetensors", "pt").metadata()["state"]
    assert len(json.loads(left)["history"]) == 2
    assert not (tmp_path / "out/model.safetensors").exists()
    assert cli.main(command) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*RESULTS}
    assert forget(original, tmp_path / "alone", *flags) == 0
    resumed, alone = (safe_open(tmp_path / f"{name}/model.safetensors", "pt") for name in ("out", "alone"))
    assert all(torch.equal(resumed.get_tensor(key), alone.get_tensor(key)) for key in alone.keys())  # noqa: SIM118
    row = "AMUN+SalUn" if kept == "fine-tuning" else "retrain"
    resumed, alone = (told(tmp_path / name)["rows"][row] for name in ("out", "alone"))
    assert alone.pop("seconds") > 0
    assert resumed.pop("seconds") is None  # an earlier try did a part of it
    assert {key: resumed[key] for key in ("UA", "RA", "TA", "FT AUC")} == {
        key: alone[key] for key in ("UA", "RA", "TA", "FT AUC")
    }


ERRORS = {
    "unknown id": (["--ids", "5,99999"], r"ids in \[0, 1\d\d\d\), got .*99999"),
    "repeated id": (["--ids", "5,5"], "repeated"),
    "no integer": (["--ids", "five"], "five"),
    "file not there": (["--ids-file", "absent.csv"], r"absent\.csv"),
    "fraction": (["--fraction", "1.5"], "fraction must be"),
    "data folder not there": (["--ids", "5", "--data", "no/such/folder"], "data set must be one of"),
    "model not there": (["--ids", "5", "--model", "absent.safetensors"], r"absent\.safetensors, which does not exist"),
    "other architecture": (["--ids", "5", "--arch", "resnet18"], "a checkpoint of this architecture"),
    "other width": (["--ids", "5", "--width", "16"], "a checkpoint of this architecture"),
    "epochs": (["--ids", "5", "--epochs", "0"], "epochs must be"),
    "schedule": (["--ids", "5", "--schedule", "often"], "schedule must be"),
    "method without its set": (
        ["--ids", "5", "--method", "ft", "--without-retain", "--data", "no/such/folder"],
        "the retain set must be used: method ft trains on it, got left out",
    ),
    "preset of other methods": (
        ["--ids", "5", "--method", "ga", "--preset", "amun-paper"],
        "preset must be one that has",
    ),
    "no file of tuned options": (
        ["--ids", "5", "--tuned", "absent.json"],
        "absent.json must be a file of tuned options",
    ),
    "option of another method": (
        ["--ids", "5", "--method", "ga", "--search", "pgd"],
        "search must be left out: method ga",
    ),
    "keep": (["--ids", "5", "--mask-fraction", "1.5"], r"mask fraction must be in \(0, 1\]"),
    "mask of a retraining": (
        ["--ids", "5", "--mask-fraction", "0.5", "--method", "retrain"],
        "mask fraction must be left out",
    ),
    "held-out samples of the data": (
        ["--ids", "5", "--method", "regun", "--held-out", "digits"],
        "--held-out must be free",
    ),
    "nothing to train on": (["--ids", "5", "--without-retain"], "ids must be at least two"),
    "too little left": (["--ids", "0-1195"], "at least two samples are retained"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_bad_input_is_one_line_status_2_and_no_file(original, tmp_path, capsys, arguments, message) -> None:
    assert forget(original, tmp_path / "out", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("amun: error: ")
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_status_6_and_no_half_file(original, tmp_path, capsys, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("amun_ext.files.save_file", full)
    assert forget(original, tmp_path / "out", "--ids", "5,6", "--epochs", "1") == 6
    assert "amun: failed: [Errno 28] No space left on device" in capsys.readouterr().err
    # What the search has found is kept for the next try.
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished-forget"]


def test_the_same_command_reuses_a_finished_search(original, tmp_path, capsys, monkeypatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("amun_ext.unlearning.config.unlearn", stop)
    assert forget(original, tmp_path / "out", "--ids", "5,6", "--epochs", "1") == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished-forget"]
    assert forget(original, tmp_path / "out", "--ids", "5,7", "--epochs", "1") == 2
    assert "another stopped request" in capsys.readouterr().err

    monkeypatch.undo()

    def searched_again(*_: object, **__: object) -> None:
        raise AssertionError("the search was done")

    monkeypatch.setattr("amun_ext.search.loop.Search.run", searched_again)
    assert forget(original, tmp_path / "out", "--ids", "5,6", "--epochs", "1") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*RESULTS}  # near copies of what is forgotten are gone


def test_a_copy_under_another_id_is_refused(original, tmp_path, capsys) -> None:
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8), dtype=np.uint8)
    images[17] = images[4]
    labels = np.arange(20) % 10
    labels[17] = labels[4]
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    model = models.build("small-cnn", num_classes=10, in_channels=1, width=8)
    metadata = models.load_checkpoint(original, model)
    del metadata["training_data"], metadata["manifest"]
    models.save_checkpoint(original := tmp_path / "foreign.safetensors", model, metadata)
    arguments = ["--data", str(tmp_path / "d.npz"), "--ids", "3,4"]
    assert forget(original, tmp_path / "out", *arguments) == 2
    assert "ids must be without copies under other ids" in (told := capsys.readouterr().err)
    assert "row 4 has a copy row 17, identical" in told
    assert forget(original, tmp_path / "out", *arguments, "--include-duplicates", "--epochs", "1") == 0
    assert json.loads((tmp_path / "out/report.json").read_text())["facts"]["ids"] == [3, 4, 17]
