"""Files that are whole or absent: written beside their name first, renamed when complete."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from amun_ext.checks import InputError, differences, require

NOTE = "README.txt"
NOTED = b"amun keeps here what a stopped command goes on with, and removes this folder when it is done.\n"


def workplace(folder: str | os.PathLike[str], command: str) -> Path:
    """A folder in `folder` for what `command` keeps until it is done, and then removes as a whole.

    It has a note that tells it from any other, of which nothing is used or removed. InputError for another's.
    """
    place = Path(folder) / f"unfinished-{command}"
    no_link(place)
    try:
        place.mkdir(parents=True)
    except FileExistsError:
        note = place / NOTE  # a kill may have come before it was written
        ours = place.is_dir() and ((note.is_file() and note.read_bytes() == NOTED) or not any(place.iterdir()))
        got = f"{place}, which is not such a one"
        require(ours, "out", f"free to hold a folder {place.name} of what is not finished", got)
    write_text(place / NOTE, NOTED.decode())
    return place


def no_link(path: Path) -> None:
    """Refuse to write through a symbolic link to where nobody has said."""
    require(not path.is_symlink(), "out", "free of symbolic links where results are to be", path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private; a result is as readable as any other file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def all_or_none(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`, whose files are put into it on success: all of them or, else, none."""
    folder = Path(folder)
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as made:
            yield Path(made)
            for path in sorted(Path(made).iterdir()):
                path.replace(folder / path.name)
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):  # something else is in it by now
                folder.rmdir()
        raise


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file. OSError when it cannot be written."""
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write JSON that every parser reads: NaN and infinity are refused, not written."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def claim(path: Path, identity: Mapping[str, object], what: str) -> None:
    """Write down whose folder it is that `path` is in. InputError, which calls it one of this `what`, for another's."""
    if not path.exists():
        write_json(path, identity)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differ = differences({name: found.get(name) for name in identity}, identity)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"out must be a new folder or one of this {what}, got {path}: {error}") from error
    must_be = f"a new folder or one of this {what}"
    require(not differ, "out", must_be, f"{path.parent}, of one with {differ}")


def plain(value: object) -> object:
    """The nearest JSON value: a number that JSON has no word for becomes null, an unknown object its text."""
    match value:
        case np.generic():
            return plain(value.item())
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [plain(entry) for entry in value]
    return str(value)
