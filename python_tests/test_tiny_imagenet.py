"""Tiny ImageNet, from a small archive of its layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from amun_ext.data import load
from amun_ext.validation import InputError

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-imagenet-200"
    random = np.random.default_rng(0)

    def write(path: Path, grey: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 64) if grey else (64, 64, 3), dtype=np.uint8)).save(path)

    for name in ("n02", "n01"):
        for number in range(3):
            write(folder / "train" / name / "images" / f"{name}_{number}.JPEG", grey=number == 1)
    for number in range(2):
        write(folder / "val" / "images" / f"val_{number}.JPEG")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t62\t62\nval_1.JPEG\tn02\t1\t1\t6\t6\n")
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\ttench\nn03\tanother\n")
    return tmp_path


def test_the_layout_of_the_archive(root: Path) -> None:
    splits = load("tiny-imagenet", root)
    assert splits.classes == ("tench (n02)", "goldfish (n01)")  # in the order of wnids.txt
    assert splits.train.stored[0].shape == (6, 3, 64, 64)
    assert splits.train.stored[0].dtype == torch.uint8
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [1, 0]
    grey = splits.train[1][0]
    assert torch.equal(grey[0], grey[2])
    with Image.open(root / "tiny-imagenet-200" / "val" / "images" / "val_1.JPEG") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(splits.test.stored[0][1], expected)


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="tiny-imagenet-200"):
        load("tiny-imagenet", tmp_path / "empty")
    annotations = root / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn99\n")
    with pytest.raises(InputError, match="must name images of the classes"):
        load("tiny-imagenet", root)
    annotations.unlink()
    with pytest.raises(InputError, match="val_annotations"):
        load("tiny-imagenet", root)
