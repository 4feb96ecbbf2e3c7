"""Splits, the result of every loader, from NumPy arrays or from the user's own Dataset."""

import math
import operator
import reprlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from amun_ext.data.images import ImageDataset, as_float, moved, row_hashes, stored, subset
from amun_ext.data.lazy import LazyImages, fits_memory
from amun_ext.tensor_checks import check_images, check_labels
from amun_ext.validation import InputError, check_bounds, listed, printable, require

READ_AT_ONCE = 32  # images


@dataclass(frozen=True)
class Splits:
    """Images [N, C, H, W] in [0, 1] with labels int64 [N] below len(classes), for training and for testing.

    A dataset is checked here, once, and becomes an `ImageDataset`, see `read_dataset`. Inputs other than images,
    [N, ...], may have other `bounds`, or None for none.

    The last three are set by `amun_ext.data.aligned`, for data in the rows of a checkpoint.
    """

    train: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]
    names: tuple[str, ...] | None = None  # of the training samples, such as their files
    bounds: tuple[float, float] | None = (0.0, 1.0)
    absent: tuple[int, ...] = ()  # rows of training samples that were erased
    outside: tuple[str, ...] = ()  # names of new samples, which have no row
    known_as: str | None = None  # the fingerprint of the training set with all samples

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            given = getattr(self, part)
            ours = isinstance(given, ImageDataset)
            dataset = given if ours else read_dataset(given, part, self.bounds)
            check_labels(f"{part} labels", dataset.labels, len(dataset), len(self.classes) or None)
            object.__setattr__(self, part, dataset)


def image_dataset(images: NDArray[Any], labels: NDArray[Any], name: str = "dataset") -> ImageDataset:
    """uint8 images unchanged, others as float32; [N, H, W] becomes [N, 1, H, W]."""
    pixels = images if images.dtype == np.uint8 else images.astype(np.float32)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # torch warns of a read-only array
    return ImageDataset(torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels.astype(np.int64)), name)


def as_tensors(dataset: Dataset[Any], name: str, rows: range | None = None) -> tuple[Tensor, Tensor]:
    """The images [N, ...] and labels int64 [N] of any map-style dataset of (tensor, int) pairs, or of some of its rows.

    A TensorDataset gives its own tensors. The items of any other are read once, so a random transform is applied once.
    InputError for an empty dataset, and for an item whose shape or type is not that of the first one.
    """
    check_map_style(dataset, name)
    if isinstance(dataset, TensorDataset):
        count = len(stored(dataset))
        require(count == 2, name, "a dataset of (images, labels)", f"{count} tensors")
        images, labels = (dataset if rows is None else subset(dataset, slice(rows.start, rows.stop))).tensors
        require(len(images) > 0, name, "non-empty", "no items")
        check_labels(f"{name} labels", labels, len(images))
        return images, labels.long()

    rows = range(len(dataset)) if rows is None else rows  # type: ignore[arg-type]
    items = [_item(dataset[index], f"{name}[{index}]") for index in rows]
    require(len(items) > 0, name, "non-empty", "no items")
    first = items[0][0]
    for index, (image, _) in zip(rows, items, strict=True):
        check_alike(image[None], first[None], f"{name}[{index}]", f"{name}[{rows.start}]")
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items], device="cpu")


def check_map_style(dataset: object, name: str) -> None:
    map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    require(map_style, name, "a map-style dataset (__len__ and __getitem__)", type(dataset).__name__)


def check_alike(images: Tensor, first: Tensor, name: str, first_name: str) -> None:
    """InputError for images [N, ...] of another shape or type than the first one, [M, ...]."""
    expected, actual = (f"{tuple(each.shape[1:])} {each.dtype}" for each in (first, images))
    require(expected == actual, name, f"an image like {first_name}, {expected}", actual)


