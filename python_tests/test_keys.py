"""Requests by keys of samples, by the SHA-256 of their files, and by groups: what is meant, and what is refused."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from amun_ext import InputError, cli, data, models
from amun_ext.deletion.keys import keys_of, named_rows, read_groups

KEYS = ("train/a/anna 1.png", "train/a/ünal.png", "", "train/b/7,8.png", "train/b/anna 2.png")


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("key\ntrain/b/anna 2.png\ntrain/a/anna 1.png\n", [4, 0]),
        ("note,key\r\nfirst,train/a/ünal.png\r\n", [1]),
        ('\ufeffkey\n"train/b/7,8.png"\n', [3]),
        ("group\nanna\n", [0, 4]),
        ("group\nanna\nall\n", [0, 4, 1, 3]),
    ],
)
def test_what_is_named(tmp_path: Path, text: str, rows: list[int]) -> None:
    groups = "group,key\nanna,train/a/anna 1.png\nanna,train/b/anna 2.png\nother,train/z.png\n"
    groups += "".join(f'all,"{key}"\n' for key in KEYS if key)
    given = written(tmp_path / "groups.csv", groups) if "group" in text else None
    assert named_rows(written(tmp_path / "request.csv", text), KEYS, groups=given) == rows


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.csv"])
def test_files_of_ids_are_left_to_others(tmp_path: Path, name: str) -> None:
    assert named_rows(written(tmp_path / name, "id\n3\n"), KEYS) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key\ntrain/a/anna.png\n", "key must be samples in the data, got 'train/a/anna.png'"),
        (f"sha256\n{63 * 'a'}\n", f"got '{63 * 'a'}'"),
        (f"key\ntrain/a/{50 * 'a'}.png\n", f"got 'train/a/{50 * 'a'}.png'"),
        ('key\n""\n', "key must be samples in the data, got ''"),
        ("key\n train/a/ünal.png\n", "got ' train/a/ünal.png'"),
        ("key\ntrain/a/u\u0308nal.png\n", "samples in the data"),
        ("key\nb\nb\n", "free of repeated values, got 'b' in line 3, which line 2 has"),
        ("key\n", "a table with at least one row, got none"),
        ("key,id\n3,4\n", "a table with one of these columns, got id and key"),
        ("key,note\n3\n", "line 2 must be a row of 2 cells"),
        ("name\n3\n", "a table with a column id or index or key or sha256 or group, got 'name'"),
        ("sha256\nabc\n", "SHA-256 digests of 64 hexadecimal digits, got 'abc'"),
        ("sha256\n" + 64 * "0" + "\n", "must have no column sha256"),
        ("group\nanna\n", "groups must be given (--groups)"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        named_rows(written(tmp_path / "request.csv", text), KEYS)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("key,group\ntrain/a/anna 1.png,anna\ntrain/a/gone.png,anna\n", "in the groups of the request, got 'train"),
        ("key,group\ntrain/a/anna 1.png,bob\n", "group must be groups in"),
        ("key,group\nb,anna\nb,anna\n", "group 'anna' must be free of repeated values, got 'b' in line 3"),
        ("key\nb\n", "a table with a column key and a column group"),
        ("key,group,key\na,b,c\n", "a header that has every name once"),
    ],
)
def test_groups_that_are_refused(tmp_path: Path, table: str, message: str) -> None:
    request, groups = written(tmp_path / "request.csv", "group\nanna\n"), written(tmp_path / "groups.csv", table)
    with pytest.raises(InputError, match=re.escape(message)):
        named_rows(request, KEYS, groups=groups)


def test_groups_without_use_are_refused(tmp_path: Path) -> None:
    groups = written(tmp_path / "groups.csv", "key,group\nb,anna\n")
    assert read_groups(groups) == {"anna": ["b"]}
    for name, text in (("ids.csv", "id\n3\n"), ("keys.csv", "key\ntrain/a/anna 1.png\n"), ("ids.txt", "3\n")):
        with pytest.raises(InputError, match="groups must be left out"):
            named_rows(written(tmp_path / name, text), KEYS, groups=groups)
    with pytest.raises(InputError, match="key must be samples in the data"):  # the request itself comes first
        named_rows(written(tmp_path / "other.csv", "key\nno.png\n"), KEYS, groups=groups)


def test_of_too_many_keys_only_some_are_read(tmp_path: Path) -> None:
    request = written(tmp_path / "request.csv", "key\n" + "".join(f"{row}\n" for row in range(6)) + '"never closed')
    with pytest.raises(InputError, match="key must be samples in the data, got '0', '1', '2'"):
        named_rows(request, KEYS)


def test_by_content_all_copies_are_meant(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        written(tmp_path / name, content)
    one = hashlib.sha256(b"one").hexdigest()
    request = written(tmp_path / "request.csv", f"sha256\n{one.upper()}\n")
    assert named_rows(request, ("a", "b", "", "c"), folder=tmp_path) == [0, 3]
    twice = written(tmp_path / "twice.csv", f"sha256\n{one.upper()}\n{one}\n")
    with pytest.raises(InputError, match="free of repeated values"):
        named_rows(twice, ("a", "b", "", "c"), folder=tmp_path)


def test_other_data_are_named_by_rows() -> None:
    assert keys_of(3, None) == ["row 0", "row 1", "row 2"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images of each of two classes, three of each of four people; the colours are drawn."""
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    root = tmp_path / "photos"
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for number in range(6):
                pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
                image.fromarray(pixels).save(root / part / label / f"{['anna', 'bob'][number % 2]}-{number}.png")
    return root


