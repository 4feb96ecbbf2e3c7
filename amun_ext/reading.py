"""Read untrusted files: regular files only, of limited size, and strict JSON."""

import json
import math
import os
import stat
from typing import Any

from amun_ext.validation import InputError, require

LARGEST = 32 * 2**20  # bytes of a file that is read as a whole
DEEPEST = 32  # lists and objects within each other


def check_file(argument: str, path: str | os.PathLike[str], expected: str = "a file") -> None:
    """Refuse what is not a regular file that can be read: a pipe that nobody writes to is waited for for ever."""
    try:
        mode = os.stat(path).st_mode
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        require(stat.S_ISREG(mode), argument, expected, f"{path}, which is {kind}")
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError as error:
        raise InputError(f"{argument} must be {expected}, got {path}, which does not exist") from error
    except OSError as error:
        raise InputError(f"{argument} must be {expected} that can be read, got {path}: {error.strerror}") from error


def text_of(argument: str, path: str | os.PathLike[str], expected: str) -> str:
    """The text of a file, UTF-8 with or without a byte order mark. InputError also for more than `LARGEST` bytes."""
    check_file(argument, path, expected)
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        require(len(content) <= LARGEST, argument, f"{expected} of at most {LARGEST} bytes", f"{path}, which has more")
        return content.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{argument} must be {expected}, got {path}: {error}") from error


def stored(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none that is whole."""
    try:
        value = parse_json(str(path), text_of(str(path), path, "a file"))
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def parse_json(name: str, text: str) -> Any:
    """The value of a JSON text. InputError for what Python takes beside JSON, NaN and infinite numbers or a key twice,
    and for what is deeper than anything that this package writes."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("an object that has a key twice")
        return dict(pairs)

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number[:20]}, which no JSON has")
        return value

    try:
        value = json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise InputError(f"{name} must be JSON of at most {DEEPEST} levels, got more") from error
    except ValueError as error:
        raise InputError(f"{name} must be JSON, got {error}") from error
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _inside(outer)]:
        depth += 1
    require(depth <= DEEPEST, name, f"JSON of at most {DEEPEST} levels", depth)
    return value


def _inside(value: Any) -> list[Any]:
    return [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
