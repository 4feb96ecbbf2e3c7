"""Which samples a model was trained on, one by one: by that they are known again when the data around them change.

A sample keeps its row number as long as there is a model that was trained on it, also when others are erased.
"""

import base64
import json
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from amun_ext.checks import InputError, listed, require
from amun_ext.data.copies import digests, fingerprint
from amun_ext.data.splits import Splits

KEY = "manifest"  # in the metadata of a checkpoint
LONGEST = 2**26  # characters of it, of 100 MB that safetensors allows: enough for 4 million samples
LARGEST = 2**29  # bytes that it unpacks to
GONE = ""  # in place of the name and hash of an erased sample
HASH = 8  # bytes: among a million samples two are taken for the same in one of 30 million data sets


@dataclass(frozen=True)
class Manifest:
    """Of the training samples, row by row."""

    classes: tuple[str, ...]
    channels: int
    labels: tuple[int, ...]
    hashes: tuple[str, ...]  # of the images
    names: tuple[str, ...] | None  # paths within the folder; None of data that are no files


def manifest_of(splits: Splits) -> str | None:
    """For the metadata of a checkpoint, under KEY; None where there are too many samples."""
    images, labels = splits.train.tensors
    made = Manifest(splits.classes, images.shape[1], tuple(labels.tolist()), tuple(_hashes(images)), splits.names)
    return _packed(made)


