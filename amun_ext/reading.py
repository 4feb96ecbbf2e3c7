"""Read untrusted files: regular files only, of limited size, and strict JSON."""

import json
import math
import os
import stat
from typing import Any

from amun_ext.validation import InputError, require

LARGEST = 32 * 2**20  # bytes of a file that is read as a whole
DEEPEST = 32  # levels of nested lists and objects


def check_file(argument: str, path: str | os.PathLike[str], expected: str = "a file") -> None:
    """InputError unless `path` is a regular file that can be read: reading a pipe could block for ever."""
    try:
        mode = os.stat(path).st_mode
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        require(stat.S_ISREG(mode), argument, expected, f"{path}, which is {kind}")
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError as error:
        raise InputError(f"{argument} must be {expected}, got {path}, which does not exist") from error
    except OSError as error:
        raise InputError(f"{argument} must be {expected} that can be read, got {path}: {error.strerror}") from error


def read_text(argument: str, path: str | os.PathLike[str], expected: str) -> str:
    """The text of a UTF-8 file of at most `LARGEST` bytes, without a byte order mark. InputError for others."""
    check_file(argument, path, expected)
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        require(len(content) <= LARGEST, argument, f"{expected} of at most {LARGEST} bytes", f"{path}, which has more")
        return content.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{argument} must be {expected}, got {path}: {error}") from error


def read_json(path: str | os.PathLike[str], argument: str = "", expected: str = "a file") -> Any:
    """The value in a JSON file. InputError as `read_text`, whose argument is by default the path, and `parse_json`."""
    return parse_json(str(path), read_text(argument or str(path), path, expected))


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or damaged."""
    try:
        value = read_json(path)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def parse_json(name: str, text: str) -> Any:
    """The value of a JSON text. InputError for NaN, infinite numbers and repeated keys, which Python's parser accepts,
    and for more than `DEEPEST` levels."""

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
