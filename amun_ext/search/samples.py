"""The samples of a search: tensors, or a Dataset that is read in chunks."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler, TensorDataset, default_collate

from amun_ext.data import ImageDataset, as_tensors, fingerprint
from amun_ext.data.splits import check_alike, check_map_style
from amun_ext.digest import digest, parts
from amun_ext.tensor_checks import check_images, check_labels
from amun_ext.validation import InputError, require


class Samples:
    """Inputs and labels. Those of a Dataset are read and checked in chunks, tensors are checked at once."""

    def __init__(
        self, inputs: Tensor | Dataset[Any] | DataLoader[Any], labels: Tensor | None, bounds: tuple[float, float]
    ) -> None:
        if isinstance(inputs, DataLoader):
            inputs = _dataset_of(inputs)
        if isinstance(inputs, TensorDataset) and not isinstance(inputs, ImageDataset) and labels is None:
            inputs, labels = as_tensors(inputs, "inputs")
        self.inputs, self.labels = inputs, labels
        if isinstance(inputs, Tensor):
            require(labels is not None, "labels", "a tensor [N] beside a tensor of inputs", "None")
            self.inputs = inputs.detach()
            first, rows = (self.inputs, labels), range(0)
        else:
            expected = "a tensor [N, ...], or a Dataset with no labels beside it"
            require(labels is None, "inputs", expected, type(inputs).__name__)
            check_map_style(inputs, "inputs")
            rows = range(min(len(self), 8))
            first = as_tensors(inputs, "inputs", rows)
            self.labels = inputs.labels if isinstance(inputs, ImageDataset) else None
        self.like = first[0]
        # rounded to the type of the images: 0.3 is another number in float32
        low, high = torch.tensor(
            bounds, dtype=self.like.dtype if self.like.is_floating_point() else None, device="cpu"
        ).tolist()
        self.bounds: tuple[float, float] = low, high
        self._check(*first, rows)

    def __len__(self) -> int:
        return len(self.inputs)  # type: ignore[arg-type]

    def read(self, rows: range, classes: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs [M, ...] and labels [M]. InputError for bad items of a Dataset."""
        if isinstance(self.inputs, Tensor):
            assert self.labels is not None
            return self.inputs[rows.start : rows.stop], self.labels[rows.start : rows.stop]
        inputs, labels = as_tensors(self.inputs, "inputs", rows)
        check_alike(inputs, self.like, f"inputs[{rows.start}]", "inputs[0]")
        self._check(inputs, labels, rows, classes)
        return inputs, labels

    def _check(self, inputs: Tensor, labels: Tensor | None, rows: range, classes: int | None = None) -> None:
        assert labels is not None
        try:
            for part in parts(inputs):
                check_images("inputs", part, self.bounds)
            check_labels("labels", labels, len(inputs), classes)
        except InputError:
            if not isinstance(self.inputs, Tensor):  # name the item of the Dataset
                for row, image, label in zip(rows, inputs.split(1), labels.split(1), strict=True):
                    check_images(f"inputs[{row}]", image, self.bounds)
                    check_labels(f"inputs[{row}] label", label, 1, classes)
            raise

    def fingerprint(self) -> str:
        """Of all samples, if they are hashed or in memory; of another Dataset of its first items and its length."""
        if isinstance(self.inputs, ImageDataset):
            return fingerprint(self.inputs)
        inputs, labels = self.read(range(len(self) if isinstance(self.inputs, Tensor) else min(len(self), 64)))
        return f"{len(self)} {digest({'inputs': inputs, 'labels': labels})}"


def _dataset_of(loader: DataLoader[Any]) -> Dataset[Any]:
    """The dataset of a loader. InputError for a loader that skips, repeats or changes items."""
    sampler = loader.sampler
    plain = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    expected = "a DataLoader of all items of a map-style dataset, with no sampler or collate_fn of its own"
    actual = type(sampler).__name__ if not plain else repr(loader.collate_fn)
    require(plain and loader.collate_fn is default_collate, "inputs", expected, actual)
    return loader.dataset
