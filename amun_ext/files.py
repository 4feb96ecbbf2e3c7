"""Write files and folders of results completely or not at all."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from amun_ext.locks import locked
from amun_ext.reading import read_json
from amun_ext.validation import InputError, differences, require

NOTE, REQUEST = "README.txt", "request.txt"
NOTE_TEXT = b"amun keeps here what a stopped command goes on with, and removes this folder when it is done.\n"
WITHOUT_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # errors of file systems without fsync
WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
OLD, NEW, SHOWN = "old", "new", "shown"  # two folders of results, and the link to the one that is shown


@contextlib.contextmanager
def workplace(folder: str | os.PathLike[str], command: str) -> Iterator[Path]:
    """A locked folder in `folder` for the intermediate files of `command`, removed when it is done.

    After a failure it stays for the next run, unless it is empty. A note in it marks it as ours. InputError for a
    folder without the note, and for one that another process uses.
    """
    folder = Path(folder)
    place, existed = folder / f"unfinished-{command}", folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / f".{place.name}.lock", place):
            _create(place)
            _replace_links(folder, place)
            try:
                yield place
            except BaseException:
                _replace_links(folder, place)
                if not _has_content(place):
                    _remove(place)
                raise
            _remove(place)
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def is_workplace(folder: Path) -> bool:
    """Whether `workplace` has made it."""
    return not folder.is_symlink() and _note_of(folder) == NOTE_TEXT


@contextlib.contextmanager
def removed_workplaces(places: Sequence[Path]) -> Iterator[None]:
    """Lock them, and remove them with their content after the body. InputError, before it, if a process uses one."""
    with contextlib.ExitStack() as locks:
        for place in places:
            locks.enter_context(locked(place.parent / f".{place.name}.lock", place))
        yield
        for place in places:
            _remove(place)


def _note_of(place: Path) -> bytes:
    note = place / NOTE
    return note.read_bytes() if note.is_file() and not note.is_symlink() else b""


def _create(place: Path) -> None:
    """After a kill the folder may exist without its note, or with a part of it."""
    no_link(place)
    with contextlib.suppress(FileExistsError):
        place.mkdir()
    found = {path.name for path in place.iterdir()} if place.is_dir() else {""}
    note = _note_of(place)
    ours = note == NOTE_TEXT or (found <= {NOTE} and NOTE_TEXT.startswith(note))
    require(ours, "out", f"free for a folder {place.name} of unfinished work", f"{place}, which is not of amun")
    if note != NOTE_TEXT:
        (place / NOTE).write_bytes(NOTE_TEXT)
    _delete(*place.glob(".*.partial"))  # of a dead process, because the lock is ours


def _delete(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _empty(place: Path) -> None:
    _delete(*(path for path in place.iterdir() if path.name != NOTE))


def keep_only(place: Path, request: str, overwrite: bool = False) -> None:
    """Keep the files of an earlier run of this request in its workplace.

    Those of another request are removed with `overwrite`, and are an InputError without.
    """
    path = place / REQUEST
    if path.is_file() and path.read_text(encoding="utf-8") == request:
        return
    expected = "free of another stopped request (run its command again to resume it, or --overwrite to remove it)"
    require(overwrite or not _has_content(place), "--out", expected, place)
    _empty(place)
    write_text(path, request)


def _has_content(place: Path) -> bool:
    return any(path.name not in (NOTE, REQUEST) for path in place.iterdir())


def _remove(place: Path) -> None:
    """The note last, so that the folder has it after a kill."""
    _empty(place)
    (place / NOTE).unlink(missing_ok=True)
    place.rmdir()


def no_link(path: Path) -> None:
    """InputError for a symbolic link, except one that a killed `atomic_folder` has left."""
    ours = path.is_symlink() and path.readlink().parts[1:] == (SHOWN, path.name)
    require(ours or not path.is_symlink(), "out", "without symbolic links in place of results", path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], scratch: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to; rename it to `path` on success, remove it on any failure.

    It is in a private new folder in `scratch`, by default beside `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch or path.parent, prefix=f".{path.name}.", suffix=".partial") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # as any new file; safetensors makes private ones
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str], place: Path) -> Iterator[Path]:
    """Yield a folder, whose files are moved into `folder` on success: all at once, or none.

    `place` is the workplace of the command in `folder`. While files are moved, the names in `folder` are links through
    one shared link, which a single rename switches from the old files to the new ones.
    """
    folder = Path(folder)
    for name in (NEW, OLD):
        (place / name).mkdir()
    yield place / NEW
    names = sorted(path.name for path in (place / NEW).iterdir())
    for name in names:
        no_link(folder / name)
        _sync(place / NEW / name)
    _sync(place / NEW)
    try:
        for name in names:
            if (folder / name).exists():
                os.link(folder / name, place / OLD / name)
        _link(OLD, place / SHOWN, place)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        for name in names:  # not at once, on a file system without links
            (place / NEW / name).replace(folder / name)
    else:
        for name in names:
            _link(f"{place.name}/{SHOWN}/{name}", folder / name, place)
        _link(NEW, place / SHOWN, place)
    _replace_links(folder, place)


def _link(target: str, path: Path, place: Path) -> None:
    """Make `path` a link, also if it exists."""
    temporary = place / "link"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    _sync(path.parent)


def _replace_links(folder: Path, place: Path) -> None:
    """Replace the links of `atomic_folder` by the files that they show, also after a kill at any time."""
    shown = place / SHOWN
    if shown.is_symlink():
        for path in sorted((place / shown.readlink()).iterdir()):
            path.replace(folder / path.name)
        for path in (place / NEW).iterdir():  # names that had no old file
            link = folder / path.name
            if link.is_symlink() and link.readlink() == Path(place.name, SHOWN, path.name):
                link.unlink()
        _sync(folder)
        shown.unlink()
    _delete(place / NEW, place / OLD)


def _sync(path: Path) -> None:
    """Flush to disk, so that a power failure cannot lose the content of a renamed file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() and error.errno not in WITHOUT_SYNC:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    scratch: Path | None = None,
) -> None:
    """Write a safetensors file, byte-equal for equal content. OSError if it cannot be written."""
    with atomic_path(path, scratch) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))  # it has no errno
            told = (int(number[1]), os.strerror(int(number[1])), str(path)) if number else (f"{path}: {error}",)
            raise OSError(*told) from error
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """By name, in place: safetensors writes it in a random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header |= {"__metadata__": dict(sorted(header.get("__metadata__", {}).items()))}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # always: it is the same JSON without spaces
            file.seek(8)
            file.write(text.ljust(size))


def write_text(path: str | os.PathLike[str], text: str, scratch: Path | None = None) -> None:
    """Write UTF-8; what it cannot encode, such as bytes of a file's name, is escaped."""
    with atomic_path(path, scratch) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], value: object, scratch: Path | None = None) -> None:
    """Write JSON. ValueError for NaN and infinity, which not every parser reads."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", scratch)


def file_digest(path: Path) -> str:
    """SHA-256, as sha256sum has it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def claim_folder(path: Path, identity: Mapping[str, object], what: str, scratch: Path | None = None) -> None:
    """Write the `identity` of the results in this folder to `path`. InputError if it has another identity there.

    what: what the results are, for the message.
    """
    if not path.exists():
        write_json(path, identity, scratch)
        return
    expected = f"a new folder or one of this {what}"
    try:
        found = read_json(path)
        differ = differences({name: found.get(name) for name in identity}, identity)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"out must be {expected}, got {path}: {error}") from error
    require(not differ, "out", expected, f"{path.parent}, of one with {differ}")


def to_jsonable(value: object) -> object:
    """The nearest JSON value: NaN and infinity become null, dataclasses objects, anything else its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
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
