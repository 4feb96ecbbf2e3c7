"""Tiny ImageNet (Stanford CS231n): 64x64 colour images of 200 classes, 100,000 + 10,000 of its validation set."""

from pathlib import Path

import numpy as np
import torch

from amun_ext.data.custom import read_image
from amun_ext.data.images import ImageDataset
from amun_ext.data.splits import Splits
from amun_ext.reading import read_text
from amun_ext.validation import InputError, require

FOLDER = "tiny-imagenet-200"
WHERE = f"the unpacked archive {FOLDER}.zip of cs231n.stanford.edu"


def load(root: Path, download: bool = False) -> Splits:
    """From `root`/tiny-imagenet-200 or `root` itself; the test images of the archive have no labels, so they are left.

    InputError where it is absent or not complete; it is not downloaded.
    """
    folder = root / FOLDER if (root / FOLDER).is_dir() else root
    require((folder / "wnids.txt").is_file(), str(root), f"a folder with {WHERE}", "none")
    ids = read_text("data", folder / "wnids.txt", "a list of classes").split()
    numbers = {name: number for number, name in enumerate(ids)}
    train = [
        (path, numbers[name]) for name in ids for path in sorted((folder / "train" / name / "images").glob("*.JPEG"))
    ]
    lines = read_text("data", folder / "val" / "val_annotations.txt", "a list of images").splitlines()
    rows = [line.split("\t") for line in lines if line]
    try:
        test = [(folder / "val" / "images" / row[0], numbers[row[1]]) for row in rows]
    except (KeyError, IndexError) as error:
        raise InputError(f"{folder}/val/val_annotations.txt must name images of the classes, got {error}") from error

    def part(files: list[tuple[Path, int]], name: str) -> ImageDataset:
        require(bool(files), str(folder), f"with images of the {name} set", "none")
        pixels = [read_image(path) for path, _ in files]
        colour = np.stack([np.repeat(each[..., None], 3, axis=2) if each.ndim == 2 else each for each in pixels])
        images = torch.from_numpy(colour).permute(0, 3, 1, 2).contiguous()
        return ImageDataset(images, torch.tensor([label for _, label in files], device="cpu"), name)

    words = dict(line.split("\t", 1) for line in read_text("data", folder / "words.txt", "names").splitlines() if line)
    classes = tuple(f"{words.get(name, name).split(',')[0]} ({name})" for name in ids)
    return Splits(part(train, "train"), part(test, "test"), classes)
