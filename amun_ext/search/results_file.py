"""The results of a search, in memory or in a file that a stopped search resumes from."""

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

from amun_ext.files import no_link
from amun_ext.locks import locked
from amun_ext.ops import accumulate_dtype
from amun_ext.search.adversarial_set import FORMAT, AdversarialSet
from amun_ext.search.samples import Samples
from amun_ext.validation import InputError, require

DTYPE_NAMES = {  # of safetensors
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
Rows = dict[str, Tensor]  # a tensor for each field of AdversarialSet
Opened = Iterator[tuple[Rows, Callable[[], None]]]  # and a function that flushes them to disk
PENDING = -1  # in grad_evals: the row has not been searched


def layout(like: Tensor, count: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Types and shapes of the results, the widest elements first, so that all are aligned in a file."""
    types = dict.fromkeys(("labels", "true_labels", "source_index"), torch.int64)
    types |= dict.fromkeys(("eps", "distance"), accumulate_dtype(like.dtype))
    types |= {"images": like.dtype, "grad_evals": torch.int32, "found": torch.bool}
    assert set(types) == {field.name for field in fields(AdversarialSet)}
    shapes = {name: (count, *like.shape[1:]) if name == "images" else (count,) for name in types}
    return {name: (types[name], shapes[name]) for name in sorted(types, key=lambda name: -types[name].itemsize)}


@contextlib.contextmanager
def open_results(out: Path | None, samples: Samples, count: int, metadata: dict[str, str]) -> Opened:
    """`count` rows to fill in: in memory on the device of the inputs, or in the file `out`."""
    if out is not None:
        with open_results_file(out, samples, count, metadata) as rows_and_flush:
            yield rows_and_flush
        return
    like = samples.like
    empty = {
        name: torch.zeros(shape, dtype=dtype, device="cpu") for name, (dtype, shape) in layout(like, count).items()
    }
    rows = {name: tensor.to(like.device) for name, tensor in empty.items()}
    rows["grad_evals"].fill_(PENDING)
    yield rows, lambda: None


@contextlib.contextmanager
def open_results_file(path: Path, samples: Samples, count: int, metadata: dict[str, str]) -> Opened:
    """`count` rows to fill in, mapped to a file.

    The file is `path`.partial until it is complete and becomes `path`. Rows of an earlier run with the same samples and
    `metadata` are kept. Its disk space is allocated at the start.

    Raises:
        InputError: the file is of another search, or another process writes it.
        OSError: there is not enough disk space.
    """
    metadata = FORMAT | metadata | {"samples": samples.fingerprint()}
    partial = path.with_name(f"{path.name}.partial")
    header, places, size = _header(layout(samples.like, count), metadata)
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
                    os.pwrite(file.fileno(), header, 0)  # last, because without it the file counts as new
                except OSError:
                    partial.unlink()
                    raise
            else:
                _check_same_search(path, existing, metadata)
            memory = mmap.mmap(file.fileno(), size)
        rows = {
            name: torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
            for name, (dtype, shape, start, _) in places.items()
        }
        yield rows, memory.flush
        memory.flush()
        if existing == partial and not (rows["grad_evals"] == PENDING).any():
            partial.replace(path)


def _header(
    columns: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]
) -> tuple[bytes, dict[str, tuple[Any, ...]], int]:
    """The header of a safetensors file; per tensor its dtype, shape, first byte and number of rows; the file's size."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    position, placed = 0, {}
    for name, (dtype, shape) in columns.items():
        end = position + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": (position, end)}
        placed[name] = (dtype, shape, position, shape[0])
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    places = {name: (dtype, shape, first + start, count) for name, (dtype, shape, start, count) in placed.items()}
    return len(text).to_bytes(8, "little") + text, places, first + position


def _check_same_search(path: Path, existing: Path, metadata: dict[str, str]) -> None:
    expected = "a new file or one of this search"
    try:
        with safe_open(existing, framework="pt") as file:
            found = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"out must be {expected}, got {path}: {error}") from error
    differ = sorted(key for key in metadata.keys() | found.keys() if metadata.get(key) != found.get(key))
    require(not differ, "out", expected, f"{existing} with other { ({key: found.get(key) for key in differ}) }")
