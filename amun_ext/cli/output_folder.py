"""The folder --out: checks before any work, earlier results in it, and the printed result."""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amun_ext.deletion.results import MODEL, NEW_DIGEST, REPORT, RESULTS
from amun_ext.digest import digest
from amun_ext.distributed import by_first_rank
from amun_ext.files import file_digest, no_link
from amun_ext.reading import read_object
from amun_ext.report import Document, Result, text
from amun_ext.report.tables import Column, Row, Table, value
from amun_ext.validation import is_integer, printable, require

RECORDS = (REPORT, "audit.json", "compare.json", "searches.json", "tuned.json")  # every folder of results has one
TABLES = "tables"
NO_OTHER_RESULT = "a folder without another result (--overwrite replaces it)"


def _check_name(path: Path) -> None:
    utf8 = not any("\ud800" <= letter <= "\udfff" for letter in str(path))  # safetensors opens no other
    require(utf8, "--out", "a name in UTF-8", ascii(str(path)))
    require(printable(str(path)) == str(path), "--out", "a path that can be printed", path)


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that results cannot be written to."""
    _check_name(folder)
    links = [path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()]
    require(not links, "--out", "in a folder", f"{links and links[0]}, a broken symbolic link")
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    require(existing.is_dir(), "--out", "in a folder", f"{existing}, which is a file")
    require(os.access(existing, os.W_OK), "--out", "in a folder that can be written to", existing)


def check_free(folder: Path, *names: str) -> None:
    """Refuse folders and links in the place of these files."""
    for name in names:
        require(not (folder / name).is_dir(), "--out", f"free to hold a file {name}", "a folder of that name")
        no_link(folder / name)


def check_out_file(path: Path) -> None:
    """Refuse, before any work, a file --out that cannot be written, or not as .safetensors."""
    _check_name(path)
    require(path.suffix == ".safetensors", "--out", "a path that ends in .safetensors", path)
    check_folder(path.parent)
    check_free(path.parent, path.name)


def check_out(options: argparse.Namespace, *names: str, own: Sequence[str] = ()) -> None:
    """Refuse, before any work, a folder --out that cannot take files of these `names` and, with --tables, the tables.

    own: names of files that only amun may have written, of which the first is a document with facts. A run that is
    killed while it puts its first results in place leaves links to nothing, which are not refused.
    """
    check_folder(options.out)
    check_free(options.out, *names)
    foreign = [name for name in own if (options.out / name).is_file()]
    ours = not foreign or bool(report_facts(options.out, own[0]))
    expected = f"a folder without other files of these names: {', '.join(own)}"
    require(ours, "--out", expected, f"{options.out}, with {', '.join(foreign)} that amun has not written")
    if options.tables:
        tables = options.out / TABLES
        no_link(tables)
        earlier = any((options.out / name).is_file() for name in RECORDS)  # checked above
        require(earlier or not tables.exists(), "--out", f"without a folder {TABLES} of other files", options.out)
        check_folder(tables)


def report_facts(folder: Path, name: str = REPORT) -> dict[str, Any]:
    """The facts of a report in the folder; empty where there is none."""
    facts = read_object(folder / name).get("facts")
    return facts if isinstance(facts, dict) else {}


def finished_request(folder: Path, request: str) -> dict[str, Any] | None:
    """The facts of this request, if the folder has all of its results, unchanged."""
    facts = report_facts(folder)
    missing = facts.get("ids_without_example")
    whole = isinstance(missing, list) and all(map(is_integer, missing))
    whole = whole and facts.get("request") == request and all((folder / name).is_file() for name in RESULTS)
    return facts if whole and file_digest(folder / MODEL) == facts.get(NEW_DIGEST) else None


def describe_request(facts: dict[str, Any]) -> str:
    """A request, by the facts of its report, printable."""
    ids = facts.get("ids")
    ids = ids if isinstance(ids, list) else []
    named = ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    return printable(f"the request of {facts.get('date', 'an unknown date')} to forget {named or 'some ids'}")


def request_digest(model: Path, *parts: object) -> str:
    """A digest of the model's file and of the samples and settings."""
    return digest({}, json.dumps([file_digest(model), *parts]))


def check_no_other_result(options: argparse.Namespace, names: Sequence[str], request: str | None = None) -> None:
    """Refuse to replace a result of another request, unless with --overwrite."""
    record = next(name for name in names if name in RECORDS)
    facts = report_facts(options.out, record)
    there = [name for name in names if (options.out / name).exists()]
    replaced = options.overwrite or not there or (request is not None and facts.get("request") == request)
    found = ", ".join(there)
    if facts:
        found = describe_request(facts) if record == REPORT else f"{record} of another model or other samples"
    require(replaced, "--out", NO_OTHER_RESULT, f"{options.out}, with {found}")


def print_profile(options: argparse.Namespace, stages: Mapping[str, float]) -> None:
    """With --profile, print the seconds of each stage, of all else, and their share of the whole command."""
    if options.profile:
        whole = time.perf_counter() - options.started
        seconds = {**stages, "start, reading, checks, writing": whole - sum(stages.values()), "all": whole}
        rows = [Row(name, [value(took, 2), value(100 * took / whole, 1)]) for name, took in seconds.items()]
        table = Table("profile", "stage", [Column("seconds"), Column("%")], rows)
        print(text.render(Document("Profile", [table])) + "\n")


@by_first_rank
def print_result(options: argparse.Namespace, result: Result, written: str) -> None:
    """Print a result, and what was written; with --tables also write these."""
    if options.tables:
        result.write_tables(options.out / TABLES)
        written += f" (and its folder {TABLES})"
    print(f"{result.to_text()}\n\nwrote {written}")
