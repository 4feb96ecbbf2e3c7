"""Requests to forget: each form, the published draw, and every id that cannot be forgotten."""

import json
import os
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from amun_ext.deletion import forget_ids, split
from amun_ext.validation import InputError


def write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([5, 0, 9], [5, 0, 9]),
        ((value for value in (4, 2)), [4, 2]),
        (np.array([3, 1], np.uint8), [3, 1]),
        (torch.tensor([3, 1], dtype=torch.int32), [3, 1]),
        ([np.int64(3), torch.tensor(1)], [3, 1]),
        (range(2, 5), [2, 3, 4]),
        ("3", [3]),
        ("3,17,40-43", [3, 17, 40, 41, 42, 43]),
        (" 7 , 2 - 4,0 ", [7, 2, 3, 4, 0]),
        ("99-99", [99]),
    ],
)
def test_ids(ids, expected):
    got = forget_ids(100, ids=ids)
    assert got.dtype == torch.int64
    assert got.tolist() == expected


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([100], r"ids must be ids in \[0, 100\), got 100"),
        ([5, -1], r"got -1"),
        (range(96, 108), r"got 100, 101, 102, 103, 104, \.\.\."),
        ([1, 2, 1, 3, 3], "free of repeated ids, got 1, 3"),
        ("5,4-6", "free of repeated ids, got 5"),
        ([], "at least one id, got none"),
        (range(100), "nothing would be left to retain"),
        ("0-99", "nothing would be left to retain"),
        ([1, 2.0, "3", None, True], r"integers, got 2\.0, '3', None, True"),
        (torch.tensor([0.5]), r"integers, got 0\.5"),
        (torch.zeros(100, dtype=torch.bool), r"integers, got False, False, False, False, False, \.\.\."),
        (torch.zeros(2, 2, dtype=torch.int64), r"integers, got \[0, 0\]"),
        (b"12", "several integers, got b'12'"),
        (bytearray(b"12"), "several integers, got bytearray"),
        ({5: "a reason"}, "several integers, got {5: 'a reason'}"),
        ([torch.tensor(0.5)], "integers, got tensor"),
        (7, "several integers, got 7"),
        (torch.tensor(7), "several integers, got 7"),
        (" ", "at least one id, got none"),
        ("1,,2", "ranges such as 40-60, got ''"),
        ("1,2\v", r"got '2\\x0b'"),
        ("1,2\u2028", r"got '2\\u2028'"),
        ("1,two,-3,4.0,5-,6", r"got 'two', '-3', '4\.0', '5-'"),
        ("²,٣", "got '²', '٣'"),
        ("60-40", "ranges that go up, got 60-40"),
        ("40-999999999999", r"in \[0, 100\), got 100"),
        ("500-999999999999", r"in \[0, 100\), got 500"),
        ("9" * 5000, "integers from 0 on"),
    ],
)
def test_wrong_ids(ids, message):
    with pytest.raises(InputError, match=message):
        forget_ids(100, ids=ids)


