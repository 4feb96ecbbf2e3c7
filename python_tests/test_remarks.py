"""What is said of an unlearning that has gone wrong, by made-up scores with known answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from amun_ext import cli
from amun_ext.evaluation.remarks import broken, no_op, remembers

TEST = np.linspace(-2, 2, 400)


@pytest.mark.parametrize(("change", "said"), [(0.0, True), (0.09, True), (0.11, False), (-0.11, False)])
def test_a_model_that_barely_changed(change: float, said: bool) -> None:
    assert bool(no_op(TEST, TEST + change)) == said


def test_a_model_that_is_worse_on_the_test_set() -> None:
    assert broken(70.0, "original", 75.1) == "5.1 points of test accuracy below the original model's 75.1 %"
    assert not broken(70.1, "original", 75.0)
    assert not broken(99.0, "original", 75.0)


def test_a_model_that_still_distinguishes_forgotten_from_test_samples() -> None:
    """Shifts of 1, 0.6 and 0.3 of a uniform of width 4: areas of 71.8, 63.8 and 57.2 %."""
    known, half, less = ((TEST + shift, TEST) for shift in (1.0, 0.6, 0.3))
    assert remembers(known, half).startswith("FT AUC is 63.8, was 71.8 before, and is 50 for samples")
    assert not remembers(known, less)
    assert not remembers((TEST, TEST), (TEST, TEST))  # where nothing was to be seen before


def test_amun_forget_warns_without_a_retrained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def amun(*arguments: object) -> int:
        return cli.main([*map(str, arguments), "--data", "digits"])

    model = tmp_path / "o.safetensors"
    assert amun("train", "--model", "small-cnn", "--width", 8, "--epochs", 8, "--lr", 0.1, "--out", model) == 0
    frozen = ("--batch-norm", "frozen")  # else running statistics change the model, too
    cases = {
        "no-op: the model barely changed": ("--lr", 1e-7, *frozen),
        "points of test accuracy below the": ("--lr", 5.0),
    }
    for number, (warned, options) in enumerate(cases.items()):
        out = tmp_path / str(number)
        assert amun("forget", "--model", model, "--ids", "1-60", "--epochs", 1, *options, "--out", out) == 0
        assert warned in " ".join(capsys.readouterr().out.split())
        assert any(warned in remark for remark in json.loads((out / "report.json").read_text())["remarks"])
