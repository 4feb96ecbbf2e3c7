"""The manifest: a hash of every training sample, which finds the sample again after the data have changed.

So a sample keeps the row number that it had in training, also when others are erased.
"""

import base64
import json
import zlib
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amun_ext.data.images import ImageDataset, fingerprint, stored
from amun_ext.data.lazy import Images, LazyImages
from amun_ext.data.splits import Splits
from amun_ext.validation import InputError, listed, require

KEY = "manifest"  # in the metadata of a checkpoint
LONGEST = 2**26  # characters; enough for some million samples, and below the 100 MB of safetensors
LARGEST = 2**29  # unpacked bytes
HASH = 8  # bytes: two of a million samples collide in one of 30 million data sets
GONE = ""  # in place of the name of an erased sample
SEPARATOR, ESCAPED = "\0", "surrogateescape"  # of names of files, which may be other bytes than UTF-8


@dataclass(frozen=True)
class Manifest:
    """The training samples, row by row."""

    classes: tuple[str, ...]
    channels: int
    labels: tuple[int, ...]
    hashes: tuple[bytes, ...]  # of the images
    names: tuple[str, ...] | None  # paths within the folder; None for other data


def manifest_of(splits: Splits) -> str | None:
    """The packed manifest for the metadata of a checkpoint, under KEY; None for too many samples."""
    images, labels = stored(splits.train)
    hashes = tuple(_hashes(splits.train))
    return _packed(Manifest(splits.classes, images.shape[1], tuple(labels.tolist()), hashes, splits.names))