def classes_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Those that the model was trained on; none where the checkpoint does not say."""
    known = _read(metadata)
    return () if known is None else known.classes


def training_data(splits: Splits) -> str:
    """The fingerprint of the training set, as it was before any sample was erased."""
    return fingerprint(splits.train) if splits.known_as is None else splits.known_as


def aligned(splits: Splits, metadata: Mapping[str, str]) -> Splits:
    """The data in the rows that they had when the checkpoint with this `metadata` was trained.

    Forgotten samples may be missing, in whose rows is then an image of zeros; see `Splits.absent`. Samples that are new
    are left out, see `Splits.outside`. Files may have other names. Data of a checkpoint without a manifest are returned
    as they are. InputError for all else that is not as it was: missing, with other pixels or of another class.
    """
    known = _read(metadata)
    if known is None or splits.known_as is not None:
        return splits
    made_of = metadata.get("training_data", "")
    if splits.classes == known.classes and fingerprint(splits.train) == made_of:
        return replace(splits, known_as=made_of)
    forgotten = set(json.loads(metadata.get("forgotten", "[]")))
    images, labels = splits.train.tensors
    has = list(zip(_hashes(images), (splits.classes[label] for label in labels.tolist()), strict=True))
    had = list(zip(known.hashes, (known.classes[label] for label in known.labels), strict=True))
    names = splits.names if known.names is not None else None
    rows = _matched(had, has, known.names, names, forgotten)
    used = set(rows.values())
    outside = [row for row in range(len(has)) if row not in used]
    lost = [row for row in range(len(had)) if row not in rows and row not in forgotten]
    if lost:
        raise InputError(
            "data must be those that the checkpoint was trained on, but for what it has forgotten, got others: "
            + _differences(lost, outside, had, has, known.names, names)
        )
    absent = [row for row in range(len(had)) if row not in rows]
    laid_out = _channels(images, known.channels)[[rows.get(row, 0) for row in range(len(had))]]
    laid_out[absent] = 0
    numbers = {name: number for number, name in enumerate(known.classes)}
    test_images, test_labels = splits.test.tensors
    theirs = torch.tensor([numbers.get(splits.classes[label], -1) for label in test_labels.tolist()])
    kept = theirs >= 0
    require(bool(kept.any()), "data", "with test samples of the model's classes", "none")
    return Splits(
        train=TensorDataset(laid_out, torch.tensor(known.labels)),
        test=TensorDataset(_channels(test_images[kept], known.channels), theirs[kept]),
        classes=known.classes,
        names=None if names is None else tuple(names[rows[row]] if row in rows else GONE for row in range(len(had))),
        absent=tuple(absent),
        outside=tuple(_name(row, names) for row in outside),
        known_as=made_of,
    )


def without(packed: str | None, absent: Sequence[int]) -> str | None:
    """The manifest, which has no longer the names and hashes of samples that are erased."""
    if packed is None or not absent:
        return packed
    known, gone = _unpacked(packed), set(absent)

    def kept(values: Iterable[str]) -> tuple[str, ...]:
        return tuple(GONE if row in gone else value for row, value in enumerate(values))

    names = None if known.names is None else kept(known.names)
    return _packed(replace(known, hashes=kept(known.hashes), names=names))


Key = tuple[str, str]  # hash of an image, name of a class
Names = Sequence[str] | None


def _matched(had: Sequence[Key], has: Sequence[Key], old: Names, new: Names, forgotten: set[int]) -> dict[int, int]:
    """Row in the manifest -> row in the data, of the same content: first under the same name, then under any.

    Of equal images those that are not forgotten come first.
    """
    was = range(len(had)) if old is None else old
    places = {name: row for row, name in enumerate(range(len(has)) if new is None else new)}
    left: dict[Key, deque[int]] = defaultdict(deque)
    for row, key in enumerate(has):
        left[key].append(row)
    found: dict[int, int] = {}
    for some in (set(range(len(had))) - forgotten, forgotten & set(range(len(had)))):
        for row in sorted(some):
            at = places.get(was[row])
            if at is not None and at in left[had[row]]:
                left[had[row]].remove(at)
                found[row] = at
        for row in sorted(some - found.keys()):
            if left[had[row]]:
                found[row] = left[had[row]].popleft()
    return found


def _differences(
    lost: Sequence[int], outside: Sequence[int], had: Sequence[Key], has: Sequence[Key], old: Names, new: Names
) -> str:
    """What has become of rows of the manifest that are in the data no longer, and what is new, by name."""
    places = {_name(row, new): row for row in outside}
    by_image = {has[row][0]: row for row in outside}
    told: dict[str, list[str]] = {"missing": [], "changed": [], "of another class": [], "new": []}
    explained = set()
    for row in lost:
        name, (image, _) = _name(row, old), had[row]
        if image in by_image:
            at = by_image[image]
            told["of another class"].append(f"{name}, now {_name(at, new)} of class {has[at][1]}")
        elif name in places:
            at = places[name]
            told["changed"].append(name)
        else:
            told["missing"].append(name)
            continue
        explained.add(at)
    told["new"] = [_name(row, new) for row in outside if row not in explained]
    return "; ".join(f"{kind}: {listed(names)}" for kind, names in told.items() if names)


def _name(row: int, names: Names) -> str:
    return f"row {row}" if names is None else names[row]


def _channels(images: Tensor, wanted: int) -> Tensor:
    """A folder of grey images becomes one of colours by a single file, and the other way round."""
    if images.shape[1] == wanted:
        return images
    return images[:, :1].expand(-1, wanted, -1, -1)


def _hashes(images: Tensor) -> list[str]:
    grey = ((row[:1] if torch.equal(row, row[:1].expand_as(row)) else row) for row in images)
    return [digest.hex() for digest in digests(grey, HASH)]


def _packed(known: Manifest) -> str | None:
    text = base64.b64encode(zlib.compress(json.dumps(asdict(known)).encode(), 1)).decode()
    return text if len(text) <= LONGEST else None


def _read(metadata: Mapping[str, str]) -> Manifest | None:
    return _unpacked(metadata[KEY]) if KEY in metadata else None


def _unpacked(packed: str) -> Manifest:
    """InputError for what is none."""
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(base64.b64decode(packed, validate=True), LARGEST)
        require(unpacking.eof, KEY, f"of at most {LARGEST} bytes", "more or less")
        told = json.loads(text)
        names = told["names"] if told["names"] is None else tuple(map(str, told["names"]))
        labels, hashes = tuple(map(int, told["labels"])), tuple(map(str, told["hashes"]))
        known = Manifest(tuple(map(str, told["classes"])), int(told["channels"]), labels, hashes, names)
        fits = len(labels) == len(hashes) and (names is None or len(names) == len(labels))
        fits = fits and all(0 <= label < len(known.classes) for label in labels) and known.channels > 0
        require(fits, KEY, "of one length in all its parts", "others")
    except (ValueError, KeyError, TypeError, zlib.error, RecursionError) as error:
        raise InputError(f"the checkpoint's manifest must be as amun train has written it, got {error}") from error
    return known
