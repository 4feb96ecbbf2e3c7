"""Images that are read from their dataset whenever they are used, for sets larger than memory."""

import copy
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from amun_ext.validation import require

IN_MEMORY_BYTES = 2**28  # of a set that is kept in memory; the images of a larger one are read when they are used


def fits_memory(count: int, image_bytes: int) -> bool:
    """Whether so many images of so many bytes are kept in memory."""
    return count * image_bytes <= IN_MEMORY_BYTES


class LazyImages:
    """Images [N, ...] of a map-style dataset of (image, label), indexed like a tensor; row -1 is an image of zeros.

    `shape` is that of an image [C, ...]: grey images are expanded to more channels, and colours are cut to one. Items
    are read by `__getitems__`, if the dataset has it, as DataLoader does.
    """

    def __init__(self, dataset: Dataset[Any], shape: torch.Size, dtype: torch.dtype, rows: Tensor) -> None:
        self.dataset, self.dtype, self.device = dataset, dtype, torch.device("cpu")
        self.image_shape, self.rows = shape, rows

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.image_shape))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Tensor:
        chosen = self.rows[rows.cpu() if isinstance(rows, Tensor) else rows]
        images = torch.zeros(chosen.numel(), *self.image_shape, dtype=self.dtype, device="cpu")
        places = (chosen.flatten() >= 0).nonzero()[:, 0].tolist()
        wanted = chosen.flatten()[places].tolist()
        read = getattr(self.dataset, "__getitems__", lambda some: [self.dataset[row] for row in some])
        for place, row, (image, _) in zip(places, wanted, read(wanted), strict=True):
            fits = image.shape[1:] == self.image_shape[1:]
            require(fits, f"image {row}", f"of shape {tuple(self.image_shape)}, as at first", tuple(image.shape))
            images[place] = image[: len(images[place])]
        return images.view(*chosen.shape, *self.image_shape).to(self.device)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """To be read to this device."""
        result = copy.copy(self)
        result.device, result.dtype = device, dtype or self.dtype
        return result

    def select(self, rows: Tensor | slice, channels: int | None = None) -> Self:
        """Some of the images, of so many channels; of rows [M] -1 stands for an image of zeros."""
        result = copy.copy(self)
        if isinstance(rows, Tensor) and rows.dtype != torch.bool:
            rows = rows.cpu()
            result.rows = torch.where(rows < 0, -1, self.rows[rows.clamp(min=0)])
        else:
            result.rows = self.rows[rows.cpu() if isinstance(rows, Tensor) else rows]
        result.image_shape = torch.Size((channels or self.image_shape[0], *self.image_shape[1:]))
        return result


Images: TypeAlias = Tensor | LazyImages
