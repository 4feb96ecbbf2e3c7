"""What requests do to a model together: samples that come back, and accuracy that goes."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext.deletion import drift

ORIGINAL = "no-op (original)"
HISTORY = [{"results": {ORIGINAL: {"TA": 90.0}, "AMUN": {"TA": 60.0}}}, {"results": {ORIGINAL: {"TA": 60.0}}}]


def model(weight: float) -> nn.Linear:
    made = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        made.weight[:] = torch.tensor([[0.0], [weight]])
    return made


def data(*inputs: float) -> TensorDataset:
    return TensorDataset(torch.tensor(inputs)[:, None], torch.ones(len(inputs), dtype=torch.int64))


def test_samples_that_come_back_are_told() -> None:
    earlier, test = data(*[0.9] * 60), data(*[0.1] * 60)
    back = drift.relapse(model(0.0), model(1.0), earlier, test)
    assert (back["samples"], back["ft_auc_before"], back["ft_auc"]) == (60, 50.0, 100.0)
    assert back["ft_auc_low"] > 90
    (told,) = drift.remarks(back, [], 90.0, ORIGINAL)
    assert "their FT AUC is 100.0 and was 50.0; retraining is recommended" in told
    assert drift.remarks(drift.relapse(model(1.0), model(0.0), earlier, test), [], 90.0, ORIGINAL) == []
    few = drift.relapse(model(0.0), model(1.0), data(0.9), test)
    assert drift.remarks(few, [], 90.0, ORIGINAL) == []  # one sample can be that by chance


def test_accuracy_is_compared_with_that_before_the_first_request() -> None:
    (told,) = drift.remarks(None, HISTORY, 87.9, ORIGINAL)
    assert "87.9 %, was 90.0 % before the first of 3 requests" in told
    assert drift.remarks(None, HISTORY, 88.0, ORIGINAL) == []
    for broken in ([], [{}], [{"results": 3}], [{"results": {ORIGINAL: []}}], [{"results": {ORIGINAL: {"TA": "x"}}}]):
        assert drift.remarks(None, broken, 10.0, ORIGINAL) == []
