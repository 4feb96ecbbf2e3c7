"""Samples that a model was not trained on: what is far beyond the test samples is named, by a test of known error."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext.deletion.unfamiliar import remarks, unfamiliar

SCALE = nn.Linear(1, 2, bias=False)
with torch.no_grad():
    SCALE.weight[:] = torch.tensor([[0.0], [1.0]])  # as sure of class 1 as the input is large


def data(*inputs: float) -> TensorDataset:
    return TensorDataset(torch.tensor(inputs)[:, None], torch.ones(len(inputs), dtype=torch.int64))


@pytest.mark.parametrize(
    ("count", "named", "error"), [(98, 0, 0.0), (99, 1, 1 / 100), (1998, 1, 1 / 1999), (1999, 2, 2 / 2000)]
)
def test_what_is_below_nearly_all_test_samples_is_named(count: int, named: int, error: float) -> None:
    test = data(*(0.1 * number for number in range(count)))
    rows, of_test = unfamiliar(SCALE, data(3.0, 0.05, -0.1, 0.0), test)
    assert rows == [[], [2], [1, 2, 3]][named]
    assert of_test == pytest.approx(error)


def test_of_samples_like_the_test_samples_no_more_are_named_than_the_error_says() -> None:
    drawn = torch.randn(200, 999, generator=torch.Generator().manual_seed(0))
    shares = [len(unfamiliar(SCALE, data(*one[:499]), data(*one[499:]))[0]) / 499 for one in drawn]
    # 500 test samples: 1 in 501; the mean of 200 draws of it has a standard deviation of 0.0002
    assert sum(shares) / len(shares) < 0.003


def test_the_remark_names_the_first_and_the_error() -> None:
    assert remarks([], 0.0) == []
    (told,) = remarks(["row 3", "row 5"], 0.001)
    assert "2 of the samples" in told
    assert "row 3, row 5" in told
    assert "0.1 %" in told
