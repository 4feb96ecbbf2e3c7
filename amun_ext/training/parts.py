"""The data of a training: parts, shuffled together into passes, and their batches."""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from amun_ext.data.images import ImageDataset, concat, is_lazy, moved, stored, subset
from amun_ext.random_state import same_random_state
from amun_ext.tensor_checks import check_labels
from amun_ext.validation import require

Teacher: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DataPart:
    """Some of the data to train on, and whether the recipe's augmentation applies.

    `data` is a map-style dataset of (input, label). A TensorDataset is moved to the device, but for `LazyImages`, which
    are read batch by batch, or through a DataLoader if there are `num_workers`; any other is read through a DataLoader
    in every epoch, with random transforms that follow from the seed and `num_workers`.

    Two options replace the labels. `labels` is a function of the number of the epoch (from 0 on), called when the pass
    begins, that returns a tensor [N]. `targets` are soft labels: a tensor [N, classes], or a teacher, a function of the
    augmented inputs [B, ...] and their labels [B] that returns soft labels [B, classes]. The loss of a sample is
    -sum(targets * log_softmax), so the sum of a row is the weight of its sample, 1 for one with a label; a negative
    weight ascends the loss.

    With a `count` an epoch has so many of the samples, drawn anew.
    """

    data: Dataset[Any]
    labels: Callable[[int], Tensor] | None = None
    targets: Tensor | Teacher | None = None
    augment: bool = True
    count: int | None = None


@dataclass(frozen=True)
class Pass:
    """The shuffled union of `parts`, every sample once."""

    parts: Sequence[DataPart]
    ascend: bool = False  # the loss instead of descending it
    epochs: int | None = None  # only in the first ones


