"""The user's own data: a folder of images, an .npz file, or a function."""

import hashlib
import math
import re
import warnings
import zipfile
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from amun_ext.data.images import ImageDataset, row_hashes
from amun_ext.data.lazy import LazyImages, fits_memory
from amun_ext.data.splits import READ_AT_ONCE, Splits, image_dataset, read_dataset
from amun_ext.data.vision import INSTALL
from amun_ext.reading import check_file
from amun_ext.tensor_checks import check_labels
from amun_ext.validation import (
    InputError,
    call_user_function,
    is_number,
    listed,
    printable,
    require,
    unambiguous,
)

RGB, CHANNELS = 3, (1, 3, 4)
KEYS = "train_keys"  # in an .npz file
DEEP = {  # at the beginning of files whose tiles do not tell: more than 8 bits in the first component, or of colour
    "JPEG2000": rb"(?s)\xff\x4f\xff\x51.{38}[\x08-\x7f\x88-\xff]",
    "AVIF": rb"(?s)av1C..[\x40-\x7f\xc0-\xff]",
}
MOST_CLASSES = 2**16  # or the number of samples, if larger; a label of -1 as uint32 would make 4 billion classes


def load_folder(
    root: Path, known: Sequence[str] = (), resize: int | None = None, test_fraction: float | None = None
) -> Splits:
    """Read `root`/train/<class>/<image> and `root`/test/<class>/<image>, classes and images in alphabetical order.

    Training and test set must have the same classes, unless these are `known`: then some may be missing or new. With
    `test_fraction` the images are in `root`/<class>, and about this share of them is the test set. The split depends
    only on the content of each file, so adding or removing files does not move others, and equal files stay together.

    Images are rotated by their EXIF orientation. All must have one size, or are scaled and cropped to centred squares
    of `resize` pixels. They stay grey [1, H, W] if all are grey, otherwise all become RGB [3, H, W] (transparency is
    dropped). InputError names a file that is no 8-bit image or has another size. Files that start with a dot are
    ignored. Warns of symbolic links that lead out of `root`. More than 256 MiB of images are not kept in memory: their
    files are read again whenever they are used.
    """
    folders = {name for name in known if name == Path(name).name and name != ".."}
    find = _both_parts if test_fraction is None else partial(_divided, fraction=test_fraction)
    classes, files = find(root, folders)
    for name, found in files.items():
        expected = "a folder of images" if test_fraction is None else "of images for it with this test fraction"
        require(bool(found), str(root / name), expected, "no file in it")
    paths = [path for part in files.values() for path, _ in part]
    for path in paths:
        check_file("data", path, "a folder of images")
    _warn_of_links(root, paths)
    folder = _Folder([*files["train"], *files["test"]], resize)
    kept: list[Any] = []  # images, or hashes of lazy ones
    channels, shape = 1, (0, 0)
    for start in range(0, len(paths), READ_AT_ONCE):
        rows = range(start, min(start + READ_AT_ONCE, len(paths)))
        for row, (image, _) in zip(rows, folder.__getitems__(rows), strict=True):
            actual = image.shape[1], image.shape[2]
            shape = shape if row else actual
            require(actual == shape, str(paths[row]), f"of {paths[0]}'s height and width {shape}", actual)
            channels = max(channels, len(image))
            lazy = not fits_memory(len(paths), RGB * math.prod(shape))
            kept.append(row_hashes(image[None]) if lazy else image)

    def part(name: str, first: int) -> ImageDataset:
        rows = range(first, first + len(files[name]))
        labels = torch.tensor([label for _, label in files[name]], device="cpu")
        size = torch.Size((channels, *shape))
        if lazy:
            images = LazyImages(folder, size, torch.uint8, torch.arange(rows.start, rows.stop, device="cpu"))
            return ImageDataset(images, labels, name, hashes=np.concatenate(kept[rows.start : rows.stop]))
        pixels = torch.empty(len(rows), *size, dtype=torch.uint8, device="cpu")
        for image, row in zip(pixels, rows, strict=True):
            image.copy_(kept[row])
            kept[row] = None
        return ImageDataset(pixels, labels, name)

    names = tuple(path.relative_to(root).as_posix() for path, _ in files["train"])
    return Splits(part("train", 0), part("test", len(files["train"])), classes, names)


class _Folder(Dataset[tuple[Tensor, int]]):
    """The uint8 images [C, H, W] of files, read by as many threads as torch has."""

    def __init__(self, files: Sequence[tuple[Path, int]], resize: int | None) -> None:
        self.files, self.resize = files, resize

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        path, label = self.files[row]
        image = torch.from_numpy(read_image(path, self.resize))
        return image[None] if image.dim() == 2 else image.permute(2, 0, 1), label

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Tensor, int]]:
        threads = min(torch.get_num_threads(), len(rows))
        if threads < 2:
            return [self[row] for row in rows]
        with ThreadPoolExecutor(threads) as pool:
            return [*pool.map(self.__getitem__, rows)]


