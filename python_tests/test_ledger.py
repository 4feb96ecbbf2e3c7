"""The ledger of a model: what was changed, moved or taken out is found; names are not in it and can be found by it."""

import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from amun_ext import InputError, cli
from amun_ext.deletion import ledger


def text_of(count: int = 3) -> str:
    text = ""
    for number in range(count):
        request = f"request {number}"
        keys = ledger.hashed_keys([f"anna/{number}.png", "bob/1.png"], request)
        made = {"parent": f"model {number}", "child": f"model {number + 1}", "request": request, "keys": keys}
        text = ledger.append(text, {**made, "results": {"FT AUC": 50.0 + number}})
    return text


def test_it_is_what_was_appended() -> None:
    found = ledger.entries(text_of(), "it")
    assert [entry["number"] for entry in found] == [1, 2, 3]
    assert [entry["results"]["FT AUC"] for entry in found] == [50.0, 51.0, 52.0]
    assert ledger.entries("", "it") == []


def test_a_sample_is_found_by_its_key_alone() -> None:
    text = text_of()
    assert "anna" not in text
    found = ledger.entries(text, "it")
    assert [entry["number"] for entry in ledger.having(found, "anna/1.png")] == [2]
    assert ledger.having(found, "bob/1.png") == found
    assert ledger.having(found, "carl/1.png") == []
    hashes = [key for entry in found for key in entry["keys"]]
    assert len(set(hashes)) == len(hashes)  # nobody sees that two requests were for one sample


def test_every_change_of_a_letter_is_found_but_in_the_last_line() -> None:
    text = text_of()
    last = text.rstrip("\n").rindex("\n")
    for at in range(last + 1):
        other = "7" if text[at] != "7" else "8"
        with pytest.raises(InputError, match=r"^it line [123] must be"):
            ledger.entries(text[:at] + other + text[at + 1 :], "it")


@pytest.mark.parametrize("order", [[1, 2], [0, 2], [1, 0, 2], [0, 2, 1], [0, 0, 1, 2], [2]])
def test_lines_that_were_moved_or_taken_out_are_found(order: list[int]) -> None:
    lines = text_of().splitlines(keepends=True)
    with pytest.raises(InputError, match=r"^it line [1234] must be"):
        ledger.entries("".join(lines[number] for number in order), "it")


