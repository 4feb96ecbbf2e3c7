"""Pending requests: added one by one, forgotten together, a line of the ledger for each."""

import json
import re
import shutil
from pathlib import Path

import pytest

from amun_ext import InputError, cli
from amun_ext.deletion import ledger, pending
from amun_ext.deletion.pending import Pending

DATE = "2026-01-02T03:04:05Z"


def test_the_list_is_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "pending.csv"
    first = pending.add(path, "data", 50, [7, 3], DATE)
    second = pending.add(path, "data", 50, [3, 9], DATE)
    assert (first, second) == (Pending(1, DATE, (7, 3)), Pending(2, DATE, (3, 9)))
    assert pending.read(path, "data", 50) == [first, second]
    third = pending.add(path, "data", 50, [7], DATE)
    pending.remove(path, "data", 50, [first, second], [3, 7])
    assert pending.read(path, "data", 50) == [Pending(2, DATE, (9,)), third]  # what came later stays
    pending.remove(path, "data", 50, [second, third], [7, 9])
    assert pending.read(path, "data", 50) == []
    assert [each.name for each in tmp_path.iterdir()] == ["pending.csv"]


ROW = f"1,{DATE},data,3"
BROKEN = {
    "another table": ("id\n3\n", "column"),
    "a cell too few": (f"1,{DATE},data", "cells"),
    "other data": (f"1,{DATE},others,3", "training data"),
    "no number": (f"x,{DATE},data,3", "number"),
    "no date": ("1,yesterday,data,3", "date"),
    "two dates": (f"{ROW}\n1,2026-01-02T03:04:06Z,data,4", "one date"),
    "an unknown row": (f"1,{DATE},data,99", "ids in"),
    "a row twice": (f"{ROW}\n{ROW}", "repeated"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_list_is_refused(tmp_path: Path, kind: str) -> None:
    text, word = BROKEN[kind]
    path = tmp_path / "pending.csv"
    path.write_text(text if text.startswith("id") else f"request,received,data,id\n{text}\n")
    with pytest.raises(InputError, match=re.escape(word)):
        pending.read(path, "data", 50)


@pytest.fixture
def folder(tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(original, tmp_path / "original.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def amun(command: str) -> int:
    name, _, rest = command.partition(" ")
    return cli.main([name, "--model", "original.safetensors", "--data", "digits", "--quiet", *rest.split()])


def pending_rows(folder: Path) -> list[str]:
    return [line.rpartition(",")[2] for line in (folder / "pending.csv").read_text().splitlines()[1:]]


def test_requests_are_forgotten_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ids in ("7-9", "3,8"):
        assert amun(f"request --ids {ids} --pending pending.csv") == 0
    forget = "forget --pending pending.csv --method ga --epochs 1 --out out"
    assert amun(f"{forget} --dry-run") == 0
    assert "samples to forget: 4" in capsys.readouterr().out
    whole = (folder / "pending.csv").read_bytes()
    assert amun(forget) == 0
    lines = ledger.read(folder / "out")
    assert [line["samples"] for line in lines] == [3, 2]
    assert [line["number"] for line in lines] == [1, 2]
    assert [each["number"] for each in ledger.having(lines, "row 8")] == [1, 2]
    assert [each["number"] for each in ledger.having(lines, "row 3")] == [2]
    assert len({key for line in lines for key in line["keys"]}) == 5  # nobody sees that both are for one sample
    assert cli.main(["ledger", "verify", "out"]) == 0
    (folder / "pending.csv").write_bytes(whole)  # as after a kill before its rows were removed
    assert amun(forget) == 0
    assert "already done" in capsys.readouterr().out
    assert amun(forget) == 0
    assert "no request is pending" in capsys.readouterr().out
    assert cli.main(["replay", "out/record.json", "--quiet", "--out", "again"]) == 0
    assert "bit-equal" in capsys.readouterr().out


def test_what_is_forgotten_already_is_not_added(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert amun("forget --ids 5,6 --method ga --epochs 1 --out out") == 0
    shutil.copy(folder / "out/model.safetensors", folder / "original.safetensors")
    assert amun("request --ids 4,5 --pending pending.csv") == 2
    assert "ids must be not forgotten by an earlier request, got row 5" in capsys.readouterr().err
    assert amun("request --ids 4 --pending missing/pending.csv") == 2
    assert not (folder / "pending.csv").exists()


def test_what_is_forgotten_in_the_meantime_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ids in ("4,5,7", "6"):
        assert amun(f"request --ids {ids} --pending pending.csv") == 0
    whole = (folder / "pending.csv").read_bytes()
    assert amun("forget --ids 5,6 --method ga --epochs 1 --out first") == 0
    shutil.copy(folder / "first/model.safetensors", folder / "original.safetensors")
    forget = "forget --pending pending.csv --method ga --epochs 1 --out out"
    assert amun(f"{forget} --dry-run") == 0
    told = capsys.readouterr()
    assert "samples to forget: 2, ids 4, 7\n" in told.out
    assert "the model has forgotten them: ids 5, 6" in told.err
    assert (folder / "pending.csv").read_bytes() == whole
    assert amun(forget) == 0
    assert [line["samples"] for line in ledger.read(folder / "out")] == [2]
    (folder / "pending.csv").write_bytes(whole)
    shutil.copy(folder / "out/model.safetensors", folder / "original.safetensors")
    assert amun(f"{forget} --out again") == 0
    assert "no request is pending" in capsys.readouterr().out
    assert pending_rows(folder) == []
    assert not (folder / "again").exists()


def test_a_request_of_others_in_the_ledger_is_no_part_of_them() -> None:
    made = {"parent": "a", "child": "b", "request": "r", "keys": []}
    text = ledger.append(ledger.append("", made), {**made, "request": "s"})
    assert len(ledger.entries(text, "it")) == 2
    with pytest.raises(InputError, match="line 3 must be of the model"):
        ledger.entries(ledger.append(text, {**made, "child": "c"}), "it")


def test_samples_without_an_example_stay_pending(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import amun_ext.deletion.request as request

    find = request.find_min_adversarial

    def all_but_the_second(*arguments: object, **options: object) -> object:
        found = find(*arguments, **options)
        found.found[1] = False
        return found

    monkeypatch.setattr(request, "find_min_adversarial", all_but_the_second)
    for ids in ("7,8", "9"):
        assert amun(f"request --ids {ids} --pending pending.csv") == 0
    assert amun("forget --pending pending.csv --epochs 1 --out out") == 3
    lines = ledger.read(folder / "out")
    assert [(line["samples"], line["samples_without_example"]) for line in lines] == [(1, 1), (1, 0)]
    assert pending_rows(folder) == ["8"]
    assert json.loads((folder / "out/record.json").read_text())["ids"] == [7, 8, 9]