Files = dict[str, list[tuple[Path, int]]]  # with the number of their class


def _both_parts(root: Path, known: Set[str]) -> tuple[tuple[str, ...], Files]:
    """The classes, and the images of training and test set."""
    parts = any((root / part).is_dir() for part in ("train", "test"))
    divide = "a folder with train and test, or given with a test fraction (--test-fraction)"
    require(parts or not root.is_dir(), str(root), divide, "neither of them in it")
    classes = _folders(root / "train")
    test_classes = _folders(root / "test")
    if known:
        classes = test_classes = tuple(sorted({*known, *classes, *test_classes}))
    differ = {
        "without": [unambiguous(name) for name in classes if name not in test_classes],
        "with": [unambiguous(name) for name in test_classes if name not in classes],
    }
    actual = " and ".join(f"{kind} {listed(names)}" for kind, names in differ.items() if names)
    expected = f"the classes of train, {listed([*map(unambiguous, classes)])}"
    require(not actual, f"{root}/test", expected, f"those {actual}")
    return classes, {part: _labelled(root / part, classes, bool(known)) for part in ("train", "test")}


def _divided(root: Path, known: Set[str], fraction: float) -> tuple[tuple[str, ...], Files]:
    require(is_number(fraction) and 0 < fraction < 1, "test fraction", "between 0 and 1, both excluded", fraction)
    classes = tuple(sorted({*known, *_folders(root)}))
    files: Files = {"train": [], "test": []}
    for path, label in _labelled(root, classes, bool(known)):
        check_file("data", path, "a folder of images")
        drawn = int.from_bytes(hashlib.blake2b(path.read_bytes(), digest_size=8).digest()) / 2**64
        files["test" if drawn < fraction else "train"].append((path, label))
    return classes, files


def _labelled(folder: Path, classes: Sequence[str], may_lack: bool) -> list[tuple[Path, int]]:
    return [(path, label) for label, name in enumerate(classes) for path in _images(folder / name, may_lack)]


def load_npz(path: Path, classes: tuple[str, ...] | None = None) -> Splits:
    """Read the arrays train_images, train_labels, test_images and test_labels; others are ignored.

    Images are uint8, or floating point in [0, 1]; [N, H, W], [N, C, H, W], or [N, H, W, C] if the last axis has 1, 3
    or 4 entries and the second has not (InputError if both have). Labels are integers [N]; classes are called "0",
    "1", ... up to the largest training label unless named. An array train_keys [N] of different texts or integers has
    the keys of the training samples in requests.
    """
    names = [f"{part}_{kind}" for part in ("train", "test") for kind in ("images", "labels")]
    check_file("data", path)
    try:
        _check_unpacked(path)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in [*names, KEYS] if name in file.files}
    except InputError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise InputError(f"{path} must be a readable .npz file of plain arrays: {error}") from error
    missing = [name for name in names if name not in arrays]
    require(not missing, str(path), f"an .npz file with {', '.join(names)}", f"one without {', '.join(missing)}")

    def part(name: str) -> ImageDataset:
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
        pixels = images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)
        require(pixels, f"{name}_images", "uint8, or floating point in [0, 1]", images.dtype)
        require(labels.dtype.kind in "iu", f"{name}_labels", "integers", labels.dtype)
        images = _channels_first(images, f"{name}_images")
        require(labels.shape == images.shape[:1], f"{name}_labels", f"of shape {images.shape[:1]}", labels.shape)
        if len(labels):
            low, high = int(labels.min()), int(labels.max())  # before int64, which may overflow
            most = max(MOST_CLASSES, len(labels))
            fits = low >= 0 and high < most
            require(fits, f"{name}_labels", f"classes in [0, {most})", f"values from {low} to {high}")
        return image_dataset(images, labels, name)

    train, test, keys = part("train"), part("test"), arrays.get(KEYS)
    if keys is not None:
        fits = keys.ndim == 1 and keys.dtype.kind in "Uiu"
        require(fits, KEYS, "[N] texts or integers", f"{keys.dtype} {list(keys.shape)}")
    return Splits(train, test, classes or _numbered(train), None if keys is None else tuple(map(str, keys.tolist())))


