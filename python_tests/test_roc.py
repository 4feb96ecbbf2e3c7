"""ROC curves, intervals and differences of areas against scikit-learn, brute force and repeated draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binom, norm
from sklearn.metrics import auc as trapezoids
from sklearn.metrics import roc_auc_score

from amun_ext import InputError
from amun_ext.metrics import auc, auc_difference, auc_interval, roc, tpr_at_fpr
from amun_ext.metrics.auc import FEW


def generator():
    return np.random.default_rng(int(torch.randint(2**31, ()).item()))


# Few values, so that ties and infinities are common.
values = st.sampled_from([-math.inf, -1.5, 0.0, 1e-300, 2.0, 1e300, math.inf])
scores = st.lists(values, min_size=1, max_size=12)


class TestRoc:
    @given(scores, scores)
    def test_a_point_is_the_shares_from_its_threshold_on(self, members, nonmembers):
        curve = roc(members, nonmembers)
        assert (curve.fpr[0], curve.tpr[0]) == (0, 0)
        assert math.isnan(curve.threshold[0])
        assert curve.threshold[1:].tolist() == sorted({*members, *nonmembers}, reverse=True)
        for fpr, tpr, threshold in zip(curve.fpr[1:], curve.tpr[1:], curve.threshold[1:], strict=True):
            assert tpr == pytest.approx(100 * np.mean(np.array(members) >= threshold))
            assert fpr == pytest.approx(100 * np.mean(np.array(nonmembers) >= threshold))
        assert trapezoids(curve.fpr, curve.tpr) / 100 == pytest.approx(auc(members, nonmembers).value)

    @given(scores, scores, st.integers(0, 999).map(lambda tenths: tenths / 10 + 0.003))  # no share of up to 12 samples
    def test_the_rate_is_the_best_of_all_thresholds(self, members, nonmembers, level):
        [answer] = tpr_at_fpr(members, nonmembers, [level])
        ins, outs = np.array(members), np.array(nonmembers)
        allowed = [100 * (ins >= t).mean() for t in {*members, *nonmembers} if 100 * (outs >= t).mean() <= level]
        assert answer.resolution == 100 / len(nonmembers)
        if level < answer.resolution:
            assert math.isnan(answer.tpr)
        else:
            assert answer.tpr == pytest.approx(max(allowed, default=0.0))

    @pytest.mark.parametrize("count", [1000, 3000, 7000, 10_000])
    def test_a_thousandth_of_a_thousand_is_one(self, count):
        members, nonmembers = np.array([-0.5, count - 1.5, count - 0.5, count - 2.0]), np.arange(count)
        one, tenth = tpr_at_fpr(members, nonmembers)
        assert (one.fpr, tenth.fpr, tenth.resolution) == (1.0, 0.1, 100 / count)
        assert one.tpr == 75.0
        # One false alarm for each thousand, from the top: with two the equal score at count - 2 is let in.
        assert tenth.tpr == (50.0 if count == 1000 else 75.0)
        assert math.isnan(tpr_at_fpr(members, nonmembers, [99 / count])[0].tpr)

    def test_a_rate_that_is_a_whole_number_of_samples_allows_them_whatever_it_rounds_to(self):
        assert 0.7 * 11_000 / 100 < 77
        assert tpr_at_fpr([10_923.0], np.arange(11_000), [0.7])[0].tpr == 100.0

    @pytest.mark.parametrize("fpr", [0, -1, 101, math.nan])
    def test_refuses_what_is_no_rate(self, fpr):
        with pytest.raises(InputError, match="fprs must be percent"):
            tpr_at_fpr([1.0], [0.0], [fpr])


class TestInterval:
    def test_of_the_bootstrap_is_of_areas_as_scikit_learn_has_them(self):
        random = generator()
        members, nonmembers = random.normal(1, 1, 40).round(1), random.normal(0, 1, 60).round(1)
        measured = auc_interval(members, nonmembers, draws=200, seed=5)
        again, areas = np.random.default_rng(5), []
        for _ in range(200):
            ins, outs = (of[again.integers(len(of), size=len(of))] for of in (members, nonmembers))
            areas.append(100 * roc_auc_score(np.repeat([1, 0], [40, 60]), np.concatenate([ins, outs])))
        assert measured.bootstrap == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])))
        assert measured.value == auc(members, nonmembers).value

    @pytest.mark.parametrize("level", [68.0, 95.0])
    @pytest.mark.same_inputs
    def test_both_intervals_agree_where_samples_are_many(self, level):
        random = generator()
        members, nonmembers = random.normal(0.5, 1, 500), random.normal(0, 1, 700)
        measured, area = auc_interval(members, nonmembers, level=level), auc(members, nonmembers)
        assert measured.bootstrap == pytest.approx(measured.analytic, abs=area.standard_error / 2)
        width = {68.0: 0.994458, 95.0: 1.959964}[level]
        half = width * area.standard_error / 100 / (area.value / 100 * (1 - area.value / 100))
        ends = (100 * expit(logit(area.value / 100) + side * half) for side in (-1, 1))
        assert measured.analytic == pytest.approx(tuple(ends))

    def test_stays_inside_percent_and_says_when_it_is_unknown(self):
        measured = auc_interval([2.0, 3.0, 0.5], [0.0, 1.0])
        assert 0 <= measured.analytic[0] < measured.analytic[1] < 100
        assert auc_interval([1.0], [math.inf, 2.0]).analytic == pytest.approx((0, 97.5))  # one sample, which lost

    def test_covers_the_area_near_the_ends(self):
        """Where DeLong's normal does so in 8 of 10 cases only; an area of 100 is not certain."""
        random, repeats = generator(), 1000
        true, held, normal = 100 * norm.cdf(3.5 / math.sqrt(2)), 0, 0
        for _ in range(repeats):
            area = auc(random.normal(3.5, 1, 60), random.normal(0, 1, 60))
            low, high = area.interval()
            assert 0 < low <= area.value <= high <= 100
            held += low <= true <= high
            normal += abs(area.value - true) <= 1.96 * area.standard_error
        assert held >= binom.ppf(1e-9, repeats, 0.95) > normal
        assert auc(np.arange(60.0) + 60, np.arange(60.0)).interval() == pytest.approx((94.04, 100), abs=0.01)

    @pytest.mark.parametrize(
        ("ids", "test"), [(1, 1), (1, 300), (2, 300), (3, 20), (5, 300), (23, 300), (60, 300), (150, 300)]
    )
    @pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.0, 3.0), (3.5, 1.0), (-1.5, 1.0)])
    def test_covers_the_true_area_from_one_sample_on(self, ids, test, shift, spread):
        """In 95 % of cases of few samples, in 93 % with DeLong's error of more; but for a chance of 10^-9."""
        random, repeats = generator(), 300
        true = 100 * norm.cdf(shift / math.hypot(1.0, spread))
        held = 0
        for _ in range(repeats):
            low, high = auc(random.normal(shift, spread, ids), random.normal(0.0, 1.0, test)).interval()
            held += low <= true <= high
        assert held >= binom.ppf(1e-9, repeats, 0.95 if ids < FEW else 0.93)

    def test_draws_by_the_seed(self):
        sides = generator().normal(size=(2, 30))
        assert auc_interval(*sides, draws=50) == auc_interval(*sides, draws=50)
        assert auc_interval(*sides, draws=50).bootstrap != auc_interval(*sides, draws=50, seed=1).bootstrap

    @pytest.mark.parametrize("bad", [{"level": 0}, {"level": 100}, {"draws": 1}, {"draws": 2.0}, {"seed": -1}])
    def test_refuses_what_does_not_fit(self, bad):
        with pytest.raises(InputError, match=f"{next(iter(bad))} must be"):
            auc_interval([1.0, 2.0], [0.0], **bad)


