"""Labelled images: checked once, hashed once, 8-bit images kept as uint8, large sets not kept in memory."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from amun_ext.data.lazy import Images, LazyImages
from amun_ext.digest import digest
from amun_ext.tensor_checks import check_images, check_labels
from amun_ext.validation import check_bounds

BITS8 = 255.0
HASH_BYTES = 16
FLOAT_BYTES = 2**22  # of images that are converted to float32 at once
Data = TypeVar("Data", bound=TensorDataset)


class ImageDataset(TensorDataset):
    """Images [N, ...] within `bounds`, floating point or uint8, and integer labels [N]. InputError for others.

    uint8 stays uint8 in memory; items, slices and `tensors` are float32, divided by 255. Images are hashed once, also
    for a `subset`, so they must not be changed in place. `LazyImages` have been checked by whoever made them.

    Examples:
        >>> import torch
        >>> from amun_ext.data import ImageDataset
        >>> data = ImageDataset(torch.tensor([[[[0, 51]]], [[[255, 102]]]], dtype=torch.uint8), torch.tensor([1, 0]))
        >>> data[0][0].tolist(), data[:][1].tolist()
        ([[[0.0, 0.20000000298023224]]], [1, 0])
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        name: str = "dataset",
        bounds: tuple[float, float] | None = (0.0, 1.0),
        hashes: NDArray[np.void] | None = None,
    ) -> None:
        # without super().__init__, which would set `tensors`
        self.bounds = check_bounds(bounds)
        some = images[:1] if isinstance(images, LazyImages) else images
        eight_bit = isinstance(some, Tensor) and some.dtype == torch.uint8
        check_images(f"{name} images", as_float(some[:1]) if eight_bit else some, self.bounds)
        check_labels(f"{name} labels", labels, len(images))
        self.stored: tuple[Images, Tensor] = images, labels.long()
        self._hashes = hashes

    def __getitem__(self, rows: Any) -> tuple[Tensor, ...]:
        images, labels = self.stored
        return as_float(images[rows]), labels[rows]

    def __len__(self) -> int:
        return len(self.stored[0])

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """All images and labels in memory; 8-bit images take four times the memory of `stored`."""
        return as_float(self.stored[0][:]), self.stored[1]

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


def stored(dataset: TensorDataset) -> tuple[Any, ...]:
    """Its images, which may be uint8 or lazy, and its labels."""
    return dataset.stored if isinstance(dataset, ImageDataset) else dataset.tensors


def is_lazy(dataset: TensorDataset) -> bool:
    """Whether its images are read when they are used."""
    return isinstance(stored(dataset)[0], LazyImages)


def subset(dataset: Data, rows: Tensor | slice) -> Data:
    """The rows (numbers, or a bool for each) of a dataset, with their hashes if they were computed."""
    if not isinstance(dataset, ImageDataset):
        return cast(Data, TensorDataset(*(tensor[rows] for tensor in dataset.tensors)))
    images, labels = dataset.stored
    result = _with(dataset, images.select(rows) if isinstance(images, LazyImages) else images[rows], labels[rows])
    if dataset._hashes is not None:
        result._hashes = dataset._hashes[rows if isinstance(rows, slice) else rows.cpu().numpy()]
    return result


def concat(datasets: Sequence[TensorDataset]) -> TensorDataset:
    """The datasets concatenated; uint8 or lazy if all of them are."""
    if len(datasets) == 1:
        return datasets[0]
    images = [data for data in datasets if isinstance(data, ImageDataset)]
    alike = len(images) == len(datasets) and len({(data.stored[0].dtype, is_lazy(data)) for data in images}) == 1
    pairs = zip(*(stored(data) if alike else data.tensors for data in datasets), strict=True)
    if not alike:
        return TensorDataset(*map(torch.cat, pairs))
    every, labels = pairs
    result = _with(images[0], _joined(every) if is_lazy(images[0]) else torch.cat(every), torch.cat(labels))
    if all(data._hashes is not None for data in images):
        result._hashes = np.concatenate([data.hashes for data in images])
    return result


def moved(dataset: Data, device: torch.device, dtype: torch.dtype) -> Data:
    """The dataset on a device, with labels int64 and images of a floating-point type; uint8 stays uint8."""
    images, labels = stored(dataset)
    labels = labels.to(device, torch.int64)
    if not isinstance(dataset, ImageDataset):
        return cast(Data, TensorDataset(images.to(device, dtype), labels))
    result = _with(dataset, images.to(device, None if images.dtype == torch.uint8 else dtype), labels)
    if result.stored[0].dtype == images.dtype:
        result._hashes = dataset._hashes
    return result


def hashes_of(dataset: TensorDataset) -> NDArray[np.void]:
    """The `row_hashes` of its images."""
    return dataset.hashes if isinstance(dataset, ImageDataset) else row_hashes(dataset.tensors[0])


def row_hashes(images: Images) -> NDArray[np.void]:
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


def float_parts(images: Images) -> Iterator[Tensor]:
    """The images as float32 on the CPU, some at a time, so that uint8 images do not take four times their memory."""
    size = max(1, FLOAT_BYTES // images[:1].nbytes)
    for start in range(0, len(images), size):
        yield as_float(images[start : start + size].detach().cpu()).float()


def fingerprint(dataset: TensorDataset) -> str:
    """A hash of all images and labels in their order."""
    images, labels = stored(dataset)
    rows = torch.from_numpy(hashes_of(dataset).view(np.uint8).copy())
    return digest({"images": rows, "labels": labels.long()}, str(tuple(images.shape[1:])))


def _joined(images: Sequence[LazyImages]) -> LazyImages:
    """Of images that are read alike."""
    first, sources = images[0], [each.dataset for each in images]
    if any(source is not first.dataset for source in sources):
        ends = np.cumsum([0, *(len(source) for source in sources)]).tolist()  # type: ignore[arg-type]
        rows = [torch.where(each.rows < 0, -1, each.rows + end) for each, end in zip(images, ends, strict=False)]
        source: Dataset[Any] = ConcatDataset(sources)
    else:
        rows, source = [each.rows for each in images], first.dataset
    return LazyImages(source, first.image_shape, first.dtype, torch.cat(rows)).to(first.device)


def _with(dataset: Data, images: Images, labels: Tensor) -> Data:
    """A dataset like this one, without a check."""
    result = copy.copy(dataset)
    result.stored, result._hashes = (images, labels), None  # type: ignore[attr-defined]
    return result
