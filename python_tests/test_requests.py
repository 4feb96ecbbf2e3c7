"""A request after another one: which samples it is for."""

import json
from pathlib import Path

from amun_ext import cli


def test_a_fraction_is_of_what_is_left(tmp_path: Path) -> None:
    def amun(*arguments: object) -> int:
        return cli.main([*map(str, arguments), "--data", "digits", "--quiet"])

    model, first, second = tmp_path / "o.safetensors", tmp_path / "first", tmp_path / "second"
    assert amun("train", "--model", "small-cnn", "--width", 4, "--epochs", 1, "--out", model) == 0
    share = ("--method", "ga", "--fraction", 0.4, "--epochs", 1)
    assert amun("forget", "--model", model, *share, "--out", first) == 0
    assert amun("forget", "--model", first / "model.safetensors", *share, "--out", second) == 0
    ids = [set(json.loads((out / "report.json").read_text())["facts"]["ids"]) for out in (first, second)]
    total = 1197  # digits to train on
    assert len(ids[0]) == round(0.4 * total)
    assert len(ids[1]) == round(0.4 * (total - len(ids[0])))
    assert not ids[0] & ids[1]
