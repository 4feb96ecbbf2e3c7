"""CIFAR-10 (Krizhevsky, 2009) through torchvision: 32x32 colour images of ten classes, 50,000 + 10,000."""

from pathlib import Path

import numpy as np

from amun_ext.data.splits import Splits, image_dataset
from amun_ext.data.vision import import_torchvision
from amun_ext.validation import InputError


def load(root: Path, download: bool = False) -> Splits:
    """CIFAR-10 from `root`/cifar-10-batches-py, which `download` fills. InputError where it is absent or damaged."""
    torchvision = import_torchvision()
    try:
        train, test = (torchvision.datasets.CIFAR10(root, train=part, download=download) for part in (True, False))
    except RuntimeError as error:
        if download:
            raise  # a network error or one of torchvision
        raise InputError(f"CIFAR-10 must be in {root}/cifar-10-batches-py (download=True gets it): {error}") from error
    tensors = [image_dataset(part.data.transpose(0, 3, 1, 2), np.array(part.targets)) for part in (train, test)]
    return Splits(tensors[0], tensors[1], tuple(train.classes))