class BatchLoader:
    """The batches of a pass; rows are those of the union of its parts."""

    def __init__(self, parts: Sequence[DataPart], device: torch.device, dtype: torch.dtype, num_workers: int) -> None:
        self.parts, self.device, self.dtype, self.num_workers = parts, device, dtype, num_workers
        self.sizes = [len(part.data) for part in parts]  # type: ignore[arg-type]
        self.ends = torch.tensor(self.sizes, device="cpu").cumsum(0)
        wide = torch.promote_types(dtype, torch.float32)
        self.targets = [
            part.targets.to(device, wide) if isinstance(part.targets, Tensor) else part.targets for part in parts
        ]
        self.datasets: list[TensorDataset] = []  # one for each kind of images; none if a DataLoader must read a part
        sets = [moved(part.data, device, dtype) for part in parts if has_rows(part.data)]
        ahead = num_workers > 0 and any(map(is_lazy, sets))
        if len(sets) == len(parts) and not ahead:
            self.datasets = [
                concat([*some]) for _, some in groupby(sets, lambda data: (stored(data)[0].dtype, is_lazy(data)))
            ]

    def __len__(self) -> int:
        """The samples of an epoch."""
        return sum(
            size if part.count is None else part.count for part, size in zip(self.parts, self.sizes, strict=True)
        )

    def batches(self, epoch: int, size: int, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs [B, ...], labels [B] and rows [B] on the CPU: all rows once, shuffled by `order`."""
        shuffled = torch.randperm(sum(self.sizes), generator=order, device="cpu")
        rows = self._counted(shuffled).split(split_sizes(len(self), size))
        replaced = self._replaced_labels(epoch)
        for batch, (x, labels) in zip(rows, self._read(rows, order.initial_seed(), epoch), strict=True):
            if replaced is not None:
                new = replaced[batch.to(self.device)]
                labels = torch.where(new < 0, labels, new)
            yield x, labels, batch

    def augmented(self, rows: Tensor) -> Tensor:
        """Whether the recipe's augmentation applies to each of the rows [B]."""
        flags = torch.tensor([part.augment for part in self.parts], device="cpu")
        return flags[torch.bucketize(rows, self.ends, right=True)].to(self.device)

    def _counted(self, rows: Tensor) -> Tensor:
        """Without those of a part beyond its count."""
        kept = torch.ones(len(rows), dtype=torch.bool, device="cpu")
        for part, size, end in zip(self.parts, self.sizes, self.ends.tolist(), strict=True):
            if part.count is not None:
                kept[((end - size <= rows) & (rows < end)).nonzero()[part.count :, 0]] = False
        return rows[kept]

    @torch.no_grad()
    def soft_labels(self, x: Tensor, labels: Tensor, rows: Tensor, classes: int) -> Tensor:
        """The targets [B, classes] of rows [B], one-hot for parts without; `labels` [B] if no part has any."""
        if all(targets is None for targets in self.targets):
            return labels
        soft = F.one_hot(labels, classes).to(torch.promote_types(self.dtype, torch.float32))
        which = torch.bucketize(rows, self.ends, right=True)
        for number, targets in enumerate(self.targets):
            own = (which == number).nonzero()[:, 0]
            at, first = own.to(self.device), self.ends[number] - self.sizes[number]
            if isinstance(targets, Tensor):
                soft[at] = targets[(rows[own] - first).to(self.device)]
            elif targets is not None and len(own) > 0:
                soft[at] = targets(x[at], labels[at]).to(soft.dtype)
        return soft

    def _read(self, rows: Sequence[Tensor], seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self.datasets:
            for batch in rows:
                yield self._gather(batch)
            return
        # on the CPU, because a forked worker cannot use a GPU
        cpu, sets = torch.device("cpu"), [part.data for part in self.parts]
        sets = [moved(data, cpu, stored(data)[0].dtype) if has_rows(data) else data for data in sets]
        # a generator of its own, so that the shuffling is the same as for tensors
        loader: DataLoader[Any] = DataLoader(
            ConcatDataset(sets),
            batch_sampler=[batch.tolist() for batch in rows],
            num_workers=self.num_workers,
            collate_fn=partial(_stacked, dtype=self.dtype),
            generator=torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch),
        )
        with torch.device("cpu"):  # a default device must not draw its seed
            batches = iter(loader)
        for x, labels in batches:
            yield x.to(self.device), labels.to(self.device)

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, ...] and labels [B] of rows of the concatenated datasets."""
        if len(self.datasets) == 1:
            images, labels = self.datasets[0][rows.to(self.device)]
            return images.to(self.dtype), labels
        ends = torch.tensor([len(data) for data in self.datasets], device="cpu").cumsum(0)
        which = torch.bucketize(rows, ends, right=True)
        places = [(which == number).nonzero()[:, 0] for number in range(len(self.datasets))]
        read = [
            data[(rows[at] - end + len(data)).to(self.device)]
            for data, at, end in zip(self.datasets, places, ends, strict=True)
        ]
        back = torch.cat(places).argsort().to(self.device)
        images, labels = (torch.cat(parts)[back] for parts in zip(*read, strict=True))
        return images.to(self.dtype), labels

    def _replaced_labels(self, epoch: int) -> Tensor | None:
        """Labels [N] in place of the data's own, -1 for parts without; None if no part has any."""
        if all(part.labels is None for part in self.parts):
            return None
        replaced = []
        for size, part in zip(self.sizes, self.parts, strict=True):
            labels = torch.full((size,), -1, device="cpu") if part.labels is None else part.labels(epoch)
            if part.labels is not None:
                check_labels("labels", labels, size)
            replaced.append(labels.to(self.device, torch.int64))
        return torch.cat(replaced)


def has_rows(data: Dataset[Any]) -> TypeGuard[TensorDataset]:
    """Whether its items are rows of its images and labels; a user's subclass may transform them."""
    plain = isinstance(data, TensorDataset) and type(data).__getitem__ is TensorDataset.__getitem__
    return plain or type(data) is ImageDataset


