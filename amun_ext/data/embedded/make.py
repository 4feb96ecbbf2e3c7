"""Make fashion_mnist_mini.npz: `python -m amun_ext.data.embedded.make [folder with Fashion-MNIST]`.

From each original file the same number of images of each class, drawn by a fixed seed, in the order of the file.
`train_rows` and `test_rows` (int32) are their rows in the original files.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amun_ext.data.fashion_mnist import CLASSES, MINI, find_folder, read_part
from amun_ext.files import atomic_path

PER_CLASS = {"train": 200, "test": 300}


def make(root: Path, path: Path = MINI) -> None:
    """Write the selection from the Fashion-MNIST that `find_folder(root)` finds to `path`."""
    random = np.random.RandomState(0)
    arrays: dict[str, NDArray[Any]] = {}
    for part, count in PER_CLASS.items():
        images, labels = read_part(find_folder(root), part)
        drawn = [random.choice(np.flatnonzero(labels == k), count, replace=False) for k in range(len(CLASSES))]
        rows = np.sort(np.concatenate(drawn)).astype(np.int32)
        arrays |= {f"{part}_images": images[rows], f"{part}_labels": labels[rows], f"{part}_rows": rows}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


if __name__ == "__main__":
    make(Path(*sys.argv[1:]))
