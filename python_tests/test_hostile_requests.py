"""Files of a request that anyone may have written or damaged: each is read, or refused in a message."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_tools import Page

from amun_ext import InputError, cli
from amun_ext.deletion import forget_ids, ledger, pending
from amun_ext.deletion.checkpoint_record import Record
from amun_ext.deletion.drift import RETRAIN
from amun_ext.deletion.keys import named_rows
from amun_ext.deletion.record_page import document
from amun_ext.deletion.results import FORMAT
from amun_ext.report import html, text

EXAMPLES = 300
bounded = settings(max_examples=EXAMPLES, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = ["anna/1.png", "bob/2.png", "", 'a "quoted", name', "ключ"]
WRONG = st.sampled_from([None, True, 3, -1.5, "", "x", [], [3], [[]], {}, {"x": 3}, {"1": {}}])


def mutated(whole: str) -> st.SearchStrategy[bytes]:
    """A file with some bytes replaced, or others altogether."""

    def change(at: int, length: int, new: bytes) -> bytes:
        content = whole.encode()
        return content[: at % len(content)] + new + content[at % len(content) + length :]

    return st.builds(change, st.integers(0, 10**4), st.integers(0, 9), st.binary(max_size=9)) | st.binary(max_size=60)


ENTRY = {"parent": "a", "child": "b", "request": "r", "keys": ["k"]}
LEDGER = ledger.append(ledger.append("", ENTRY), {**ENTRY, "parent": "b", "child": "c"})
LIST = "request,received,data,id\n1,2026-01-02T03:04:05Z,d,3\n2,2026-01-02T03:04:06Z,d,4\n"
READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "rows": ("f.txt", "3\n17 # one\n4-9\n", lambda path: forget_ids(50, file=path)),
    "rows of JSON": ("f.json", "[3, 17, 4]", lambda path: forget_ids(50, file=path)),
    "keys": ("f.csv", 'key,note\n"anna/1.png",x\nbob/2.png,y\n', lambda path: named_rows(path, KEYS)),
    "digests": ("f.csv", f"sha256\n{'ab' * 32}\n", lambda path: named_rows(path, [""], folder=path.parent)),
    "pending requests": ("f.csv", LIST, lambda path: pending.read(path, "d", 50)),
    "ledger": ("f.jsonl", LEDGER, lambda path: ledger.entries(path.read_bytes().decode("utf-8", "replace"), "it")),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    name, whole, read = READERS[kind]

    @bounded
    @given(mutated(whole))
    def one(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with contextlib.suppress(InputError):
            read(tmp_path / name)

    if kind != "digests":  # whose folder has no files
        (tmp_path / name).write_text(whole)
        read(tmp_path / name)
    one()


@bounded
@given(mutated("key,group\nanna/1.png,anna\nbob/2.png,bob\n"))
def test_a_damaged_table_of_groups_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "request.csv").write_text("group\nanna\n")
    (tmp_path / "groups.csv").write_bytes(content)
    with contextlib.suppress(InputError):
        named_rows(tmp_path / "request.csv", KEYS, groups=tmp_path / "groups.csv")


def nested(whole: object) -> st.SearchStrategy[object]:
    """A JSON value with some of its parts, at any depth, replaced by others."""
    if isinstance(whole, dict):
        parts = st.fixed_dictionaries({name: nested(part) for name, part in whole.items()})
        return st.one_of(parts, parts, WRONG)
    return st.one_of(st.just(whole), WRONG)


RESULTS = {
    "no-op (original)": {"TA": 90.0, "FT AUC": 60.0, "FT SE": 1.0},
    "AMUN": {"TA": 89.0},
    "retrain": {"TA": 91.0},
}
MADE = {"date": "2026", "samples": 3, "samples_without_example": 0, "results": RESULTS, "remarks": ["x"]}
AUDIT = {
    "verdict": {"answer": "not forgotten", "reason": "so"},
    "rows": {"audited": {"FT AUC": {"value": 60.0, "low": 50.0, "high": 70.0}}},
    "facts": {"requests": {"1": "forgotten"}},
}


COMMAND = ["forget", "--model", "m", "--data", "d", "--ids", "3", "--out", "o"]
REPLAYED = {"format": FORMAT, "command": COMMAND, "parent": "p"}
ARGUMENTS = st.sampled_from(
    ["forget", "", "--model", "--out", "--quiet", "--bad", "\0", "\ud800", "a:b", "--arch=a:b", "--help"]
)


@bounded
@given(
    nested({**REPLAYED, "ids": [3], "child": "c"}).map(json.dumps).map(str.encode)
    | mutated(json.dumps(REPLAYED))
    | st.lists(ARGUMENTS, max_size=9).map(lambda more: json.dumps({**REPLAYED, "command": [*COMMAND, *more]}).encode())
)
def test_a_damaged_record_is_not_replayed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert cli.main(["replay", str(tmp_path / "record.json"), "--out", str(tmp_path / "out")]) == 2
    assert errors.getvalue().count("\n") == 1
    assert not (tmp_path / "out").exists()


def entry(made: object) -> dict[str, object]:
    return {**(made if isinstance(made, dict) else {}), **ENTRY, "keys": []}


@bounded
@given(nested({**MADE, "unlearning": {"method": "amun"}}), nested(AUDIT), nested({"date": "2026", "seed": 3}))
def test_a_page_is_made_of_whatever_the_files_say(made: object, audit: object, record: object) -> None:
    read, audited = (each if isinstance(each, dict) else {} for each in (record, audit))
    page = document(read, [entry(made)], audited)
    html.render(page)
    text.render(page)


@pytest.mark.parametrize(
    ("answer", "remark", "title"),
    [
        ("forgotten", "fine", "No further step is recommended"),
        ("cannot tell", "fine", "It is not known whether"),
        ("not forgotten", "fine", "Retraining is recommended"),
        ("over-forgotten", "fine", "Retraining is recommended"),
        ("forgotten", f"accuracy fell; {RETRAIN}", "Retraining is recommended"),
        (None, "fine", "It is not known whether"),
    ],
)
def test_the_recommendation_of_a_page(answer: str | None, remark: str, title: str) -> None:
    audit = {} if answer is None else {**AUDIT, "verdict": {"answer": answer, "reason": "so"}}
    page = html.render(document({"seed": 3}, [entry({**MADE, "remarks": [remark]})], audit))
    assert title in page
    assert "certif" not in page
    assert "Record of a deletion request" in page
    Page(page)


@bounded
@given(
    st.dictionaries(st.sampled_from(["arch", "seed", "recipe", "forgotten", "unlearning", "made_of", "x"]), st.text())
)
def test_metadata_of_a_checkpoint_is_read_or_refused(metadata: dict[str, str]) -> None:
    with contextlib.suppress(InputError):
        Record.read(metadata, "it")