def test_a_person_is_forgotten_and_a_renamed_file_stays_known(photos: Path, tmp_path: Path, capsys) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "out"
    train = ["train", "--data", str(photos), "--model", "small-cnn", "--width", "4", "--epochs", "1", "--quiet"]
    assert cli.main([*train, "--out", str(model)]) == 0
    (photos / "train/cat/anna-0.png").rename(photos / "train/cat/renamed.png")
    groups = "key,group\n" + "".join(
        f"{path.relative_to(photos).as_posix()},{'bob' if 'bob' in path.name else 'anna'}\n"
        for path in sorted(photos.glob("train/*/*.png"))
    )
    command = ["forget", "--data", str(photos), "--model", str(model), "--method", "ga", "--epochs", "1", "--quiet"]
    command += ["--ids-file", str(written(tmp_path / "request.csv", "group\nanna\n"))]
    command += ["--groups", str(written(tmp_path / "groups.csv", groups)), "--out", str(out)]
    assert cli.main(command) == 0
    capsys.readouterr()
    for name, status in (("cat/renamed", 0), ("dog/anna-4", 0), ("cat/bob-1", 2), ("cat/anna-0", 2)):
        assert cli.main(["ledger", "show", str(out), "--key", f"train/{name}.png"]) == status


def archive(path: Path, **arrays: np.ndarray) -> Path:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 8, 8), dtype=np.uint8)
    labels = np.arange(12) % 2
    np.savez(path, train_images=pixels, train_labels=labels, test_images=255 - pixels, test_labels=labels, **arrays)
    return path


def test_an_archive_has_keys_and_its_rows_may_move(tmp_path: Path) -> None:
    keys = np.array([f"patient {number}" for number in range(12)])
    path, model, out = archive(tmp_path / "data.npz", train_keys=keys), tmp_path / "net.safetensors", tmp_path / "out"
    train = ["train", "--data", str(path), "--model", "small-cnn", "--width", "4", "--epochs", "1", "--quiet"]
    assert cli.main([*train, "--out", str(model)]) == 0
    with np.load(path) as file:
        moved = {name: array[::-1] if name.startswith("train") else array for name, array in file.items()}
    np.savez(path, **moved)
    request = written(tmp_path / "request.csv", "key\npatient 3\npatient 5\n")
    command = ["forget", "--data", str(path), "--model", str(model), "--method", "ga", "--epochs", "1", "--quiet"]
    assert cli.main([*command, "--ids-file", str(request), "--out", str(out)]) == 0
    assert models.read_metadata(out / "model.safetensors")["forgotten"] == "[3, 5]"
    assert cli.main(["ledger", "show", str(out), "--key", "patient 5"]) == 0


@pytest.mark.parametrize(
    "keys",
    [np.arange(11), np.zeros(12, int), np.arange(12.0), np.array(["a"] * 11 + [""]), np.arange(24).reshape(12, 2)],
)
def test_keys_of_an_archive_that_are_refused(tmp_path: Path, keys: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"train_keys must be|names must be one text for every training sample"):
        data.load(archive(tmp_path / "data.npz", train_keys=keys))


def test_a_data_set_of_ones_own_has_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(
        tmp_path / "keyed_data.py",
        """
import torch
from torch.utils.data import TensorDataset


class Keyed(TensorDataset):
    def keys(self):
        return range(100, 104)


def load():
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    return Keyed(images, labels), TensorDataset(images, labels)
""",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert data.load("keyed_data:load").names == ("100", "101", "102", "103")