def load_function(name: str) -> Splits:
    """Call "module:function" without arguments. It returns Splits, or a pair (train, test) of map-style datasets of
    (image tensor, int label); classes are then train.classes, if any, or numbers. The keys of the training samples in
    requests are train.keys(), if any."""
    value = call_user_function("data set", name)
    if isinstance(value, Splits):
        return value
    if not (isinstance(value, tuple | list) and len(value) == 2):
        actual = type(value).__name__
        raise InputError(f"what {name} returns must be Splits or a pair (train, test) of datasets, got {actual}")
    named = {f"{name} train": value[0], f"{name} test": value[1]}
    train, test = (read_dataset(data, of) for of, data in named.items())
    classes, keys = tuple(map(str, getattr(value[0], "classes", _numbered(train)))), getattr(value[0], "keys", None)
    return Splits(train, test, classes, tuple(map(str, keys())) if callable(keys) else None)


def _numbered(train: ImageDataset) -> tuple[str, ...]:
    labels = train.labels
    check_labels("train labels", labels, len(labels), max(MOST_CLASSES, len(labels)))
    return tuple(map(str, range(int(labels.max()) + 1 if len(labels) else 0)))


def _folders(folder: Path) -> tuple[str, ...]:
    require(folder.is_dir(), str(folder), "a folder with one folder per class", "nothing")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    require(bool(names), str(folder), "a folder with one folder per class", "no folder in it")
    odd = [name for name in names if printable(name) != name]
    require(not odd, str(folder), "of folders with names that can be printed", listed([*map(printable, odd)]))
    return tuple(names)


def _images(folder: Path, may_lack: bool) -> list[Path]:
    if may_lack and not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    require(may_lack or bool(paths), str(folder), "a folder of images", "no file in it")
    return paths


def read_image(path: Path, resize: int | None = None) -> NDArray[np.uint8]:
    """uint8 [H, W] of a grey image, [H, W, 3] of any other."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InputError(f"image folders need Pillow: {INSTALL} ({error})") from error
    try:
        with Image.open(path) as image:
            mode, deep = image.mode, _is_deep(image, path)
            require(not deep, str(path), "an image with 8 bits per channel", f"mode {mode} of more bits")
            still = not getattr(image, "is_animated", False) or image.format == "MPO"  # a photo with previews
            require(still, str(path), "an image", f"an animation or several pages ({image.format})")
            pixels = ImageOps.exif_transpose(image).convert("L" if mode in ("1", "L", "LA") else "RGB")
            if resize is not None:
                pixels = ImageOps.fit(pixels, (resize, resize), Image.Resampling.BILINEAR)
            return np.array(pixels)
    except InputError:
        raise
    except Exception as error:  # a decoder may raise anything
        raise InputError(f"{path} must be an image: {error}") from error


def _is_deep(image: Any, path: Path) -> bool:
    """Whether its file has more than 8 bits per channel, which Pillow would cut to 8."""
    if image.mode.startswith(("I", "F")) or any(part[0] == "SGI16" for part in image.tile):
        return True
    if image.format in DEEP:
        with path.open("rb") as file:
            return re.search(DEEP[image.format], file.read(2**16)) is not None
    arguments = [part[3] for part in image.tile]  # the layout of its bytes, such as "RGB;16B"
    values = [each for some in arguments for each in (some if isinstance(some, tuple) else (some,))]
    packed = any(isinstance(each, str) and re.search(r"(?<!BGR);16", each) for each in values)
    return packed or (image.format == "PPM" and any(isinstance(each, int) and each > 255 for each in values))


def _warn_of_links(root: Path, paths: list[Path]) -> None:
    """Warn of images outside the folder, which are not copied or deleted with it."""
    inside = root.resolve()
    links = [path for path in paths if any(each.is_symlink() for each in (path, *path.parents[:2]))]
    out = [path for path in links if not path.resolve().is_relative_to(inside)]
    if out:
        message = f"{len(out)} of {len(paths)} images are symbolic links that lead out of {root}, such as {out[0]}"
        warnings.warn(message, stacklevel=2)


def _check_unpacked(path: Path) -> None:
    """InputError for an archive that would fill the memory; images do not compress by such a ratio."""
    with zipfile.ZipFile(path) as packed:
        size, most = sum(part.file_size for part in packed.infolist()), max(2**28, 200 * path.stat().st_size)
    require(size <= most, str(path), f"an .npz file of at most {most} bytes unpacked", size)


def _channels_first(images: NDArray[Any], name: str) -> NDArray[Any]:
    require(images.ndim in (3, 4), name, "[N, H, W], [N, C, H, W] or [N, H, W, C]", f"shape {images.shape}")
    if images.ndim == 3 or images.shape[3] not in CHANNELS:
        return images
    clear = images.shape[1] not in CHANNELS
    require(clear, name, "clear about which axis holds the channels", f"shape {images.shape}")
    return images.transpose(0, 3, 1, 2)
