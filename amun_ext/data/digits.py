"""Handwritten digits, 8x8 in 17 greys (Alpaydin and Kaynak, 1998), from scikit-learn, without a download."""

from pathlib import Path

import numpy as np

from amun_ext.data.splits import Splits, image_dataset


def load(root: Path, download: bool = False) -> Splits:
    """1,197 training and 600 test images [1, 8, 8], a fixed split, every class in the same proportion."""
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import
    from sklearn.model_selection import train_test_split

    data = load_digits()
    rows = np.arange(len(data.target))
    parts = train_test_split(rows, test_size=600, random_state=0, stratify=data.target)
    train, test = (image_dataset(data.images[part] / 16, data.target[part]) for part in map(np.sort, parts))
    return Splits(train, test, tuple(map(str, data.target_names)))