def classes_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The classes that the model was trained on; none for a checkpoint without a manifest."""
    manifest = _read(metadata)
    return () if manifest is None else manifest.classes


def training_data(splits: Splits) -> str:
    """The fingerprint of the training set before any sample was erased."""
    return fingerprint(splits.train) if splits.known_as is None else splits.known_as


def aligned(splits: Splits, metadata: Mapping[str, str]) -> Splits:
    """The data in the rows that they had when the checkpoint with this `metadata` was trained.

    Forgotten samples may be missing; their rows have an image of zeros, see `Splits.absent`. New samples are left out,
    see `Splits.outside`. Files may have other names. Without a manifest the data are returned unchanged. InputError for
    other differences: samples that are missing, have other pixels or are of another class.
    """
    manifest = _read(metadata) if splits.known_as is None else None
    if manifest is None:
        return splits
    known_as = metadata.get("training_data", "")
    if splits.classes == manifest.classes and fingerprint(splits.train) == known_as:
        return replace(splits, known_as=known_as)
    forgotten = set(json.loads(metadata.get("forgotten", "[]")))
    images, labels = stored(splits.train)
    names = splits.names if manifest.names is not None else None
    new = Rows([*zip(_hashes(splits.train), (splits.classes[label] for label in labels.tolist()), strict=True)], names)
    classes = (manifest.classes[label] for label in manifest.labels)
    old = Rows([*zip(manifest.hashes, classes, strict=True)], manifest.names)
    rows, count = _matched(old, new, forgotten), len(manifest.labels)
    outside = sorted(set(range(len(labels))) - set(rows.values()))
    lost = sorted(set(range(count)) - rows.keys() - forgotten)
    if lost:
        raise InputError(
            "data must be those that the checkpoint was trained on, but for what it has forgotten, got others: "
            + _differences(old, new, lost, outside)
        )
    absent = [row for row in range(count) if row not in rows]
    train_images = _rows(images, torch.tensor([rows.get(row, -1) for row in range(count)]), manifest.channels)
    numbers = {name: number for number, name in enumerate(manifest.classes)}
    test_images, test_labels = stored(splits.test)
    new_labels = torch.tensor([numbers.get(splits.classes[label], -1) for label in test_labels.tolist()])
    kept = new_labels >= 0
    require(bool(kept.any()), "data", "with test samples of the model's classes", "none")
    return Splits(
        train=ImageDataset(train_images, torch.tensor(manifest.labels), "train"),
        test=ImageDataset(_rows(test_images, kept.nonzero()[:, 0], manifest.channels), new_labels[kept], "test"),
        classes=manifest.classes,
        names=None if names is None else tuple(names[rows[row]] if row in rows else GONE for row in range(count)),
        absent=tuple(absent),
        outside=tuple(map(new.name, outside)),
        known_as=known_as,
    )


def without(packed: str | None, absent: Sequence[int]) -> str | None:
    """The manifest without the names and hashes of erased samples."""
    if packed is None or not absent:
        return packed
    manifest, removed_ids = _unpacked(packed), set(absent)
    hashes = tuple(bytes(HASH) if row in removed_ids else value for row, value in enumerate(manifest.hashes))
    names = manifest.names
    if names is not None:
        names = tuple(GONE if row in removed_ids else name for row, name in enumerate(names))
    return _packed(replace(manifest, hashes=hashes, names=names))


class Rows(NamedTuple):
    """Training samples of a manifest or of data."""

    keys: list[tuple[bytes, str]]  # hash of the image, name of the class
    names: tuple[str, ...] | None

    def name(self, row: int) -> str:
        return f"row {row}" if self.names is None else self.names[row]


def _matched(old: Rows, new: Rows, forgotten: set[int]) -> dict[int, int]:
    """Old row -> new row with the same content, if possible under the same name.

    Of equal images the samples that are not forgotten are matched first.
    """
    by_name = {new.name(row): row for row in range(len(new.keys))}
    left: dict[tuple[bytes, str], deque[int]] = defaultdict(deque)
    for row, key in enumerate(new.keys):
        left[key].append(row)
    found: dict[int, int] = {}
    every = set(range(len(old.keys)))
    for rows in (every - forgotten, every & forgotten):
        for row in sorted(rows):
            new_row = by_name.get(old.name(row))
            if new_row is not None and new_row in left[old.keys[row]]:
                left[old.keys[row]].remove(new_row)
                found[row] = new_row
        for row in sorted(rows - found.keys()):
            if left[old.keys[row]]:
                found[row] = left[old.keys[row]].popleft()
    return found


def _differences(old: Rows, new: Rows, lost: Sequence[int], outside: Sequence[int]) -> str:
    """The names of samples that are missing, changed or new."""
    by_name = {new.name(row): row for row in outside}
    by_image = {new.keys[row][0]: row for row in outside}
    differences: dict[str, list[str]] = {"missing": [], "changed": [], "of another class": [], "new": []}
    explained = set()
    for row in lost:
        name, image = old.name(row), old.keys[row][0]
        if image in by_image:
            new_row = by_image[image]
            differences["of another class"].append(f"{name}, now {new.name(new_row)} of class {new.keys[new_row][1]}")
        elif name in by_name:
            new_row = by_name[name]
            differences["changed"].append(name)
        else:
            differences["missing"].append(name)
            continue
        explained.add(new_row)
    differences["new"] = [new.name(row) for row in outside if row not in explained]
    return "; ".join(f"{kind}: {listed(names)}" for kind, names in differences.items() if names)


def _rows(images: Images, rows: Tensor, channels: int) -> Images:
    """The `rows` [M], -1 for an image of zeros, in grey or colour: one coloured file makes a whole folder RGB."""
    channels = channels if {images.shape[1], channels} == {1, 3} else images.shape[1]
    if isinstance(images, LazyImages):
        return images.select(rows, channels)
    taken = images[rows.clamp(min=0)]
    taken[rows < 0] = 0
    return taken if channels == taken.shape[1] else taken[:, :1].expand(-1, channels, -1, -1)


def _hashes(dataset: ImageDataset) -> list[bytes]:
    return [known[:HASH] for known in dataset.hashes.tolist()]


def _packed(manifest: Manifest) -> str | None:
    """As bytes, because JSON would be many times as large."""
    classes, names = (
        SEPARATOR.join(texts or ()).encode(errors=ESCAPED) for texts in (manifest.classes, manifest.names)
    )
    numbers = [manifest.channels, len(manifest.hashes), manifest.names is not None, len(classes)]
    labels = np.array(manifest.labels, "<i4").tobytes()
    whole = b"".join([np.array(numbers, "<i8").tobytes(), classes, labels, *manifest.hashes, names])
    text = base64.b64encode(zlib.compress(whole, 1)).decode()
    return text if len(text) <= LONGEST else None


def _read(metadata: Mapping[str, str]) -> Manifest | None:
    return _unpacked(metadata[KEY]) if KEY in metadata else None


def _unpacked(packed: str) -> Manifest:
    """InputError for a damaged manifest."""
    expected = "the checkpoint's manifest"
    try:
        unpacking = zlib.decompressobj()
        whole = unpacking.decompress(base64.b64decode(packed, validate=True), LARGEST)
        require(unpacking.eof, expected, f"of at most {LARGEST} bytes", "more or less")
        channels, count, named, length = np.frombuffer(whole[:32], "<i8").tolist()
        end = 32 + length + count * (4 + HASH)
        fits = min(channels, count, length) > 0 and end <= len(whole)
        require(fits, expected, "of one length in all its parts", "others")
        classes = whole[32 : 32 + length].decode(errors=ESCAPED).split(SEPARATOR)
        labels = np.frombuffer(whole, "<i4", count, 32 + length).tolist()
        hashes = tuple(whole[at : at + HASH] for at in range(end - count * HASH, end, HASH))
        names = tuple(whole[end:].decode(errors=ESCAPED).split(SEPARATOR)) if named else None
    except (ValueError, zlib.error) as error:
        raise InputError(f"{expected} must be as amun train has written it, got {error}") from error
    fits = names is None or len(names) == count
    require(fits and min(labels) >= 0 and max(labels) < len(classes), expected, "of as many names as samples", "others")
    return Manifest(tuple(classes), channels, tuple(labels), hashes, names)
