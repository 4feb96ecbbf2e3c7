"""RMIA against the plain loop over pairs, and against what a retrained model must get."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pairs import pairs
from scipy.stats import trim_mean

from amun_ext import InputError
from amun_ext.metrics import DEFAULT_PRESET, PRESETS, auc, rmia


def generator():
    return np.random.default_rng(int(torch.randint(2**31, ()).item()))


def pairwise(ratio, gamma, strict=True, population=None):
    """Share of the other samples of the population, one pair after the other."""
    rows = range(len(ratio)) if population is None else population
    shares = []
    with np.errstate(all="ignore"):
        for x in range(len(ratio)):
            others = [ratio[x] / ratio[z] for z in rows if z != x]
            wins = sum(bool(of > gamma if strict else of >= gamma) for of in others)
            shares.append(wins / len(others) if others else math.nan)
    return np.array(shares)


def of_ratios(ratios, **options):
    """A call whose ratios are `ratios` to the last bit: every prior is one."""
    ratios = np.asarray(ratios, dtype=np.float64)
    membership = np.arange(2)[:, None] == np.arange(ratios.shape[-1]) % 2
    reference = np.ones((*ratios.shape[:-1], *membership.shape))
    return rmia(ratios, reference, membership, **options)


def neighbours(value, steps):
    for _ in range(abs(steps)):
        value = np.nextafter(value, math.copysign(math.inf, steps))
    return float(value)


gammas = st.sampled_from([1.0, 2.0, 1.5, 3.0, 1.1, 0.7, 1e-3, 1e6])
# Few values, so that ties, equality at gamma and signs meet often; with the ends of the range.
lattice = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 1.5, 2.0, -2.0, 3.0, 6.0, 5e-324, 1e-300, -1e-300, 1e300, 1.1])
anything = st.floats(allow_nan=False, allow_infinity=False)


def same(one, other):
    np.testing.assert_array_equal(one, other)  # bit for bit, NaN in the same places


class TestScore:
    @given(
        st.lists(lattice, min_size=1, max_size=25) | st.lists(anything, min_size=1, max_size=25),
        st.data(),
        gammas | st.floats(1e-10, 1e10),
        st.booleans(),
    )
    def test_is_the_share_of_pairs(self, ratios, data, gamma, strict):
        """With ties, zeros and signs, for any numbers and any population."""
        rows = data.draw(st.none() | st.lists(st.integers(0, len(ratios) - 1), min_size=1, unique=True))
        result = of_ratios(ratios, gamma=gamma, strict=strict, population=rows)
        same(result.ratio, ratios)
        same(result.score, pairwise(np.array(ratios), gamma, strict, rows))

    @given(
        st.lists(st.tuples(st.floats(0.01, 100), st.integers(-3, 3)), min_size=1, max_size=15),
        st.sampled_from([1.0, 2.0, 3.0, 1.1, 1.7, 0.9]),
        st.booleans(),
    )
    def test_is_so_for_neighbours_in_floating_point_of_what_equals_gamma(self, planted, gamma, strict):
        ratios = np.array([of for value, steps in planted for of in (value, neighbours(value / gamma, steps))])
        same(of_ratios(ratios, gamma=gamma, strict=strict).score, pairwise(ratios, gamma, strict))

    def test_is_nan_for_one_sample(self):
        result = of_ratios([0.5])
        assert result.ratio.tolist() == [0.5]
        assert math.isnan(result.score[0])

    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.same_inputs
    def test_equals_the_matrix_on_2000_samples_of_both_signs_as_published(self, strict):
        random = generator()
        # Odd sixteenths: no sum of seven is zero, and ties and equality at gamma are many.
        target, reference = (2 * random.integers(-3, 8, size) + 1 for size in (2000, (7, 2000)))
        target <<= random.integers(2, size=2000)
        options = dict(PRESETS["amun"].arguments) | {"strict": strict}
        result = rmia(target / 16, reference / 16, random.random((7, 2000)) < 0.5, **options)
        assert result.diagnostics.below_zero > 100
        assert result.diagnostics.priors_not_positive > 10
        np.testing.assert_allclose(result.ratio, target / reference.mean(axis=0), rtol=1e-12)
        quotients = result.ratio[:, None] / result.ratio
        assert (quotients == 2.0).sum() > 100
        above = (np.greater if strict else np.greater_equal)(quotients, 2.0)
        np.fill_diagonal(above, False)
        same(result.score, above.sum(axis=1) / 1999)


class TestPrior:
    @pytest.mark.parametrize(("trim", "count"), pairs([0.0, 0.1, 0.2, 0.3, 0.49], [2, 5, 10]))
    def test_trimmed_is_scipys(self, trim, count):
        random = generator()
        target, reference = random.random(9), random.random((count, 9))
        result = rmia(target, reference, random.random((count, 9)) < 0.5, trim=trim)
        np.testing.assert_allclose(result.ratio, target / trim_mean(reference, trim, axis=0))
        np.testing.assert_allclose(result.log_ratio, np.log(result.ratio))

    @pytest.mark.parametrize(("a", "prior"), [(0.0, 0.7), (1.0, 0.4), (0.3, 0.61)])
    def test_offline_is_of_those_that_were_not_trained_on_the_sample(self, a, prior):
        result = rmia([0.5], [[0.9], [0.3], [0.5]], [[True], [False], [False]], mode="offline", a=a)
        assert result.ratio.tolist() == pytest.approx([0.5 / prior])

    def test_offline_takes_one_reference(self):
        result = rmia([0.5, 0.7], [[0.5, 0.4]], [[False, False]], mode="offline", a=1.0)
        assert result.ratio.tolist() == pytest.approx([1.0, 1.75])

    def test_of_zero_gives_infinity_that_exceeds_all_but_infinity(self):
        result = rmia([0.5, 0.5, 0.5], [[0.0, 0.5, 0.0], [0.0, 0.5, 0.0]], np.eye(3, dtype=bool)[:2])
        assert result.ratio.tolist() == [math.inf, 1.0, math.inf]
        assert result.score.tolist() == [0.5, 0.0, 0.5]
        assert result.diagnostics.priors_not_positive == 2

    def test_zero_by_zero_is_refused(self):
        with pytest.raises(InputError, match="target must be not zero where the prior is zero, got 1 zeros"):
            rmia([0.0, 0.5], [[0.0, 0.5]] * 2, np.eye(2, dtype=bool))

    def test_tensors_and_float32_are_as_good_as_lists(self):
        target, reference, membership = torch.rand(5), torch.rand(4, 5, requires_grad=True), torch.rand(4, 5) < 0.5
        result = rmia(target, reference, membership)
        again = rmia(target.tolist(), reference.tolist(), membership.tolist())
        assert result.ratio.dtype == np.float64
        same(result.score, again.score)
        same(result.ratio, again.ratio)


class TestAugmented:
    def test_takes_the_geometric_mean(self):
        random = generator()
        ratios = random.lognormal(size=(3, 40))
        result = of_ratios(ratios)
        np.testing.assert_allclose(result.ratio, ratios.prod(axis=0) ** (1 / 3))
        same(result.score, pairwise(result.ratio, 2.0))
        assert result.diagnostics.augmentations == 3

    @pytest.mark.parametrize(("times", "strict", "gamma"), pairs([1, 2, 3, 4], [True, False], [0.5, 1.0, 2.0]))
    def test_a_vote_is_of_more_than_half(self, monkeypatch, times, strict, gamma):
        monkeypatch.setitem(rmia.__globals__, "PAIRS_AT_ONCE", 50)  # several tiles, the last not full
        ratios = generator().normal(0.5, 1, (times, 23)).round(1)
        rows = [3, 1, 20, 7]
        ratios[: times // 2, rows[0]] = 0.0  # of which half does not exceed itself by any gamma
        ratios[times // 2 :, rows[0]] = 1.0
        result = of_ratios(ratios, aggregate="vote", strict=strict, gamma=gamma, population=rows)
        expected = []
        for x in range(23):
            with np.errstate(all="ignore"):
                quotients = [ratios[:, x] / ratios[:, z] for z in rows if z != x]
            wins = [(of > gamma if strict else of >= gamma).sum() > times / 2 for of in quotients]
            expected.append(np.mean(wins))
        same(result.score, expected)

    def test_no_geometric_mean_of_what_is_not_positive_or_infinite(self):
        ratios = [[1.0, -1.0, 0.0], [1.0, 1.0, 1.0]]
        with pytest.raises(InputError, match=r"positive, finite ratios .* got 2 of 3 samples with others"):
            of_ratios(ratios)
        assert np.isnan(of_ratios(ratios, aggregate="vote").ratio).tolist() == [False, True, False]
        reference = np.array([[[0.0, 1.0], [0.0, 1.0]]])
        with pytest.raises(InputError, match="got 1 of 2 samples with others"):
            rmia([[0.5, 0.5]], reference, np.eye(2, dtype=bool))


LUCK = 6.2  # standard errors: a normal variable is as far off once in 10^9 draws


def audit(random, members_of_references, mode):
    """Area of the forget set of a retrained model against the test set, and the arguments of its audit.

    Log-odds are Gaussian about what a sample is by nature, and two higher in a model that was trained on it.
    """
    forget, test = np.arange(1500), np.arange(1500, 3000)
    nature = random.normal(0.0, 2.0, 3000)
    membership = random.permuted(np.arange(16)[:, None].repeat(3000, axis=1), axis=0) < 8
    membership[:, ~members_of_references] = False
    reference = 1 / (1 + np.exp(-(nature + 2 * membership + random.normal(0, 0.5, membership.shape))))
    target = 1 / (1 + np.exp(-(nature + random.normal(0, 0.5, 3000))))
    arguments = {"target": target, "reference": reference, "membership": membership, "mode": mode}
    result = rmia(**arguments)
    return auc(result.ratio[forget], result.ratio[test]), arguments | {"groups": {"forget": forget, "test": test}}


class TestGroups:
    def test_a_retrained_model_gets_50_when_references_know_both_sets(self):
        area, arguments = audit(generator(), np.ones(3000, dtype=bool), "online")
        assert abs(area.value - 50) < LUCK * area.standard_error
        groups = rmia(**arguments).diagnostics.groups
        assert asdict(groups["forget"]) == {"ins": (8, 8), "outs": (8, 8), "share": 0.5}

    def test_far_less_when_they_know_one_set_which_is_refused(self):
        area, arguments = audit(generator(), np.arange(3000) < 1500, "online")
        assert area.value < 42  # 25 deviations above its mean over draws, 20.6
        with pytest.raises(InputError, match=r"groups must be .* in online mode; .* got shares forget 0.5, test 0"):
            rmia(**arguments)
        assert rmia(**arguments, tolerance=0.5).diagnostics.groups["test"].ins == (0, 0)

    def test_offline_takes_either(self):
        area, arguments = audit(generator(), np.arange(3000) < 1500, "offline")
        assert abs(area.value - 50) < LUCK * area.standard_error
        assert rmia(**arguments).diagnostics.groups["test"].outs == (16, 16)

    def test_rows_must_be_rows(self):
        for rows in ([0, 9], [], [0.5], [1, 1], [True]):
            with pytest.raises(InputError, match=r"groups\['forget'\] must be"):
                of_ratios([1.0, 2.0, 3.0, 4.0], groups={"forget": rows})
            with pytest.raises(InputError, match="population must be"):
                of_ratios([1.0, 2.0, 3.0, 4.0], population=rows)


def test_diagnostics_count_what_is_no_probability():
    reference = [[-0.1, 0.5, 0.5], [0.1, 0.5, -2.0], [0.0, 0.5, 0.5]]
    membership = [[True, True, False], [True, True, False], [True, False, False]]
    seen = asdict(rmia([-0.5, 1.5, 0.1], reference, membership).diagnostics)
    assert seen == {
        "references": 3,
        "augmentations": 1,
        "ins": (0, 3),
        "outs": (0, 3),
        "groups": {},
        "below_zero": 1,
        "above_one": 1,
        "references_below_zero": 2,
        "priors_not_positive": 2,
        "distinct_scores": 2,
    }


GOOD = {"target": [0.5, 0.6], "reference": [[0.5, 0.6], [0.4, 0.3]], "membership": [[True, False], [False, True]]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"target": [0.5, math.nan]}, "target must be finite, got 1 of 2 not finite"),
        ({"target": [0.5, math.inf]}, "target must be finite"),
        ({"reference": [[0.5, 0.6], [-math.inf, math.nan]]}, "reference must be finite, got 2 of 4"),
        ({"target": []}, r"target must be \[N\] or \[A, N\], not empty"),
        ({"target": 0.5}, r"target must be \[N\]"),
        ({"target": [[0.5], [0.5, 0.6]]}, "target must be an array of numbers"),
        ({"target": [0.5, 0.6, 0.7]}, r"reference must be \[M, 3\]"),
        ({"target": [[0.5, 0.6]]}, r"reference must be \[1, M, 2\]"),
        ({"reference": np.ones((0, 2))}, "M >= 1"),
        ({"membership": [[1, 0], [0, 1]]}, "membership must be bool, got int64"),
        ({"membership": [[True, False]]}, r"membership must be of shape \(2, 2\), got \(1, 2\)"),
        ({"reference": [[0.5, 0.6]], "membership": [[True, False]]}, "reference must be of at least 2 models"),
        ({"mode": "offline", "membership": [[True, False], [True, True]]}, "got 1 of 2 samples with fewer"),
        ({"mode": "both"}, "mode must be one of"),
        ({"gamma": 0}, "gamma must be positive and finite, got 0"),
        ({"gamma": math.nan}, "gamma must be positive"),
        ({"gamma": math.inf}, "gamma must be positive"),
        ({"trim": 0.5}, r"trim must be in \[0, 0.5\), got 0.5"),
        ({"trim": 0.1, "mode": "offline"}, "trim must be 0 in offline mode"),
        ({"a": 1.5}, r"a must be in \[0, 1\], got 1.5"),
        ({"aggregate": "mean"}, "aggregate must be one of"),
    ],
)
def test_refuses_what_does_not_fit(bad, message):
    with pytest.raises(InputError, match=message):
        rmia(**GOOD | bad)


def test_presets_are_keyword_arguments():
    assert DEFAULT_PRESET in PRESETS
    for preset in PRESETS.values():
        same(rmia(**GOOD, **preset.arguments).score, rmia(**GOOD).score)
    assert PRESETS["amun"].signal_options == {"order": 4, "margin": 0.6, "temperature": 2.0}