def random_part(data: Dataset[Any], count: int, seed: int) -> Dataset[Any]:
    """So many random samples of it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(data), generator=generator, device="cpu")[:count]  # type: ignore[arg-type]
    return subset(data, rows) if has_rows(data) else Subset(data, rows.tolist())


def check_parts(passes: Sequence[Pass]) -> Tensor:
    """The first input [...] of the first pass. InputError for passes that cannot be trained on."""
    for number, each in enumerate(passes):
        require(isinstance(each, Pass), f"passes[{number}]", "a Pass", type(each).__name__)
    require(len(passes) > 0 and all(len(each.parts) > 0 for each in passes), "parts", "at least one", "none")
    always = any(each.epochs is None for each in passes)
    require(always, "epochs", "None in one pass at least, which all epochs have", [each.epochs for each in passes])
    for each in passes:
        for part in each.parts:
            if isinstance(part.data, TensorDataset):
                tensors = stored(part.data)
                require(len(tensors) == 2, "parts", "of inputs and labels", f"{len(tensors)} tensors")
                check_labels("labels", tensors[1], len(tensors[0]))
            require(part.targets is None or part.labels is None, "targets", "None where labels are given", "both")
            drawn = part.count is None or 0 < part.count <= len(part.data)  # type: ignore[arg-type]
            require(drawn, "count", "from 1 to the number of samples", part.count)
            if part.targets is not None and not callable(part.targets):
                _check_targets(part, part.targets)
        count = sum(len(part.data) for part in each.parts)  # type: ignore[arg-type, misc]
        require(count > 0, "parts", "at least one sample", count)
    filled = [part.data for each in passes for part in each.parts if len(part.data) > 0]  # type: ignore[arg-type]
    with same_random_state():  # an item may be drawn by a transform
        firsts = [_tensor(data[0][0]) for data in filled]
    shapes = {tuple(first.shape) for first in firsts}
    require(len(shapes) == 1, "parts", "of inputs of one shape", sorted(shapes))
    return firsts[0]


def _check_targets(part: DataPart, targets: Tensor) -> None:
    size = len(part.data)  # type: ignore[arg-type]
    fits = isinstance(targets, Tensor) and targets.is_floating_point() and targets.dim() == 2 and len(targets) == size
    actual = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
    require(fits, "targets", f"soft labels ({size}, classes) of floating point", actual)
    require(bool(targets.isfinite().all()), "targets", "finite", "NaN or infinite values")


def _stacked(items: Sequence[tuple[Any, Any]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs [B, ...] and labels [B]; items are cast one by one, because their types may differ."""
    images = [_tensor(image).to("cpu", dtype) for image, _ in items]
    return torch.stack(images), torch.tensor([operator.index(label) for _, label in items], device="cpu")


def _tensor(item: Any) -> Tensor:
    """An input as a tensor, not on the default device."""
    return item if isinstance(item, Tensor) else torch.as_tensor(item, device="cpu")


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop after padding by 4, and a horizontal flip with probability 1/2, of each image [N, C, H, W]."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 9, (2, count, 1), generator=generator, device="cpu").to(images.device)
    flip = (torch.rand(count, 1, generator=generator, device="cpu") < 0.5).to(images.device)
    rows = top + torch.arange(height, device=images.device)  # [N, H]
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(flip, columns.flip(0), columns)  # [N, W]
    index = torch.arange(count, device=images.device)
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)  # [N, H+8, W+8, C]
    moved = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    # of one channel, the strides of channels_last pass for contiguous, and a convolution would keep that layout
    return moved.flatten(1).view(images.shape)


def split_sizes(count: int, size: int) -> list[int]:
    """`count` in batches of `size`; a last sample alone joins the batch before, for BatchNorm."""
    full, rest = divmod(count, size)
    if rest == 1 and full > 0:
        return [size] * (full - 1) + [size + 1]
    return [size] * full + [rest] * (rest > 0)