@pytest.mark.parametrize("line", ["", "{}", "[]", "3", "null", "{", '{"number": 1}', "\0", "[" * 99])
def test_what_is_no_entry_is_refused(line: str) -> None:
    with pytest.raises(InputError, match=r"^it line 4 must be"):
        ledger.entries(f"{text_of()}{line}\n", "it")
    with pytest.raises(InputError, match="whole lines"):
        ledger.entries(text_of()[:-1], "it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, original: Path) -> Path:
    """With an original and two requests, one after the other."""
    made = tmp_path_factory.mktemp("ledger")
    shutil.copy(original, made / "original.safetensors")
    for model, ids, out in (("original", "3,5", "first"), ("first/model", "7-9", "second")):
        forget = f"forget --data digits --method ga --epochs 1 --quiet --ids {ids} --model {made}/{model}.safetensors"
        assert cli.main([*forget.split(), "--out", str(made / out)]) == 0
    return made


def test_a_request_adds_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = ((folder / name / ledger.FILE).read_text() for name in ("first", "second"))
    assert second.startswith(first)
    assert second.count("\n") == 2
    entry = json.loads(second.splitlines()[1])
    assert (entry["samples"], entry["unlearning"]["method"], entry["seed"]) == (3, "ga", 0)
    assert cli.main(["ledger", "verify", str(folder / "second")]) == 0
    assert cli.main(["ledger", "show", str(folder / "second"), "--key", "row 8"]) == 0
    shown = capsys.readouterr().out
    assert "2 requests" in shown
    assert entry["child"][:12] in shown
    assert json.loads(first)["child"][:12] not in shown
    assert cli.main(["ledger", "show", str(folder / "second"), "--key", "row 1"]) == 2


def test_a_broken_one_is_refused_before_any_work(folder: Path, tmp_path: Path, capsys) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "out"
    model.write_bytes((folder / "second/model.safetensors").read_bytes())
    whole, record = ((folder / "second" / name).read_text() for name in (ledger.FILE, ledger.RECORD))
    (tmp_path / ledger.RECORD).write_text(record)
    forget = ["forget", "--data", "digits", "--ids", "20", "--model", str(model), "--out", str(out)]
    edited = (whole.replace('"seed":0', '"seed":1'), whole.splitlines(keepends=True)[0], "", "no ledger\n")
    for text in (*edited, f"\ufeff{whole}", whole[:-1] + "\r\n", whole[:-1] + " \n"):
        (tmp_path / ledger.FILE).write_bytes(text.encode())
        for command in (forget, ["ledger", "verify", str(tmp_path)]):
            assert cli.main(command) == 2
            told = capsys.readouterr().err
            assert "ledger.jsonl" in told
            assert told.count("\n") == 1
    (tmp_path / ledger.FILE).write_text(whole)
    for text in ("{}", (folder / "first" / ledger.RECORD).read_text(), record.replace(ledger.LINE, "line")):
        (tmp_path / ledger.RECORD).write_text(text)
        assert cli.main(["ledger", "verify", str(tmp_path)]) == 2
        assert "record.json" in capsys.readouterr().err
    assert not out.exists()


def test_an_audit_by_request(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second, out = folder / "second/model.safetensors", tmp_path / "audit"
    audit = ["audit", "--data", "digits", "--by-request", "--quiet", "--out", str(out)]
    audit += ["--original", str(folder / "original.safetensors"), "--model"]
    assert cli.main([*audit, str(folder / "original.safetensors")]) == 2
    assert cli.main([*audit, str(second), "--ids", "3"]) == 2
    assert "--by-request must be given without samples" in capsys.readouterr().err
    assert cli.main([*audit, str(second), "--fail-unless", "forgotten"]) == 12
    assert "cannot tell" in capsys.readouterr().out.splitlines()[-1]
    told = {path.parent.name: json.loads(path.read_text())["facts"] for path in out.rglob("audit.json")}
    assert {name: each["ids"] for name, each in told.items()} == {
        "audit": [3, 5, 7, 8, 9],
        "request-1": [3, 5],
        "request-2": [7, 8, 9],
    }
    assert told["request-1"]["previously_forgotten_ids"] == [7, 8, 9]
    assert told["audit"]["requests"] == {"1": "cannot tell", "2": "cannot tell"}
    assert cli.main(["ledger", "page", str(folder / "second"), "--audit", str(out)]) == 0
    page = (folder / "second/record.html").read_text()
    for words in ("3 training samples", "1 came before", "It is not known whether", "What this does not show"):
        assert words in page
    assert cli.main(["ledger", "page", str(folder / "first"), "--audit", str(out)]) == 2
    assert "--audit must be" in capsys.readouterr().err


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a private key and its public one, one with a password, and one of another kind."""
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = serialization.BestAvailableEncryption(b"secret")
    made, key = tmp_path_factory.mktemp("keys"), ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    form = serialization.PrivateFormat.PKCS8
    other = ec.generate_private_key(ec.SECP256R1())
    for name, content in {
        "private": key.private_bytes(pem, form, plain),
        "public": public,
        "locked": key.private_bytes(pem, form, secret),
        "other": other.private_bytes(pem, form, plain),
        "none": b"no key",
    }.items():
        (made / f"{name}.pem").write_bytes(content)
    return made


def test_a_signed_line(folder: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget = ["forget", "--data", "digits", "--method", "ga", "--epochs", "1", "--quiet", "--ids", "11,12"]
    forget += ["--model", str(folder / "original.safetensors"), "--out", str(tmp_path / "out")]
    for name in ("locked", "other", "none", "public", "missing"):
        assert cli.main([*forget, "--sign-key", str(keys / f"{name}.pem")]) == 2
        assert "key must be an Ed25519 private key in a PEM file without a password" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert cli.main([*forget, "--sign-key", str(keys / "private.pem")]) == 0
    path = tmp_path / "out" / ledger.FILE
    verify = ["ledger", "verify", str(tmp_path / "out"), "--public-key", str(keys / "public.pem")]
    assert cli.main(verify) == 0
    whole = path.read_text()
    entry = json.loads(whole)
    changed = [{**entry, "seed": 1}, {**entry, "signature": entry["signature"][::-1]}, {**entry, "signature": 3}]
    changed += [{name: value for name, value in entry.items() if name != "signature"}]
    for each in changed:
        path.write_text(json.dumps(each) + "\n")
        assert cli.main(["ledger", "verify", str(tmp_path / "out")]) == 2  # the record knows the last line
        assert "line 1 must be as it was when record.json was written" in capsys.readouterr().err
    for each in changed:
        path.write_text(line := json.dumps(each, sort_keys=True, separators=(",", ":")) + "\n")
        record = json.loads((tmp_path / "out/record.json").read_text())
        (tmp_path / "out/record.json").write_text(json.dumps({**record, ledger.LINE: ledger.line_hash(line)}))
        assert cli.main(["ledger", "verify", str(tmp_path / "out")]) == 0  # the last line is bound to nothing else
        assert cli.main(verify) == 2
        assert "--public-key must be" in capsys.readouterr().err
