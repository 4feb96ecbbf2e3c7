"""KLoM against the formula of its published code, and in an audit of several models."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, audit
from amun_ext.data import Splits
from amun_ext.metrics import klom, log_odds


def published(p_margins: np.ndarray, q_margins: np.ndarray) -> float:
    """KL(p || q) of one sample as in the benchmark: 20 half-open bins, the divergence of normalised counts."""
    from scipy.stats import entropy

    p_margins, q_margins = (np.clip(each, -100, 100) for each in (p_margins, q_margins))
    low, high = min(p_margins.min(), q_margins.min()), max(p_margins.max(), q_margins.max())
    edges = np.linspace(low, high if low < high else low + 1, 21)
    p, q = (
        np.array([np.sum(np.digitize(each, edges) == number) for number in range(1, 21)])
        for each in (p_margins, q_margins)
    )
    p, q = p / p.sum(), q / q.sum()
    return float(entropy(pk=p, qk=np.where(p > 0, np.maximum(q, 1e-5), q)))


@pytest.mark.parametrize(("unlearned", "retrained"), [(100, 100), (7, 12), (2, 2)])
def test_against_the_published_formula(unlearned: int, retrained: int) -> None:
    random = np.random.default_rng(5)
    ours = random.normal(random.normal(0, 3, 50), 2, (unlearned, 50))
    theirs = random.normal(random.normal(0, 3, 50), 1, (retrained, 50))
    ours[0, :5] = theirs[0, :5] = 3.0  # ties, and samples beyond the clip
    ours[:, 5], theirs[:, 6] = 400.0, -400.0
    theirs[0, 5] = 500.0
    expected = [published(ours[:, sample], theirs[:, sample]) for sample in range(50) if sample != 5]
    found = klom(torch.from_numpy(ours), theirs)
    assert math.isnan(found[5])  # every margin of the unlearned is the largest
    np.testing.assert_allclose(np.delete(found, 5), expected, rtol=1e-12, atol=1e-14)


def test_known_values() -> None:
    same = np.linspace(-1, 1, 40)[:, None]
    assert klom(same, same).tolist() == [0.0]
    assert klom(np.ones((3, 1)), np.ones((4, 1))).tolist() == [0.0]
    # all unlearned in the first bin, of the retrained (without the largest) half: KL = log 2
    assert klom([[0.0], [0.0]], [[0.0], [10.0], [20.0]]) == pytest.approx(math.log(2))
    # none of the retrained there, whose share is then 1e-5 of 1 + 1e-5
    assert klom([[0.0], [0.0]], [[10.0], [10.0], [20.0]]) == pytest.approx(math.log((1 + 1e-5) / 1e-5))


def test_refused() -> None:
    good = np.zeros((3, 2))
    for name, wrong in [
        ("unlearned", (good[0], good)),
        ("unlearned", (good[:1], good)),
        ("unlearned", (good * np.nan, good)),
        ("retrained", (good, good[:1])),
        ("retrained", (good, good[:, :1])),
        ("retrained", (good, good + np.inf)),
    ]:
        with pytest.raises(InputError, match=f"^{name} must be"):
            klom(*wrong)


@pytest.fixture
def splits() -> Splits:
    generator = torch.Generator().manual_seed(4)
    train, test = (torch.rand(size, 2, 1, 1, generator=generator) for size in (60, 30))
    return Splits(*(TensorDataset(x, x.flatten(1).argmax(1)) for x in (train, test)), ("first", "second"))


def linear(seed: int) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed))
    model[1].weight.data = torch.eye(2) + 0.1 * noise
    return model


def margins(models: list[nn.Module], data: tuple[Tensor, Tensor]) -> np.ndarray:
    return np.stack([log_odds(model(data[0]).detach(), data[1]).numpy() for model in models])


def test_in_an_audit_of_several_models(splits) -> None:
    """Of one model, or against one, there is none; the others are summarised, and the verdict is on the first."""
    unlearned, retrained, ids = [linear(seed) for seed in range(3)], [linear(seed) for seed in range(10, 14)], 12
    found = audit(unlearned, splits, torch.arange(ids), retrained=retrained)
    forget = splits.train.tensors[0][:ids], splits.train.tensors[1][:ids]
    each = klom(margins(unlearned, forget), margins(retrained, forget))
    row = found.rows["audited"]
    assert row["KLoM, forget"].value == pytest.approx(np.nanmean(each), rel=1e-5)
    assert row["KLoM, forget"].low < row["KLoM, forget"].value < row["KLoM, forget"].high
    alone = [audit(model, splits, torch.arange(ids), retrained=retrained) for model in unlearned]
    for name in ("FT AUC", "gap"):
        assert row[name].value == pytest.approx(np.mean([one.rows["audited"][name].value for one in alone]))
    assert found.verdict == alone[0].verdict
    assert "KLoM, forget" in found.to_text()
    assert "KLoM, forget" not in alone[0].rows["audited"]
    one = audit(unlearned, splits, torch.arange(ids), retrained=retrained[0])
    assert "KLoM, forget" not in one.rows["audited"]


def test_models_of_an_audit_are_checked(splits) -> None:
    for models in (3, [], ["model"], [linear(0), nn.Linear(2, 2)]):
        with pytest.raises(InputError, match=r"^model must be"):
            audit(models, splits, torch.arange(12))
