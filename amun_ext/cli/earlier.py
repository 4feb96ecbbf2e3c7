"""Earlier results in the folder --out: those of the same request, which are kept, or of another, which are refused."""

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import Any

from amun_ext.deletion.results import MODEL, NEW_DIGEST, REPORT, RESULTS
from amun_ext.digest import digest
from amun_ext.files import file_digest
from amun_ext.reading import read_object
from amun_ext.validation import is_integer, printable, require

RECORDS = (REPORT, "audit.json", "compare.json", "searches.json", "tuned.json")  # one is in every folder of results
MUST_BE = "a folder without another result (--overwrite replaces it)"


def now() -> str:
    """UTC, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def facts(folder: Path, name: str = "report.json") -> dict[str, Any]:
    """Those of a report in the folder."""
    found = read_object(folder / name).get("facts")
    return found if isinstance(found, dict) else {}


def finished(folder: Path, request: str) -> dict[str, Any] | None:
    """The facts of this very request, where all of its results are in the folder, as they were written."""
    found = facts(folder)
    missing = found.get("ids_without_example")
    whole = isinstance(missing, list) and all(map(is_integer, missing))
    whole = whole and found.get("request") == request and all((folder / name).is_file() for name in RESULTS)
    return found if whole and file_digest(folder / MODEL) == found.get(NEW_DIGEST) else None


def check_no_other(folder: Path) -> None:
    """InputError, which says what there is, for a folder with another result."""
    there = [name for name in RESULTS if os.path.lexists(folder / name)]
    earlier = facts(folder)
    found = describe_request(earlier) if earlier else ", ".join(there)
    require(not there, "--out", MUST_BE, f"{folder}, with {found}")


def describe_request(report_facts: dict[str, Any]) -> str:
    """A request, by the facts of its report, printable."""
    ids = report_facts.get("ids")
    ids = ids if isinstance(ids, list) else []
    named = ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    return printable(f"the request of {report_facts.get('date', 'an unknown date')} to forget {named or 'some ids'}")


def request_of(model: Path, *parts: object) -> str:
    """A digest of the model's file and of what is asked about it, such as the samples."""
    return digest({}, json.dumps([file_digest(model), *parts]))


def check_no_other_request(options: argparse.Namespace, request: str, name: str) -> None:
    """InputError for a result under this name that is of another `request_of`, unless it is to be replaced."""
    earlier = facts(options.out, name)
    same = not earlier or options.overwrite or earlier.get("request") == request
    require(same, "--out", MUST_BE, f"{options.out}, with {name} of another model or other samples")


def check_no_strangers(folder: Path, *names: str) -> None:
    """InputError for files of these names that no earlier run has written: the first is a document with facts.

    Not for links to nothing, as a run leaves them that is killed while it puts its first results in place.
    """
    there = [name for name in names if (folder / name).is_file()]
    expected = f"a folder without other files of these names: {', '.join(names)}"
    require(
        not there or bool(facts(folder, names[0])),
        "--out",
        expected,
        f"{folder}, with {', '.join(there)} that amun has not written",
    )