def delong(one, other):
    """Difference and its error by the covariance matrices of the placements of both, from all pairs."""
    wins = [
        np.array([[(m > n) + 0.5 * (m == n) for n in nonmembers] for m in members])
        for members, nonmembers in (one, other)
    ]
    covariance = sum(np.cov([of.mean(axis=axis) for of in wins]) / wins[0].shape[1 - axis] for axis in (0, 1))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return 100 * (wins[0].mean() - wins[1].mean()), 100 * math.sqrt(max(variance, 0))


pairs = st.lists(st.tuples(values, values), min_size=2, max_size=8)


class TestDifference:
    @given(pairs, pairs)
    def test_is_delongs(self, members, nonmembers):
        one, other = (([of[i] for of in members], [of[i] for of in nonmembers]) for i in (0, 1))
        measured = auc_difference(one, other)
        assert (measured.value, measured.standard_error) == pytest.approx(delong(one, other), abs=1e-5)

    def test_of_independent_scores_has_the_errors_of_both(self):
        draws = generator().normal(size=(4, 3000))
        draws[0] += 1
        measured = auc_difference((draws[0], draws[1]), (draws[2], draws[3]))
        apart = [auc(draws[0], draws[1]), auc(draws[2], draws[3])]
        assert measured.value == pytest.approx(apart[0].value - apart[1].value)
        both = math.hypot(*(of.standard_error for of in apart))
        assert measured.standard_error == pytest.approx(both, rel=0.1)  # 15 deviations of their ratio over draws

    def test_the_error_is_the_spread_over_repeated_draws_of_scores_that_go_together(self):
        """But for a chance of 10^-10: the variance of 600 differences follows chi-square."""
        random, drawn = generator(), []
        for _ in range(600):
            members, nonmembers = random.normal(0.5, 1, 80), random.normal(0, 1, 100)
            noisy = [of + random.normal(0, 0.3, len(of)) for of in (members, nonmembers)]
            drawn.append((auc_difference((members, nonmembers), noisy), auc(members, nonmembers)))
        error = np.mean([difference.standard_error for difference, _ in drawn])
        assert error == pytest.approx(np.std([difference.value for difference, _ in drawn]), rel=0.22)
        assert error < drawn[0][1].standard_error / 2  # 11 deviations apart over draws

    def test_of_a_model_with_itself_is_nothing(self):
        sides = tuple(generator().normal(size=(2, 20)))
        measured = auc_difference(sides, sides)
        assert (measured.value, measured.standard_error) == (0.0, 0.0)

    def test_from_guessing(self):
        members, nonmembers = generator().normal(size=(2, 20))
        area, measured = auc(members, nonmembers), auc_difference((members, nonmembers))
        assert measured.value == pytest.approx(area.value - 50)
        assert measured.standard_error == pytest.approx(area.standard_error)

    def test_is_not_known_for_one_sample(self):
        assert math.isnan(auc_difference(([1.0], [0.0, 2.0]), ([0.5], [0.0, 2.0])).standard_error)

    def test_refuses_other_samples(self):
        with pytest.raises(InputError, match=r"others must be scores of the same samples, \(2, 1\) of them"):
            auc_difference(([1.0, 2.0], [0.0]), ([1.0], [2.0, 0.0]))
        with pytest.raises(InputError, match=r"others\[1\] must be free of NaN"):
            auc_difference(([1.0], [0.0]), ([1.0], [math.nan]))

    def test_several_others_add_what_lies_between_them(self):
        """Areas 100, 75 and 50 of the others: mean 75, and a variance of 25^2 of which the mean has a third."""
        one = ([3.0, 4.0], [1.0, 2.0])
        others = [one, ([1.5, 4.0], [1.0, 2.0]), ([1.0, 2.0], [1.0, 2.0])]
        found = auc_difference(one, *others)
        assert found.value == pytest.approx(25)
        assert found.run_variance == pytest.approx(625 / 3)
        assert auc_difference(one, others[1]).run_variance == 0
        mean = [auc_difference(one, other).value for other in others]
        assert found.value == pytest.approx(sum(mean) / 3)
        total = found.member_variance + found.nonmember_variance + found.run_variance
        assert found.standard_error == pytest.approx(math.sqrt(total))