@given(st.sets(st.integers(0, 199), min_size=1, max_size=50), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_text_says_the_same_as_the_list(ids, random):
    """Any set of ids, written as single numbers or as ranges of neighbours, in any order."""
    runs, order = [], sorted(ids)
    while order:
        length = next((n for n, number in enumerate(order) if number != order[0] + n), len(order))
        length = random.randint(1, length)
        runs.append(order[:length])
        order = order[length:]
    random.shuffle(runs)
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    assert forget_ids(1000, ids=text).tolist() == [number for run in runs for number in run]


@given(st.text(alphabet="0123456789-, x", max_size=12))
@settings(deadline=None, max_examples=200)
def test_any_text_is_ids_or_refused(text):
    try:
        ids = forget_ids(50, ids=text).tolist()
    except InputError:
        return
    assert len(set(ids)) == len(ids) < 50
    assert all(0 <= number < 50 for number in ids)
    assert str(ids[0]) in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "3\n# a comment\n\n17 # another\n40-42\n"),
        ("a", "3\r\n17\r\n40-42"),
        ("a.json", "[3, 17, 40, 41, 42]"),
        ("A.JSON", "[3, 17, 40, 41, 42]"),
        ("A.CSV", "id\n3\n17\n40-42\n"),
        ("a.csv", "id\n3\n17\n40\n41\n42\n"),
        ("a.csv", "name,index\na,3\nb,17\nc,40\nd,41\ne,42\n"),
        ("a.csv", "\ufeffname,id\n9,3\n9,17\n9,40\n9,41\n9,42\n"),
        ("a.csv", 'id,name\r\n3,"Smith, ""J"""\r\n\r\n"17","two\nlines"\r\n40-42,\r\n'),
        ("a.csv", "id,note\r3,\r17,\r40-42,\r"),
        ("a.csv", "id,note\n3,see also\v7\n17,a\x85b\u2028" + "5\n40 - 42\t,\x1c8\x0c9\n"),
        ("a.txt", "3 # and not\v7\n17 # nor\u2028" + "8\r40-42 # nor\x85" + "9\n"),
    ],
)
def test_files(tmp_path, name, text):
    assert forget_ids(100, file=write(tmp_path, name, text)).tolist() == [3, 17, 40, 41, 42]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "# nothing\n", r"a\.txt must be at least one id, got none"),
        ("a.txt", "3\nfour\n3,4\n", "got 'four', '3,4'"),
        ("a.txt", "3\n100\n", r"in \[0, 100\), got 100"),
        ("a.txt", "3\n3\n", "repeated ids, got 3"),
        ("a.json", '{"ids": [1]}', r"a\.json must be a list of integers, got dict"),
        ("a.json", "[1, 2.5, NaN, true, null]", "integers, got 2.5, nan, True, None"),
        ("a.json", "[1, 2", r"a\.json must be a readable file of ids"),
        ("a.csv", "", "got no rows"),
        ("a.csv", "name,number\na,3\n", "a column id or index, got 'name', 'number'"),
        ("a.csv", "id,index\n3,4\n", "a table with one of these columns, got id and index"),
        ("a.csv", "name,id\na,3\nb\n", r"a\.csv line 3 must be a row of 2 cells, as in the header, got 1: 'b'"),
        ("a.csv", "name,id\nSmith, 7,30\n", r"line 2 must be a row of 2 cells, .* got 3: 'Smith', ' 7', '30'"),
        ("a.csv", "id\n1,2,3\n", "line 2 must be a row of 1 cells, .* got 3: '1', '2', '3'"),
        ("a.csv", 'note,id\n"two\nlines",3\n\nb,4,5\n', "line 5 must be a row of 2 cells"),
        ("a.csv", 'id,note\n3,\n4,"open\n5,\n6,\n', "line 3 must be a row of a .csv file, got unexpected end of data"),
        ("a.csv", 'id,note\n3,"closed" too\n', "line 2 must be a row of a .csv file"),
        ("a.csv", "id,note,id\n3,,4\n", "line 1 must be a header that has every name once, got 'id' again"),
        ("a.csv", "note,id,note\n3,4,5\n", "line 1 must be a header that has every name once, got 'note' again"),
        ("a.csv", "id;note\n3;4\n", "a column id or index, got 'id;note'"),
        ("a.csv", "id\n\n", "at least one id, got none"),
        ("a.csv", "id\n3\nx\n", "got 'x'"),
        ("a.csv", "id\n3\n7\v\n", r"got '7\\x0b'"),
        ("a.csv", "id\n3\n" + "x" * 1000, r"got 'x+\.\.\.x+'$"),
        ("a.csv", "id\n" + "x" * 200_000, "line 2 must be a row of a .csv file, got field larger than field limit"),
        ("a.txt", "3\n7\v8\n", r"got '7\\x0b8'"),
        ("a.json", "[" * 100_000, r"a\.json must be a readable file of ids: maximum recursion depth"),
        ("a.json", "[" * 500 + "]" * 500, r"a\.json must be integers, got \[\[\[.{1,20}\]$"),
        ("a.json", "[" + "9" * 5000 + "]", r"a\.json must be a readable file of ids"),
        ("a.json", json.dumps([*range(101)]), "a list of at most 100 integers, got 100 commas"),
    ],
)
def test_wrong_files(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        forget_ids(100, file=write(tmp_path, name, text))


def test_unreadable_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    write(tmp_path, "a.txt", "3\n")
    os.truncate(tmp_path / "a.txt", 2**40)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    for path, got in {
        tmp_path / "absent.txt": ", got .*absent.txt, which does not exist",
        tmp_path / ("long" * 100): " that can be read, got .*: File name too long",
        tmp_path: ", got .*, which is a folder",
        tmp_path / "pipe.csv": ", got .*pipe.csv, which is a pipe or a device",
        "/dev/zero": ", got /dev/zero, which is a pipe or a device",
        tmp_path / "a.txt": " of at most 33554432 bytes, got .*a.txt, which has more",
        tmp_path / "b.txt": ", got .*b.txt: 'utf-8' codec",
    }.items():
        with pytest.raises(InputError, match=f"must be a readable file of ids{got}"):
            forget_ids(100, file=path)


@pytest.mark.parametrize(
    ("name", "start", "row"),
    [
        ("a.txt", "", "0-99999999999999999\n"),
        ("a.txt", "", "xx\n"),
        ("a.csv", "id\n", "5\n"),
        ("a.csv", "id\n", "x\n"),
        ("a.json", "[", "{},"),
    ],
)
def test_a_large_file_takes_little_more_than_its_text(tmp_path, name, start, row):
    size = 8 * 2**20
    path = write(tmp_path, name, start + row * (size // len(row)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            forget_ids(10_000, file=path)
        assert tracemalloc.get_traced_memory()[1] < 8 * size  # a text of which a part is read may take 4 bytes a letter
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 5000), (0.2, 10_000), (0.29, 14_500)])
def test_fraction_is_the_published_draw(fraction, count):
    state = np.random.get_state()
    np.random.seed(10)
    expected = np.random.choice(50_000, count, replace=False)
    np.random.set_state(state)
    assert forget_ids(50_000, fraction=fraction, seed=10).tolist() == expected.tolist()


