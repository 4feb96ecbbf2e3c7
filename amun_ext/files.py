"""Files that are whole or absent: written elsewhere first, renamed when complete."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from amun_ext.locks import locked
from amun_ext.reading import parse_json, text_of
from amun_ext.validation import InputError, differences, require

NOTE, REQUEST = "README.txt", "request.txt"
NOTE_TEXT = b"amun keeps here what a stopped command goes on with, and removes this folder when it is done.\n"
WITHOUT_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
OLD, NEW, SHOWN = "old", "new", "shown"  # folders of results that are put in place, and the link to one of them


@contextlib.contextmanager
def workplace(folder: str | os.PathLike[str], command: str) -> Iterator[Path]:
    """A locked folder in `folder` for what `command` keeps until it is done; then it is removed.

    After a failure it stays, if it holds anything, for the next run. A note in it marks it as ours: a folder without
    one is neither used nor removed. InputError for such a folder, and when another process uses this one.
    """
    folder = Path(folder)
    place, there = folder / f"unfinished-{command}", folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / f".{place.name}.lock", place):
            _enter(place)
            _settle(folder, place)
            try:
                yield place
            except BaseException:
                _settle(folder, place)
                if not _holds_something(place):
                    _remove(place)
                raise
            _remove(place)
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):  # something is in it by now
                folder.rmdir()
        raise


def is_workplace(folder: Path) -> bool:
    """Whether `workplace` has made it."""
    note = folder / NOTE
    return not folder.is_symlink() and note.is_file() and not note.is_symlink() and note.read_bytes() == NOTE_TEXT


def remove_workplace(place: Path) -> None:
    """With all that a stopped command would go on with. InputError when a process uses it."""
    with locked(place.parent / f".{place.name}.lock", place):
        _remove(place)


def _enter(place: Path) -> None:
    """A kill may have come before the note was written, or after all but the note was removed."""
    no_link(place)
    note = place / NOTE
    with contextlib.suppress(FileExistsError):
        place.mkdir()
    found = {path.name for path in place.iterdir()} if place.is_dir() else {""}
    content = note.read_bytes() if note.is_file() and not note.is_symlink() else b""
    ours = content == NOTE_TEXT or (found <= {NOTE} and NOTE_TEXT.startswith(content))
    expected = f"free for a folder {place.name} of unfinished work"
    require(ours, "out", expected, f"{place}, which is not of amun")
    if content != NOTE_TEXT:
        note.write_bytes(NOTE_TEXT)
    _delete(*place.glob(".*.partial"))  # a dead run's, because the lock is ours


def _delete(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _empty(place: Path) -> None:
    _delete(*(path for path in place.iterdir() if path.name != NOTE))


def keep_only(place: Path, request: str, overwrite: bool = False) -> None:
    """Keep what an earlier run of this request has left in its workplace.

    What another request has left is removed with `overwrite`, else an InputError.
    """
    path = place / REQUEST
    if path.is_file() and path.read_text(encoding="utf-8") == request:
        return
    expected = "free of another stopped request (run its command again to resume it, or --overwrite to remove it)"
    require(overwrite or not _holds_something(place), "--out", expected, place)
    _empty(place)
    write_text(path, request)


def _holds_something(place: Path) -> bool:
    return any(path.name not in (NOTE, REQUEST) for path in place.iterdir())


def _remove(place: Path) -> None:
    """The note last, so that a folder left by a kill still has it."""
    _empty(place)
    (place / NOTE).unlink(missing_ok=True)
    place.rmdir()


def no_link(path: Path) -> None:
    """Refuse to write through a symbolic link, except through one that `atomic_folder` has left."""
    ours = path.is_symlink() and path.readlink().parts[1:] == (SHOWN, path.name)
    require(ours or not path.is_symlink(), "out", "without symbolic links in place of results", path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], scratch: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to; rename it to `path` on success, remove it on any failure.

    It is in a new folder of its own, which only we can read, in `scratch` or else that of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch or path.parent, prefix=f".{path.name}.", suffix=".partial") as made:
        temporary = Path(made) / path.name
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # safetensors makes it private; a result is as readable as any other file
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str], place: Path) -> Iterator[Path]:
    """Yield a folder, whose files are moved into `folder` on success: all at once, or none.

    `place` is the workplace of the command in `folder`. While files are moved each name in `folder` is a link by way of
    one shared link, to the old files or to the new ones: to change that one takes a single rename.
    """
    folder = Path(folder)
    for name in (NEW, OLD):
        (place / name).mkdir()
    yield place / NEW
    made = sorted(path.name for path in (place / NEW).iterdir())
    for name in made:
        no_link(folder / name)
        _sync(place / NEW / name)
    _sync(place / NEW)
    try:
        for name in made:
            if (folder / name).exists():
                os.link(folder / name, place / OLD / name)
        _link(OLD, place / SHOWN, place)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        for name in made:  # one by one: without links there is no better way
            (place / NEW / name).replace(folder / name)
    else:
        for name in made:
            _link(f"{place.name}/{SHOWN}/{name}", folder / name, place)
        _link(NEW, place / SHOWN, place)
    _settle(folder, place)


def _link(target: str, path: Path, place: Path) -> None:
    """In place of what was there."""
    temporary = place / "link"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    _sync(path.parent)


def _settle(folder: Path, place: Path) -> None:
    """Turn links into files again, old or new ones, as they are after a kill at any time."""
    shown = place / SHOWN
    if shown.is_symlink():
        for path in sorted((place / shown.readlink()).iterdir()):
            path.replace(folder / path.name)
        for path in (place / NEW).iterdir():  # where nothing was before
            ours = folder / path.name
            if ours.is_symlink() and ours.readlink() == Path(place.name, SHOWN, path.name):
                ours.unlink()
        _sync(folder)
        shown.unlink()
    _delete(place / NEW, place / OLD)


def _sync(path: Path) -> None:
    """Onto the disk, so that no power failure comes between a file and its name."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() and error.errno not in WITHOUT_SYNC:  # not every file system can do it
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    scratch: Path | None = None,
) -> None:
    """A safetensors file, the same for the same content. OSError when it cannot be written."""
    with atomic_path(path, scratch) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """By name, in place: safetensors has them in another order each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header |= {"__metadata__": dict(sorted(header.get("__metadata__", {}).items()))}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # it is: the same JSON without spaces, but for those at its end
            file.seek(8)
            file.write(text.ljust(size))


def write_text(path: str | os.PathLike[str], text: str, scratch: Path | None = None) -> None:
    """In UTF-8; what it has no characters for, such as bytes of a file's name, is escaped."""
    with atomic_path(path, scratch) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], value: object, scratch: Path | None = None) -> None:
    """Write JSON that every parser reads: NaN and infinity are refused, not written."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", scratch)


def file_digest(path: Path) -> str:
    """SHA-256, as sha256sum has it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def claim_folder(path: Path, identity: Mapping[str, object], what: str, scratch: Path | None = None) -> None:
    """Write the `identity` of the results in this folder to `path`, or refuse a folder whose identity is another.

    what: what the results are, for the message.
    """
    if not path.exists():
        write_json(path, identity, scratch)
        return
    try:
        found = parse_json(str(path), text_of(str(path), path, "a file"))
        differ = differences({name: found.get(name) for name in identity}, identity)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"out must be a new folder or one of this {what}, got {path}: {error}") from error
    expected = f"a new folder or one of this {what}"
    require(not differ, "out", expected, f"{path.parent}, of one with {differ}")


def to_jsonable(value: object) -> object:
    """The nearest JSON value: NaN and infinity become null, an unknown object its text."""
    match value:
        case np.generic():
            return to_jsonable(value.item())
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): to_jsonable(entry) for key, entry in value.items()}
        case list() | tuple():
            return [to_jsonable(entry) for entry in value]
    return str(value)
