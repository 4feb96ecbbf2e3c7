"""What to train on: parts of the data, shuffled together into passes, and how their batches are made."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

from amun_ext.checks import check_labels, require


@dataclass(frozen=True)
class Part:
    """Some of the data to train on, and whether the recipe's augmentation applies.

    `data` is a map-style dataset of (input, label). A TensorDataset lives on the device; any other is read through a
    DataLoader, every item anew in every epoch. `labels`, from the number of the epoch (from 0 on) to a tensor [N], take
    the place of the data's own; they are asked for when the pass begins.
    """

    data: Dataset[Any]
    labels: Callable[[int], Tensor] | None = None
    augment: bool = True


@dataclass(frozen=True)
class Pass:
    """The shuffled union of `parts`, every sample once. `ascend`: climb the loss instead of descending it."""

    parts: Sequence[Part]
    ascend: bool = False


class Feed:
    """The batches of a pass, by the row numbers of the union of its parts."""

    def __init__(self, parts: Sequence[Part], device: torch.device, dtype: torch.dtype, workers: int) -> None:
        self.parts, self.device, self.dtype, self.workers = parts, device, dtype, workers
        self.sizes = [len(part.data) for part in parts]  # type: ignore[arg-type]
        augment = [torch.full((size,), part.augment) for size, part in zip(self.sizes, parts, strict=True)]
        self.augment = torch.cat(augment).to(device)  # [N]
        self.tensors: tuple[Tensor, Tensor] | None = None
        sets = [part.data for part in parts]
        if all(isinstance(data, TensorDataset) for data in sets):
            images = [data.tensors[0].to(device, dtype) for data in sets]  # type: ignore[attr-defined]
            labels = [data.tensors[1].to(device, torch.int64) for data in sets]  # type: ignore[attr-defined]
            self.tensors = _joined(images), _joined(labels)

    def __len__(self) -> int:
        return sum(self.sizes)

    def batches(self, epoch: int, size: int, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs [B, ...], labels [B] and which of them to augment [B], all rows once, shuffled by `order`."""
        rows = _batches(torch.randperm(len(self), generator=order), size)
        told = self._told(epoch)
        for batch, (x, own) in zip(rows, self._read(rows, order), strict=True):
            batch = batch.to(self.device)
            labels = own if told is None else torch.where(told[batch] < 0, own, told[batch])
            yield x, labels, self.augment[batch]

    def _read(self, rows: Sequence[Tensor], order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        if self.tensors is not None:
            images, labels = self.tensors
            for batch in rows:
                batch = batch.to(self.device)
                yield images[batch], labels[batch]
            return
        union: ConcatDataset[Any] = ConcatDataset([part.data for part in self.parts])
        batches = [batch.tolist() for batch in rows]
        # The workers' seeds follow from `order`: transforms of torch are the same when a killed run goes on.
        loader = DataLoader(union, batch_sampler=batches, num_workers=self.workers, generator=order)
        for x, labels in loader:
            yield x.to(self.device, self.dtype), torch.as_tensor(labels).to(self.device, torch.int64)

    def _told(self, epoch: int) -> Tensor | None:
        """Labels [N] in place of the data's own, -1 where there are none; None where no part has any."""
        if all(part.labels is None for part in self.parts):
            return None
        told = []
        for size, part in zip(self.sizes, self.parts, strict=True):
            labels = torch.full((size,), -1) if part.labels is None else part.labels(epoch)
            if part.labels is not None:
                check_labels("labels", labels, size)
            told.append(labels.to(self.device, torch.int64))
        return torch.cat(told)


def check_parts(passes: Sequence[Pass], augment: bool) -> Tensor:
    """The first input [...] of the first pass. InputError for passes that cannot be trained on."""
    require(len(passes) > 0 and all(len(each.parts) > 0 for each in passes), "parts", "at least one", "none")
    for each in passes:
        for part in each.parts:
            if isinstance(part.data, TensorDataset):
                check_labels("labels", part.data.tensors[1], len(part.data.tensors[0]))
        count = sum(len(part.data) for part in each.parts)  # type: ignore[arg-type, misc]
        require(count >= 2, "parts", "at least two samples", count)
    filled = next(part.data for part in passes[0].parts if len(part.data) > 0)  # type: ignore[arg-type]
    with torch.random.fork_rng([]):  # an item may be drawn by a transform
        first = torch.as_tensor(filled[0][0])
    require(not augment or first.dim() == 3, "augment", "off for inputs other than [N, C, H, W]", first.dim() + 1)
    return first


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Their union; one alone is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop after padding by 4, and a horizontal flip with probability 1/2, each image [N, C, H, W] its own."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 9, (2, count, 1), generator=generator).to(images.device)
    flip = (torch.rand(count, 1, generator=generator) < 0.5).to(images.device)
    rows = top + torch.arange(height, device=images.device)  # [N, H]
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(flip, columns.flip(0), columns)  # [N, W]
    index = torch.arange(count, device=images.device)
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)  # [N, H+8, W+8, C]
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _batches(order: Tensor, size: int) -> Sequence[Tensor]:
    """`order` in batches; a last batch of one joins its neighbour, because BatchNorm has no variance of one."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
