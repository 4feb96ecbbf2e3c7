"""Near copies: how many altered copies are found, and how many pairs of different images are taken for copies.

A tenth of Fashion-MNIST (the Debian package dataset-fashion-mnist) against all 60,000 images, all pairs of the embedded
images, and patches of 128x128 of the two photos that scikit-learn has, half of a patch apart to be altered, and without
overlap to count pairs.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from common import timed, write
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import TensorDataset

from amun_ext import data
from amun_ext.data.duplicates import find_near_copies

PATCH, ALTERED = 128, 300
Alter = Callable[[Image.Image], Image.Image]


def compressed(quality: int) -> Alter:
    def alter(image: Image.Image) -> Image.Image:
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(file)

    return alter


def resized(share: float) -> Alter:
    return lambda image: image.resize([round(share * side) for side in image.size], Image.Resampling.LANCZOS)


def cropped(share: float) -> Alter:
    def alter(image: Image.Image) -> Image.Image:
        edge = max(1, round(share * image.width))
        return image.crop((edge, edge, image.width - edge, image.height - edge))

    return alter


ALTERATIONS = {
    "JPEG, quality 75": compressed(75),
    "JPEG, quality 30": compressed(30),
    "half the size": resized(0.5),
    "cropped by 1 % (at least a pixel) on each side": cropped(0.01),
    "cropped by 3 % (at least a pixel) on each side": cropped(0.03),
}


def patches(step: int) -> NDArray[np.uint8]:
    """[N, PATCH, PATCH, 3] of both photos."""
    photos = load_sample_images().images
    corners = [
        (photo, row, column)
        for photo in photos
        for row in range(0, photo.shape[0] - PATCH + 1, step)
        for column in range(0, photo.shape[1] - PATCH + 1, step)
    ]
    return np.stack([photo[row : row + PATCH, column : column + PATCH] for photo, row, column in corners])


def found(images: NDArray[np.uint8]) -> dict[str, float]:
    """The percent of images that are found again after each alteration, which are back at their size, as in a folder
    that is resized."""
    side = images.shape[1]
    shares = {}
    for name, alter in ALTERATIONS.items():
        altered = [np.asarray(alter(Image.fromarray(each)).resize((side, side))) for each in images]
        both = dataset(np.concatenate([images, np.stack(altered)]))
        pairs = find_near_copies(both, torch.arange(len(images)))
        shares[name] = 100 * sum(other == row + len(images) for row, other, _ in pairs) / len(images)
    return shares


def dataset(images: NDArray[np.uint8]) -> data.ImageDataset:
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    channels_first = tensor[:, None] if tensor.dim() == 3 else tensor.permute(0, 3, 1, 2)
    return data.ImageDataset(channels_first, torch.zeros(len(images), dtype=torch.int64))


def count(images: TensorDataset, rows: Tensor) -> dict[str, float]:
    """Near copies of the rows among all images, which are different ones."""
    pairs, seconds = timed(lambda: find_near_copies(images, rows))
    return {"rows": len(rows), "images": len(images), "pairs": len(pairs), "cpu": seconds["cpu"]}


def main() -> None:
    torch.set_num_threads(1)
    embedded, whole = data.load("fashion-mnist-mini").train, data.load("fashion-mnist").train
    apart = dataset(patches(PATCH))
    drawn = torch.from_numpy(np.random.RandomState(0).choice(len(whole), len(whole) // 10, replace=False))
    write(
        "copies",
        {
            "found": {
                "Fashion-MNIST, 28x28": found(embedded.stored[0][:ALTERED, 0].numpy()),
                "photos, 128x128": found(patches(PATCH // 2)),
            },
            "pairs": {
                "Fashion-MNIST, a tenth against all": count(whole, drawn),
                "embedded images, all against all": count(embedded, torch.arange(len(embedded))),
                "photos, all against all": count(apart, torch.arange(len(apart))),
            },
        },
    )


if __name__ == "__main__":
    main()
