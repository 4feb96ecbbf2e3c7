"""Image folders of several sizes, and without a test set of their own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from amun_ext import InputError, cli, data, models


def fill(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    """Pictures [H, W, 3] by number, one brighter than the other."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")


class TestResize:
    def test_is_that_of_a_scaled_and_centred_crop(self, tmp_path: Path) -> None:
        """A bright square in the middle of a wide dark picture fills half of the height, and so of the result."""
        for part in ("train", "test"):
            for name, (height, width) in {"wide": (32, 96), "tall": (80, 40)}.items():
                pixels, middle, edge = (
                    np.zeros((height, width), np.uint8),
                    (height // 2, width // 2),
                    min(height, width) // 4,
                )
                pixels[middle[0] - edge : middle[0] + edge, middle[1] - edge : middle[1] + edge] = 255
                (tmp_path / part / name).mkdir(parents=True)
                Image.fromarray(pixels).save(tmp_path / part / name / "0.png")
        images = data.load(tmp_path, resize=16).train.tensors[0]
        assert images.shape == (2, 1, 16, 16)
        expected = nn.functional.pad(torch.ones(8, 8), (4, 4, 4, 4))
        inner = torch.ones(16, 16, dtype=torch.bool)
        inner[3:13, 3:13] = False
        inner[5:11, 5:11] = True  # all but the edges, which are blurred
        for image in images:
            torch.testing.assert_close(image[0][inner], expected[inner], atol=0.02, rtol=0)

    def test_is_for_folders_and_whole_pixels(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="resize must be left out: digits is no folder of images, got 8"):
            data.load("digits", resize=8)
        fill(tmp_path / "a", 4)
        with pytest.raises(InputError, match="resize must be a whole number from 1 on, got 0"):
            data.load(tmp_path, resize=0, test_fraction=0.5)


class TestTestFraction:
    def test_takes_about_that_share_whichever_others_there_are(self, tmp_path: Path) -> None:
        for seed, name in enumerate(("cat", "dog")):
            fill(tmp_path / name, 100, seed)
        shutil.copy(tmp_path / "cat/3.png", tmp_path / "dog/copy.png")
        before = data.load(tmp_path, test_fraction=0.25)
        assert 30 < len(before.test) < 70
        assert len(before.train) + len(before.test) == 201
        assert ("cat/3.png" in before.names) == ("dog/copy.png" in before.names)
        gone = before.names[5]
        (tmp_path / gone).unlink()
        fill(tmp_path / "cow", 10, seed=3)
        after = data.load(tmp_path, test_fraction=0.25)
        assert after.classes == ("cat", "cow", "dog")
        assert {*before.names} - {*after.names} == {gone}
        assert all(name.startswith("cow/") for name in {*after.names} - {*before.names})
        fewer = data.load(tmp_path, test_fraction=0.1)
        assert {*after.names} < {*fewer.names}

    def test_what_it_must_be(self, tmp_path: Path) -> None:
        fill(tmp_path / "cat", 3)
        for wrong in (0, 1, -0.1, float("nan"), "0.5"):
            with pytest.raises(InputError, match="test fraction must be between 0 and 1"):
                data.load(tmp_path, test_fraction=wrong)
        with pytest.raises(InputError, match="must be of images for it with this test fraction, got no file in it"):
            data.load(tmp_path, test_fraction=1e-9)
        with pytest.raises(InputError, match="test fraction must be left out: digits is no folder"):
            data.load("digits", test_fraction=0.1)

    def test_on_the_command_line(self, tmp_path: Path, monkeypatch, capsys) -> None:
        monkeypatch.chdir(tmp_path)
        for seed, name in enumerate(("cat", "dog")):
            fill(tmp_path / "photos" / name, 20, seed, size=(12, 9 + seed))
        given = "--data photos --resize 8 --test-fraction 0.3 --device cpu"
        small = "--epochs 1 --batch-size 8"
        assert cli.main(f"train --model small-cnn --width 4 {small} {given} --out m.safetensors".split()) == 0
        forget = f"forget --data photos --device cpu --method ft {small}"
        assert cli.main(f"{forget} --model m.safetensors --ids 0 --out one".split()) == 0
        first = data.load("photos", resize=8, test_fraction=0.3).names[0]
        (tmp_path / "photos" / first).unlink()
        later = f"{forget} --model one/model.safetensors --ids 1"
        assert cli.main(f"{later} --resize 8 --test-fraction 0.3 --out two".split()) == 0
        assert models.read_metadata("two/model.safetensors")["forgotten"] == "[0, 1]"
        for flag, known, other in (("--resize", 8, 9), ("--test-fraction", 0.3, 0.2)):
            capsys.readouterr()
            assert cli.main(f"{later} {flag} {other} --out x".split()) == 2
            assert f"{flag} must be {known}, as the model was trained, got {other}" in capsys.readouterr().err
