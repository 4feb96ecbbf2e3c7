"""What commands write beside their results: nothing with --quiet, tables with --tables, pictures with --png."""

import csv
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from amun_ext import AdversarialSet, cli, data, models


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("original") / "original.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("small-cnn", num_classes=10, in_channels=1)
    splits = data.load("digits")
    recipe = '{"epochs": 1, "lr": 0.01}'
    about = {"arch": "small-cnn", "recipe": recipe, "training_data": data.fingerprint(splits.train)}
    models.save_checkpoint(path, model, about)
    return path


def run(command: str, original: Path, *more: object) -> int:
    return cli.main([command, "--model", str(original), "--data", "digits", *map(str, more)])


def test_every_command_can_be_quiet() -> None:
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as left:
            cli.main([command, "--quiet", "--help"])
        assert left.value.code == 0


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_has_no_progress(original, tmp_path, capsys, quiet) -> None:
    flags = ("--ids", "3,17,20", "--epochs", 1, "--retrain", "--out", tmp_path / "out")
    assert run("forget", original, *flags, *["--quiet"] * quiet) == 0
    told = capsys.readouterr()
    assert "wrote model.safetensors" in told.out
    assert (told.err == "") == quiet


def test_tables_and_pictures(original, tmp_path, capsys) -> None:
    out, png = tmp_path / "out", tmp_path / "png"
    flags = ("--methods", "ddn,ffgsm", "--count", 6, "--no-curves", "--out", out, "--png", png, "--tables", "--quiet")
    assert run("search", original, *flags) in (0, 3)
    assert {path.name for path in (out / "tables").iterdir()} == {
        f"{name}.{kind}" for name in ("methods", "curves") for kind in ("csv", "tex")
    }
    assert [row["method"] for row in csv.DictReader((out / "tables/methods.csv").read_text().splitlines())] == [
        "ddn",
        "ffgsm",
    ]
    assert f"into {out} (and its folder tables)" in capsys.readouterr().out
    splits = data.load("digits")
    for method in ("ddn", "ffgsm"):
        found = AdversarialSet.load(out / f"{method}.safetensors")
        pictures = sorted(png.glob(f"{method}-*.png"))
        assert len(pictures) == int(found.found.sum()) > 0
        number = int(pictures[0].stem.rpartition("-")[2])
        image = splits.train.tensors[0][number]
        height, width = image.shape[1:]
        shown = torch.from_numpy(imread(pictures[0])[..., 0])
        assert shown.shape == (height, 3 * width)
        assert torch.allclose(shown[:, :width], image[0], atol=1 / 255)


def test_no_png_through_a_link(original, tmp_path, capsys) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "png").symlink_to(tmp_path / "there")
    flags = ("--methods", "ffgsm", "--count", 2, "--no-curves", "--out", tmp_path / "out", "--png", tmp_path / "png")
    assert run("search", original, *flags) == 2
    assert "without symbolic links" in capsys.readouterr().err
    assert not [*(tmp_path / "there").iterdir()]
