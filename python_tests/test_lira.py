"""LiRA against scipy's densities, and on Gaussians where the answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from amun_ext import InputError
from amun_ext.metrics import auc, lira


def world(seed, count, models, spread=1.0, shift=2.0):
    """Log-odds of references and of a target that was trained on the first half of the samples."""
    random = np.random.default_rng(seed)
    nature = random.normal(0, 3, count)
    membership = random.permuted(np.arange(models)[:, None].repeat(count, axis=1), axis=0) < models // 2
    reference = nature + shift * membership + random.normal(0, spread, (models, count))
    return nature + shift * (np.arange(count) < count // 2) + random.normal(0, spread, count), reference, membership


def seed():
    return int(torch.randint(2**31, ()).item())


def one_by_one(target, reference, membership, mode, variance):
    """The evidence, sample after sample."""
    kinds = {}
    for kind, of in (("in", membership), ("out", ~membership)):
        answers = [column[rows] for column, rows in zip(reference.T, of.T, strict=True)]
        deviations = np.concatenate([column - column.mean() for column in answers])
        pooled = np.sqrt((deviations**2).sum() / sum(len(column) - 1 for column in answers))
        kinds[kind] = [(column.mean(), pooled if variance == "pooled" else column.std(ddof=1)) for column in answers]
    if mode == "offline":
        return [(of - mean) / spread for of, (mean, spread) in zip(target, kinds["out"], strict=True)]
    pairs = zip(target, kinds["in"], kinds["out"], strict=True)
    return [norm.logpdf(of, *inside) - norm.logpdf(of, *outside) for of, inside, outside in pairs]


cases = pytest.mark.parametrize(
    ("mode", "variance"), [(mode, variance) for mode in ("online", "offline") for variance in ("pooled", "each")]
)


@cases
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(4, 9))
def test_is_the_ratio_of_likelihoods(mode, variance, seed, count, models):
    arrays = world(seed, count, models)
    expected = one_by_one(*arrays, mode, variance)
    np.testing.assert_allclose(lira(*arrays, mode=mode, variance=variance), expected, rtol=1e-8, atol=1e-8)


@cases
def test_augmentations_are_averaged(mode, variance):
    first, second = (world(of, 20, 6) for of in (seed(), seed() + 1))
    membership = first[2]
    each = [lira(*of[:2], membership, mode=mode, variance=variance) for of in (first, second)]
    target, reference = (np.stack(pair) for pair in zip(first[:2], second[:2], strict=True))
    both = lira(target, torch.from_numpy(reference), torch.from_numpy(membership), mode=mode, variance=variance)
    np.testing.assert_allclose(both, np.mean(each, axis=0))


@cases
@pytest.mark.same_inputs
def test_finds_members_as_well_as_the_true_likelihood(mode, variance):
    evidence = lira(*world(seed(), 2000, 64), mode=mode, variance=variance)
    area = auc(evidence[:1000], evidence[1000:])
    # Two Gaussians, two standard deviations apart.
    assert area.value == pytest.approx(100 * norm.cdf(2 / np.sqrt(2)), abs=4 * area.standard_error + 1)


def test_a_pooled_variance_is_better_with_few_references():
    arrays = world(seed(), 3000, 4)
    pooled, each = (lira(*arrays, variance=variance) for variance in ("pooled", "each"))
    gain = auc(pooled[:1500], pooled[1500:]).value - auc(each[:1500], each[1500:]).value
    assert gain > 3  # 15 deviations below its mean over draws, 15.9


def test_a_sample_far_below_its_references_is_no_member_offline():
    evidence = lira([-30.0, 0.0, 30.0], *world(seed(), 3, 8)[1:], mode="offline")
    assert (np.diff(evidence) > 0).all()


@pytest.mark.parametrize(
    ("membership", "options", "message"),
    [
        ([[True, False], [True, True]], {"mode": "online"}, "references not trained on it, got 1 of 2 samples with"),
        ([[True, False], [False, False]], {"mode": "online"}, "references trained on it, got 1 of 2 samples with"),
        ([[True, True], [True, False]], {"mode": "offline"}, "references not trained on it, got 1 of 2"),
        ([[True, False], [False, True]], {"variance": "each"}, "has 2 or more references not trained on it, got 2 of"),
        ([[True, False], [False, True]], {}, "reference must be two or more models"),
        ([[False, False], [False, False]], {"mode": "offline", "variance": "all"}, "variance must be one of"),
        ([[False, False], [False, False]], {"mode": "on"}, "mode must be one of"),
    ],
)
def test_refuses_too_few_references(membership, options, message):
    with pytest.raises(InputError, match=message):
        lira([0.0, 1.0], [[0.0, 1.0], [2.0, 3.0]], membership, **options)


@pytest.mark.parametrize(("variance", "count"), [("pooled", "1 of 1"), ("each", "2 of 2")])
def test_refuses_references_that_are_all_alike(variance, count):
    with pytest.raises(InputError, match=rf"reference must be answers that differ .* got {count} alike"):
        lira([0.0, 1.0], np.ones((3, 2)), np.zeros((3, 2), dtype=bool), mode="offline", variance=variance)
