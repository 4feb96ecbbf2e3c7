"""Labelled images in memory: checked once, hashed once, 8-bit images kept as uint8."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from amun_ext.digest import digest
from amun_ext.validation import check_bounds, check_images, check_labels

BITS8 = 255.0
HASH_BYTES = 16
FLOAT_BYTES = 2**22  # of images that are converted to float32 at once
Data = TypeVar("Data", bound=TensorDataset)


class ImageDataset(TensorDataset):
    """Images [N, ...] within `bounds`, floating point or uint8, and integer labels [N]. InputError for others.

    uint8 stays uint8 in memory; items, slices and `tensors` are float32, divided by 255. Images are hashed once, also
    for a `subset`, so they must not be changed in place.

    Examples:
        >>> import torch
        >>> from amun_ext.data import ImageDataset
        >>> data = ImageDataset(torch.tensor([[[[0, 51]]], [[[255, 102]]]], dtype=torch.uint8), torch.tensor([1, 0]))
        >>> data[0][0].tolist(), data[:][1].tolist()
        ([[[0.0, 0.20000000298023224]]], [1, 0])
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        name: str = "dataset",
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        # without super().__init__, which would set `tensors`
        eight_bit = isinstance(images, Tensor) and images.dtype == torch.uint8
        self.bounds = check_bounds(bounds)
        check_images(f"{name} images", images[:1].float() / BITS8 if eight_bit else images, self.bounds)
        check_labels(f"{name} labels", labels, len(images))
        self.stored = images, labels.long()
        self._hashes: NDArray[np.void] | None = None

    def __getitem__(self, rows: Any) -> tuple[Tensor, ...]:
        images, labels = self.stored
        return as_float(images[rows]), labels[rows]

    def __len__(self) -> int:
        return len(self.stored[0])

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """All images and labels; 8-bit images take four times the memory of `stored`."""
        return as_float(self.stored[0]), self.stored[1]

    @property
    def labels(self) -> Tensor:
        return self.stored[1]

    @property
    def hashes(self) -> NDArray[np.void]:
        """The `row_hashes` [N] of the images."""
        if self._hashes is None:
            self._hashes = row_hashes(self.stored[0])
        return self._hashes


def as_float(images: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1], equal on every device; others unchanged."""
    if images.dtype != torch.uint8:
        return images
    # by a tensor, because CUDA multiplies by the reciprocal of a number, which rounds differently
    return images.float().div_(torch.full((1,), BITS8, device=images.device))


def stored(dataset: TensorDataset) -> tuple[Tensor, ...]:
    """The tensors in memory, which may be uint8."""
    return dataset.stored if isinstance(dataset, ImageDataset) else dataset.tensors


def subset(dataset: Data, rows: Tensor | slice) -> Data:
    """The rows (numbers, or a bool for each) of a dataset, with their hashes if they were computed."""
    if not isinstance(dataset, ImageDataset):
        return cast(Data, TensorDataset(*(tensor[rows] for tensor in dataset.tensors)))
    images, labels = dataset.stored
    result = _with(dataset, images[rows], labels[rows])
    if dataset._hashes is not None:
        result._hashes = dataset._hashes[rows if isinstance(rows, slice) else rows.cpu().numpy()]
    return result


def concat(datasets: Sequence[TensorDataset]) -> TensorDataset:
    """The datasets concatenated; uint8 if all of them are."""
    if len(datasets) == 1:
        return datasets[0]
    images = [data for data in datasets if isinstance(data, ImageDataset)]
    alike = len(images) == len(datasets) and len({data.stored[0].dtype for data in images}) == 1
    pairs = zip(*(stored(data) if alike else data.tensors for data in datasets), strict=True)
    joined = [torch.cat(tensors) for tensors in pairs]
    if not alike:
        return TensorDataset(*joined)
    result = _with(images[0], *joined)
    if all(data._hashes is not None for data in images):
        result._hashes = np.concatenate([data.hashes for data in images])
    return result


def moved(dataset: Data, device: torch.device, dtype: torch.dtype) -> Data:
    """The dataset on a device, with labels int64 and images of a floating-point type; uint8 stays uint8."""
    images, labels = stored(dataset)
    labels = labels.to(device, torch.int64)
    if not isinstance(dataset, ImageDataset):
        return cast(Data, TensorDataset(images.to(device, dtype), labels))
    return _with(dataset, images.to(device, None if images.dtype == torch.uint8 else dtype), labels)


def hashes_of(dataset: TensorDataset) -> NDArray[np.void]:
    """The `row_hashes` of its images."""
    return dataset.hashes if isinstance(dataset, ImageDataset) else row_hashes(dataset.tensors[0])


def row_hashes(images: Tensor) -> NDArray[np.void]:
    """A hash of each image [N, ...], equal for equal values of any type, and for grey in one channel or three."""
    if len(images) == 0:
        return np.empty(0, f"V{HASH_BYTES}")
    found = []
    for part in float_parts(images):
        pixels = (part + 0.0).contiguous()  # -0.0 becomes 0.0
        lengths = [pixels[0].numel()] * len(pixels)
        if pixels.dim() == 4 and pixels.shape[1] == 3:
            grey = (pixels == pixels[:, :1]).flatten(1).all(1).tolist()
            lengths = [length // 3 if same else length for length, same in zip(lengths, grey, strict=True)]
        rows = pixels.reshape(len(pixels), -1).numpy()
        found += [
            hashlib.blake2b(row[:length], digest_size=HASH_BYTES).digest()
            for row, length in zip(rows, lengths, strict=True)
        ]
    return np.frombuffer(b"".join(found), f"V{HASH_BYTES}")


def float_parts(images: Tensor) -> Iterator[Tensor]:
    """The images as float32 on the CPU, some at a time, so that uint8 images do not take four times their memory."""
    for part in images.detach().split(max(1, FLOAT_BYTES // images[:1].nbytes)):
        yield as_float(part.cpu()).float()


def fingerprint(dataset: TensorDataset) -> str:
    """A hash of all images and labels in their order."""
    images, labels = stored(dataset)
    rows = torch.from_numpy(hashes_of(dataset).view(np.uint8).copy())
    return digest({"images": rows, "labels": labels.long()}, str(tuple(images.shape[1:])))


def _with(dataset: Data, images: Tensor, labels: Tensor) -> Data:
    """A dataset like this one, without a check."""
    result = copy.copy(dataset)
    result.stored, result._hashes = (images, labels), None  # type: ignore[attr-defined]
    return result
