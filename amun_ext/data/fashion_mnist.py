"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 28x28 grey images of ten kinds of clothing, 60,000 + 10,000."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amun_ext.data.custom import load_npz
from amun_ext.data.splits import Splits, image_dataset
from amun_ext.data.vision import import_torchvision
from amun_ext.validation import InputError, require

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts the files
MINI = Path(__file__).parent / "embedded" / "fashion_mnist_mini.npz"
LARGEST = 2**26  # bytes; the largest of the four files has 47,040,016
PREFIXES = {"train": "train", "test": "t10k"}


def load(root: Path, download: bool = False) -> Splits:
    """All of Fashion-MNIST, from the first place that `find_folder` finds."""
    folder = find_folder(root, download)
    train, test = (image_dataset(*read_part(folder, part)) for part in PREFIXES)
    return Splits(train, test, CLASSES)


def load_mini(root: Path, download: bool = False) -> Splits:
    """The 2,000 + 3,000 images in the package, equally many of each class; `root` is not used."""
    return load_npz(MINI, CLASSES)


def find_folder(root: Path, download: bool = False) -> Path:
    """The first folder with all four files, plain or .gz: torchvision's layout below `root`, `root`, Debian's package.

    InputError names these folders and how to get the files; with `download` torchvision gets them into `root`.
    """
    torchvisions = root / "FashionMNIST" / "raw"
    folders = (torchvisions, root, DEBIAN)
    for folder in folders:
        if all(_file(folder, part, kind).is_file() for part in PREFIXES for kind in ("images-idx3", "labels-idx1")):
            return folder
    if download:
        import_torchvision().datasets.FashionMNIST(root, download=True)
        return torchvisions
    raise InputError(
        f"Fashion-MNIST is not in {', '.join(map(str, folders))}: let torchvision download it (download=True), "
        "or apt-get install dataset-fashion-mnist, or name the folder that holds its four files"
    )


def read_part(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images uint8 [N, 28, 28] and labels uint8 [N] of "train" or "test"."""
    images = read_idx(_file(folder, part, "images-idx3"), 3)
    labels = read_idx(_file(folder, part, "labels-idx1"), 1)
    require(len(images) == len(labels), str(folder), "one label per image", f"{len(images)} and {len(labels)} ({part})")
    return images, labels


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """A uint8 array in MNIST's format: 0, 0, type 8, dimension count; each size in 4 bytes, big-endian; values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} must be a readable file of Fashion-MNIST: {error}") from error
    start, magic, header = content[:4], bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    require(start == magic, str(path), f"an IDX file that begins with {magic.hex()}", start.hex() or "nothing")
    shape = tuple(np.frombuffer(content[4:header].ljust(header - 4, b"\0"), dtype=">u4").tolist())
    expected, actual = header + math.prod(shape), len(content)
    require(actual == expected, str(path), f"{expected} bytes for shape {shape}", f"{actual} (truncated or damaged)")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _file(folder: Path, part: str, kind: str) -> Path:
    plain = folder / f"{PREFIXES[part]}-{kind}-ubyte"
    return plain if plain.is_file() else plain.with_name(plain.name + ".gz")
