"""Where the samples of a search come from, and where its results go: a chunk at a time, in memory or in a file."""

import contextlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler, TensorDataset, default_collate

from amun_ext.data import as_tensors
from amun_ext.digest import digest, parts
from amun_ext.files import no_link
from amun_ext.locks import locked
from amun_ext.ops import accumulate_dtype
from amun_ext.search.adversarial_set import FORMAT, AdversarialSet
from amun_ext.validation import InputError, check_images, check_labels, require

SAFETENSORS = {  # its names of the types that results can have
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
Rows = dict[str, Tensor]  # a tensor for each field of AdversarialSet
PENDING = -1  # in grad_evals: this row has not been searched


class Samples:
    """Inputs and labels, read and checked a chunk at a time; those of tensors, which may be memory maps, at once."""

    def __init__(
        self, inputs: Tensor | Dataset[Any] | DataLoader[Any], labels: Tensor | None, bounds: tuple[float, float]
    ) -> None:
        if isinstance(inputs, DataLoader):
            inputs = _dataset_of(inputs)
        if isinstance(inputs, TensorDataset) and labels is None:
            inputs, labels = as_tensors(inputs, "inputs")
        self.inputs, self.labels = inputs, labels
        if isinstance(inputs, Tensor):
            require(labels is not None, "labels", "a tensor [N] beside a tensor of inputs", "None")
            self.inputs = inputs.detach()
            first, rows = (self.inputs, labels), range(0)
        else:
            must_be = "a tensor [N, ...], or a Dataset with no labels beside it"
            require(labels is None, "inputs", must_be, type(inputs).__name__)
            map_style = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
            require(map_style, "inputs", "a tensor [N, ...] or a map-style dataset", type(inputs).__name__)
            rows = range(min(len(self), 8))
            first = as_tensors(inputs, "inputs", rows)
        self.like = first[0]
        # As the images have them: 0.3 is another number in float32.
        low, high = torch.tensor(
            bounds, dtype=self.like.dtype if self.like.is_floating_point() else None, device="cpu"
        ).tolist()
        self.bounds: tuple[float, float] = low, high
        self._check(*first, rows)

    def __len__(self) -> int:
        return len(self.inputs)  # type: ignore[arg-type]

    def read(self, rows: range, classes: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs [M, ...] and labels [M]. InputError for items of a Dataset that are not what they must be."""
        if isinstance(self.inputs, Tensor):
            assert self.labels is not None
            return self.inputs[rows.start : rows.stop], self.labels[rows.start : rows.stop]
        inputs, labels = as_tensors(self.inputs, "inputs", rows)
        if rows.start:
            expected, got = (f"{tuple(part.shape[1:])} {part.dtype}" for part in (self.like, inputs))
            require(expected == got, f"inputs[{rows.start}]", f"an image like inputs[0], {expected}", got)
        self._check(inputs, labels, rows, classes)
        return inputs, labels

    def _check(self, inputs: Tensor, labels: Tensor | None, rows: range, classes: int | None = None) -> None:
        assert labels is not None
        try:
            for part in parts(inputs):
                check_images("inputs", part, self.bounds)
            check_labels("labels", labels, len(inputs), classes)
        except InputError:
            if not isinstance(self.inputs, Tensor):  # which item of the Dataset?
                for row, image, label in zip(rows, inputs.split(1), labels.split(1), strict=True):
                    check_images(f"inputs[{row}]", image, self.bounds)
                    check_labels(f"inputs[{row}] label", label, 1, classes)
            raise

    def fingerprint(self) -> str:
        """Of all samples of a tensor; of a Dataset, whose items may take long to read, the first ones and how many."""
        inputs, labels = self.read(range(len(self) if isinstance(self.inputs, Tensor) else min(len(self), 64)))
        return f"{len(self)} {digest({'inputs': inputs, 'labels': labels})}"


def _dataset_of(loader: DataLoader[Any]) -> Dataset[Any]:
    """That whose items a loader gives out, all of them and as they are, be it in another order."""
    sampler = loader.sampler
    plain = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    must_be = "a DataLoader of all items of a map-style dataset, with no sampler or collate_fn of its own"
    got = type(sampler).__name__ if not plain else repr(loader.collate_fn)
    require(plain and loader.collate_fn is default_collate, "inputs", must_be, got)
    return loader.dataset


def layout(samples: Samples) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Types and shapes of the results, the widest elements first, which keeps all of them aligned in a file."""
    count, like = len(samples), samples.like
    types = dict.fromkeys(("labels", "true_labels", "source_index"), torch.int64)
    types |= dict.fromkeys(("eps", "distance"), accumulate_dtype(like.dtype))
    types |= {"images": like.dtype, "grad_evals": torch.int32, "found": torch.bool}
    assert set(types) == {field.name for field in fields(AdversarialSet)}
    shapes = {name: (count, *like.shape[1:]) if name == "images" else (count,) for name in types}
    return {name: (types[name], shapes[name]) for name in sorted(types, key=lambda name: -types[name].itemsize)}


@contextlib.contextmanager
def results(
    out: str | os.PathLike[str] | None, samples: Samples, about: dict[str, str]
) -> Iterator[tuple[Rows, Callable[[], None]]]:
    """Rows to be filled in, in memory where the inputs are or in the file `out`, and what puts them onto the disk."""
    if out is not None:
        with in_file(Path(out), samples, about) as rows_and_flush:
            yield rows_and_flush
        return
    empty = {name: torch.zeros(shape, dtype=dtype, device="cpu") for name, (dtype, shape) in layout(samples).items()}
    rows = {name: tensor.to(samples.like.device) for name, tensor in empty.items()}
    rows["grad_evals"].fill_(PENDING)
    yield rows, lambda: None


@contextlib.contextmanager
def in_file(path: Path, samples: Samples, about: dict[str, str]) -> Iterator[tuple[Rows, Callable[[], None]]]:
    """Results to be filled in that live in a file, and a function that puts what is there onto the disk.

    The file is `path`.partial, which outlives the process, until it is full and becomes `path`. With the same samples
    and the same `about` the rows that it has are kept. Its room on the disk is taken at once.

    Raises:
        InputError: there is a file, but of another search, or another process is at it.
        OSError: there is no room.
    """
    about = FORMAT | about | {"samples": samples.fingerprint()}
    partial = path.with_name(f"{path.name}.partial")
    header, places, size = _header(samples, about)
    path.parent.mkdir(parents=True, exist_ok=True)
    no_link(path)
    no_link(partial)
    with locked(path.with_name(f".{path.name}.lock"), path):
        existing = path if path.exists() else partial
        with open(os.open(existing, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
            if existing == partial and file.read(8) in (b"", bytes(8)):
                try:
                    file.truncate(0)
                    os.posix_fallocate(file.fileno(), 0, size)
                    start, length = places["grad_evals"][2:]
                    os.pwrite(file.fileno(), length * PENDING.to_bytes(4, "little", signed=True), start)
                    os.pwrite(file.fileno(), header, 0)  # last: without it the file counts as new
                except OSError:
                    partial.unlink()
                    raise
            else:
                _same(path, existing, about)
            memory = mmap.mmap(file.fileno(), size)
        rows = {
            name: torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
            for name, (dtype, shape, start, _) in places.items()
        }
        yield rows, memory.flush
        memory.flush()
        if existing == partial and not (rows["grad_evals"] == PENDING).any():
            partial.replace(path)


def _header(samples: Samples, about: dict[str, str]) -> tuple[bytes, dict[str, tuple[Any, ...]], int]:
    """That of a safetensors file; per tensor its type, shape, first byte and number of rows; the size of the file."""
    entries: dict[str, Any] = {"__metadata__": about}
    position, placed = 0, {}
    for name, (dtype, shape) in layout(samples).items():
        end = position + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": SAFETENSORS[dtype], "shape": shape, "data_offsets": (position, end)}
        placed[name] = (dtype, shape, position, shape[0])
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    places = {name: (dtype, shape, first + start, count) for name, (dtype, shape, start, count) in placed.items()}
    return len(text).to_bytes(8, "little") + text, places, first + position


def _same(path: Path, existing: Path, about: dict[str, str]) -> None:
    try:
        with safe_open(existing, framework="pt") as file:
            found = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"out must be a new file or one of this search, got {path}: {error}") from error
    differ = sorted(key for key in about.keys() | found.keys() if about.get(key) != found.get(key))
    theirs = {key: found.get(key) for key in differ}
    require(not differ, "out", "a new file or one of this search", f"{existing} with other {theirs}")