def read_dataset(dataset: Dataset[Any], name: str, bounds: tuple[float, float] | None = (0.0, 1.0)) -> ImageDataset:
    """A dataset as `as_tensors` reads it, in memory if its images have at most 256 MiB.

    The images of a larger one are read again whenever they are used, so its items must be the same every time.
    """
    if isinstance(dataset, TensorDataset):
        return ImageDataset(*as_tensors(dataset, name), name, bounds)
    check_map_style(dataset, name)
    total = len(dataset)  # type: ignore[arg-type]
    require(total > 0, name, "non-empty", "no items")
    kept: list[Any] = []  # images, or hashes of lazy ones
    labels: list[Tensor] = []
    first = torch.empty(0)
    for start in range(0, total, READ_AT_ONCE):
        images, some = as_tensors(dataset, name, range(start, min(start + READ_AT_ONCE, total)))
        first = first if start else images[:1]
        check_alike(images, first, f"{name}[{start}]", f"{name}[0]")
        lazy = not fits_memory(total, first.nbytes)
        if lazy:
            check_images(name, as_float(images), check_bounds(bounds))
        kept.append(row_hashes(images) if lazy else images)
        labels.append(some)
    if not lazy:
        return ImageDataset(torch.cat(kept), torch.cat(labels), name, bounds)
    same = torch.equal(as_tensors(dataset, name, range(1))[0], first)
    require(same, f"{name}[0]", "the same whenever it is read, in a set too large for memory", "another image")
    source = LazyImages(dataset, first.shape[1:], first.dtype, torch.arange(total, device="cpu")).to(first.device)
    return ImageDataset(source, torch.cat(labels), name, bounds, np.concatenate(kept))


def checked_dataset(
    dataset: Dataset[Any], name: str, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> TensorDataset:
    """`as_tensors`, as a dataset. InputError for images outside `bounds`; an ImageDataset has been checked."""
    if isinstance(dataset, ImageDataset) and bounds[0] <= dataset.bounds[0] and dataset.bounds[1] <= bounds[1]:
        return dataset
    if not isinstance(dataset, TensorDataset):
        return read_dataset(dataset, name, bounds)
    images, labels = as_tensors(dataset, name)
    check_images(name, images, bounds)
    check_labels(f"{name} labels", labels, len(images))
    return TensorDataset(images, labels.to(images.device))


def _item(item: Any, name: str) -> tuple[Tensor, int]:
    try:
        image, label = item
        if isinstance(image, Tensor):
            return image, operator.index(label)  # an int, a NumPy integer or an integer tensor of one element
    except (TypeError, ValueError):
        pass
    parts = ", ".join(type(part).__name__ for part in item) if isinstance(item, tuple) else type(item).__name__
    raise InputError(f"{name} must be a pair (tensor image, int label), got ({parts})")


def checked(splits: Splits, name: str) -> Splits:
    """`splits` on the CPU in float32. InputError if images, labels and classes do not fit together."""
    named = isinstance(splits.classes, tuple | list) and all(isinstance(each, str) for each in splits.classes)
    require(named, f"{name} classes", "names", splits.classes)
    odd = [printable(each) for each in splits.classes if printable(each) != each]
    require(not odd, f"{name} classes", "names that can be printed", listed(odd))
    for part, dataset in (("train", splits.train), ("test", splits.test)):
        shape = tuple(dataset.stored[0].shape)
        require(len(shape) == 4, f"{name} {part} images", "[N, C, H, W]", f"shape {shape}")
        require(dataset.bounds == (0, 1), f"{name} {part} images", "in [0, 1]", f"bounds {dataset.bounds}")
    shapes = [tuple(data.stored[0].shape[1:]) for data in (splits.train, splits.test)]
    require(shapes[0] == shapes[1], f"{name} test images", f"of the training images' shape {shapes[0]}", shapes[1])
    names = splits.names
    text = names is None or all(isinstance(each, str) for each in names)
    named = names is None or (text and len(names) == len(set(names)) == len(splits.train))
    named = named and not any(not each or "\0" in each for each in names or ())
    require(named, f"{name} names", "one text for every training sample, all different", reprlib.repr(names))
    float32 = torch.device("cpu"), torch.float32
    train, test = (moved(data, *float32) for data in (splits.train, splits.test))
    return replace(splits, train=train, test=test, classes=tuple(splits.classes))
