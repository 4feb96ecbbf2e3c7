"""Near copies of an image are found, whatever its size, and images that only look alike are not."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from torch.utils.data import TensorDataset

from amun_ext import InputError, data
from amun_ext.data import find_near_copies
from amun_ext.deletion import Record
from amun_ext.deletion.request import sets


def photo(size: int = 96) -> Image.Image:
    """Smooth shapes under a little noise, as photos have them."""
    random = np.random.default_rng(3)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size))
    noise = random.integers(-9, 10, (size, size, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def compressed(image: Image.Image) -> Image.Image:
    image.save(file := io.BytesIO(), "JPEG", quality=75)
    return Image.open(file)


ALTERED = {
    "compressed": compressed,
    "half the size": lambda image: image.resize((48, 48)),
    "cropped": lambda image: image.crop((1, 1, 95, 95)),
    "darker": lambda image: image.point(lambda value: value // 2),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


def stacked(*images: Image.Image) -> TensorDataset:
    pixels = [np.asarray(each.resize((96, 96))).transpose(2, 0, 1) for each in images]
    tensor = torch.from_numpy(np.stack(pixels))
    return data.ImageDataset(tensor, torch.zeros(len(tensor), dtype=torch.int64))


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_copy_is_found(name: str) -> None:
    other = photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ((row, copy, distance),) = find_near_copies(stacked(photo(), other, ALTERED[name](photo())), torch.tensor([0]))
    assert (row, copy) == (0, 2)
    assert 0 <= distance < 0.05


def test_the_distance_is_that_of_the_cosine_transform() -> None:
    base = torch.from_numpy(np.array(photo())).permute(2, 0, 1) / 255
    images = torch.stack([base, (base + 0.3 * base.flip(1)) / 1.3])
    one, other = (
        dctn(np.tensordot([0.299, 0.587, 0.114], image, 1), norm="ortho")[:12, :12].ravel()[1:]
        for image in images.double()
    )
    ((_, _, distance),) = find_near_copies(TensorDataset(images, torch.zeros(2)), torch.tensor([0]), 1.0)
    assert distance == pytest.approx(1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-5)


def test_what_has_no_near_copies() -> None:
    plain, vectors = torch.full((3, 1, 16, 16), 0.5), torch.rand(1, 8).repeat(3, 1)
    for inputs in (plain, vectors):
        assert find_near_copies(TensorDataset(inputs, torch.zeros(3)), torch.tensor([0]), 1.0) == []
    with pytest.raises(InputError, match="duplicate distance must be a number"):
        find_near_copies(TensorDataset(plain, torch.zeros(3)), torch.tensor([0]), 1.5)


def test_a_request_names_them_includes_them_or_is_told_to_ignore_them() -> None:
    train = stacked(
        photo(), photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT), compressed(photo()), photo().rotate(90)
    )
    splits = data.Splits(train, train, ("a",), names=("a/1.png", "a/2.png", "a/3.jpg", "a/4.png"))
    ids = torch.tensor([0])
    with pytest.raises(InputError, match=r"got a/1\.png has a copy a/3\.jpg, at a distance of") as refused:
        sets(splits, ids, Record())
    assert "--include-duplicates" in str(refused.value)
    assert sets(splits, ids, Record(), include_duplicates=True).ids.tolist() == [0, 2]
    assert sets(splits, ids, Record(), duplicate_distance=0).ids.tolist() == [0]
    assert sets(splits, torch.tensor([0]), Record(forgotten=(2,))).ids.tolist() == [0]
