"""The ledger of a model: one line for every request that led to it, each bound to the line before it by a hash.

It is a file of JSON Lines beside the checkpoint; the ledger of the next request has the same lines and one more. It
contains no names: keys of samples are hashed with the request, so that a sample is found only by its key.
"""

import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amun_ext.files import file_digest
from amun_ext.reading import parse_json, read_object, read_text
from amun_ext.validation import require

FILE = "ledger.jsonl"
RECORD, LINE = "record.json", "ledger_line"  # the record beside it has the hash of its last line
MODEL = "model.safetensors"  # beside it, which its last line is of
SIGNATURE = "signature"
NUMBER, PREVIOUS, PARENT, CHILD, KEYS, REQUEST = "number", "previous", "parent", "child", "keys", "request"
TEXTS = (PARENT, CHILD, REQUEST)

Entry = Mapping[str, Any]


def hashed_keys(keys: Iterable[str], request: str) -> list[str]:
    """What the ledger knows samples by: BLAKE2b of each key, keyed by the digest of the request."""
    salt = request.encode()
    return [hashlib.blake2b(key.encode(errors="surrogateescape"), key=salt, digest_size=16).hexdigest() for key in keys]


def append(before: str, entry: Entry, sign: Callable[[str], str] | None = None) -> str:
    """The text of a ledger with one entry more: `number` and `previous`, the hash of the last line, are added to it.

    sign: from the line to its signature, which is added as well.
    """
    lines = before.splitlines()
    bound = {**entry, NUMBER: len(lines) + 1, PREVIOUS: _hash(lines[-1]) if lines else None}
    signed = {} if sign is None else {SIGNATURE: sign(_line(bound))}
    return f"{before}{_line({**bound, **signed})}\n"


def unsigned(entry: Entry) -> tuple[str, object]:
    """The line that was signed, and its signature, None where there is none."""
    return _line({name: value for name, value in entry.items() if name != SIGNATURE}), entry.get(SIGNATURE)


def entries(text: str, name: str) -> list[dict[str, Any]]:
    """Those of a ledger with this text. InputError names the first line that is no entry, or not bound to the one
    before it, be it changed, moved, or left alone when another was taken out."""
    found: list[dict[str, Any]] = []
    require(text.endswith("\n") or not text, name, "a ledger of whole lines", "a truncated one")
    lines = text.split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        where = f"{name} line {number}"
        entry = parse_json(where, line)
        fits = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in TEXTS)
        fits = fits and isinstance(entry.get(KEYS), list) and all(isinstance(key, str) for key in entry[KEYS])
        require(fits, where, "an entry of a ledger", reprlib.repr(line))
        require(entry.get(NUMBER) == number, where, f"number {number}", reprlib.repr(entry.get(NUMBER)))
        previous = _hash(lines[number - 2]) if number > 1 else None
        bound = entry.get(PREVIOUS) == previous
        require(bound, where, "with the hash of the line before", "another hash")
        models = [entry[PARENT], entry[CHILD]]
        together = bool(found) and models == [found[-1][PARENT], found[-1][CHILD]]  # requests of one fine-tuning
        follows = not found or together or entry[PARENT] == found[-1][CHILD]
        require(follows, where, "of the model of the line before", "another model")
        found.append(entry)
    return found


def read(folder: Path) -> list[dict[str, Any]]:
    """The entries of the ledger in the folder, the last of which is of the model in it. InputError as `entries`, for no
    model or another, and without the record that was written with it, which has the hash of its last line."""
    require(folder.is_dir(), "folder", "a folder that amun forget has written", folder)
    path, made, record = folder / FILE, folder / MODEL, read_object(folder / RECORD)
    text = read_text("ledger", path, "a ledger of amun forget")
    found = entries(text, str(path))
    require(bool(found), str(path), "a ledger with an entry", "an empty one")
    require(made.is_file(), str(path), f"beside its {MODEL}", "no such file there")
    child = found[-1][CHILD]
    require(
        file_digest(made) == child,
        str(path),
        f"of the {MODEL} beside it",
        "of another model, or without its last lines",
    )
    ours = record.get(CHILD) == child
    require(ours, str(path), f"beside the {RECORD} that has the hash of its last line", "none or another")
    same = record.get(LINE) == line_hash(text)
    require(same, f"{path} line {len(found)}", f"as it was when {RECORD} was written", "another")
    written = "".join(f"{_line(entry)}\n" for entry in found).encode()
    require(path.read_bytes() == written, str(path), "byte for byte what amun forget wrote", "an edited file")
    return found


def text_beside(model: Path) -> str:
    """What the ledger of the next checkpoint begins with: that beside this one, if amun forget has made it. InputError
    as `read`."""
    path = model.parent / FILE
    if model.name != MODEL or not path.is_file():
        return ""
    read(model.parent)
    return read_text("ledger", path, "a ledger of amun forget")


def line_hash(text: str) -> str:
    """Of the last line of a ledger with this text."""
    return _hash(text.splitlines()[-1])


def having(found: Sequence[Entry], key: str) -> list[Entry]:
    """The entries of requests for the sample with this key."""
    return [entry for entry in found if hashed_keys([key], entry[REQUEST])[0] in entry[KEYS]]


def rows_of(entry: Entry, keys: Sequence[str]) -> list[int]:
    """The rows of the samples of a request, by the keys of all samples, "" of one that is erased."""
    known = {*entry[KEYS]}
    hashed = hashed_keys(keys, entry[REQUEST])
    return [row for row, key in enumerate(keys) if key and hashed[row] in known]


def _line(entry: Entry) -> str:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