def test_fraction_leaves_the_global_generator_alone_and_depends_on_the_seed():
    before = np.random.get_state()[1].copy()
    one, again, other = (forget_ids(1000, fraction=0.05, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one.unique()) == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of ids, file and fraction, got none"),
        ({"ids": [1], "fraction": 0.5}, "got ids and fraction"),
        ({"fraction": 0.0}, "between 0 and 1"),
        ({"fraction": 1.0}, "between 0 and 1"),
        ({"fraction": float("nan")}, "between 0 and 1"),
        ({"fraction": 0.001}, "takes some and leaves some of 100, got 0.001: 0 ids"),
        ({"fraction": 0.999}, "leaves some of 100, got 0.999: 100 ids"),
        ({"fraction": 0.5, "seed": -1}, "seed must be an integer"),
        ({"fraction": 0.5, "seed": 1.5}, "seed must be an integer"),
        ({"ids": [0], "total": 1}, "total must be a whole number from 2 on, got 1"),
        ({"ids": [0], "total": torch.tensor(100)}, r"total must be a whole number from 2 on, got tensor\(100\)"),
        ({"fraction": "0.5"}, "a number between 0 and 1, both excluded, got '0.5'"),
        ({"fraction": torch.tensor(0.5)}, r"a number between 0 and 1, both excluded, got tensor\(0\.5"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        forget_ids(**({"total": 100} | arguments))


def test_split_keeps_the_order_of_request_and_of_data():
    dataset = TensorDataset(torch.rand(6, 1, 2, 2), torch.arange(6))
    forget, retain = split(dataset, torch.tensor([4, 1]))
    assert forget.tensors[1].tolist() == [4, 1]
    assert retain.tensors[1].tolist() == [0, 2, 3, 5]
    for part in (forget, retain):
        assert torch.equal(part.tensors[0], dataset.tensors[0][part.tensors[1]])
    forget.tensors[0].zero_()
    assert dataset.tensors[0].min() > 0  # the parts are copies


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([6]), r"in \[0, 6\), got 6"),
        (torch.tensor([1, 1]), "repeated ids, got 1"),
        (torch.tensor([True, False]), "integers, got True, False"),
        (torch.arange(6), "nothing would be left"),
    ],
)
def test_split_refuses_what_forget_ids_refuses(ids, message):
    with pytest.raises(InputError, match=message):
        split(TensorDataset(torch.rand(6, 1, 2, 2), torch.arange(6)), ids)


def test_json_of_a_set_is_a_request(tmp_path):
    ids = forget_ids(100, fraction=0.1, seed=3)
    path = write(tmp_path, "record.json", json.dumps(ids.tolist()))
    assert torch.equal(forget_ids(100, file=path), ids)
