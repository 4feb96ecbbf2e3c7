"""load: labelled images by name, from files, or from the user's own function."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from amun_ext.data import cifar10, custom, digits, fashion_mnist, tiny_imagenet
from amun_ext.data.splits import Splits, checked
from amun_ext.plugins import PluginTable
from amun_ext.validation import InputError, check_integer, require

Loader: TypeAlias = Callable[[Path, bool], Splits]  # of (root, download)
# A new data set is one file and one row. Other packages add theirs by an entry point.
DATASETS: PluginTable[Loader] = PluginTable(
    "amun_ext.datasets",
    Callable,  # type: ignore[arg-type]
    {
        "fashion-mnist-mini": fashion_mnist.load_mini,
        "digits": digits.load,
        "fashion-mnist": fashion_mnist.load,
        "cifar10": cifar10.load,
        "tiny-imagenet": tiny_imagenet.load,
    },
)


def load(
    name: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    classes: Sequence[str] = (),
    resize: int | None = None,
    test_fraction: float | None = None,
) -> Splits:
    """Load a data set: a name in DATASETS, a folder of images, an .npz file, or "module:function" (see `data.custom`).

    `root` is the folder with the files of fashion-mnist, cifar10 and tiny-imagenet, by default ./data; only
    `download=True` lets the first two use the network. `classes`, `resize` and `test_fraction` are for image folders
    (see `data.custom.load_folder`).
    Images are float32 [N, C, H, W] in [0, 1], labels int64 [N]. InputError for an unknown name, for missing or damaged
    files, and for images and labels that do not fit together.
    """
    name = os.fspath(name)
    folder = os.path.isdir(name) and name not in DATASETS
    if resize is not None:
        resize = check_integer("resize", resize, 1)
    for argument, value in (("resize", resize), ("test fraction", test_fraction)):
        require(folder or value is None, argument, f"left out: {name} is no folder of images", value)
    if name in DATASETS:
        return checked(DATASETS[name](Path("data" if root is None else root), download), name)
    path = Path(name)
    if folder:
        return checked(custom.load_folder(path, classes, resize, test_fraction), name)
    if path.suffix == ".npz":
        return checked(custom.load_npz(path), name)
    if ":" in name:
        return checked(custom.load_function(name), name)
    raise InputError(
        f"data set must be one of {', '.join(DATASETS)}, a folder with train/<class>/ and test/<class>/, "
        f"an .npz file or module:function, got {name!r}"
    )
