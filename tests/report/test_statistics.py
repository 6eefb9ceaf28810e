"""Statistics over seeds against hand-computed values and SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from opsin.report.statistics import Estimate, bootstrap_interval, estimate, paired_differences


def test_estimate_by_hand():
    # Deviations -2, -1, 3: squares sum to 14, over n - 1 = 2.
    assert estimate([1.0, 2.0, 6.0]) == Estimate(n=3, mean=3.0, std=math.sqrt(7), low=1.0, high=6.0)


def test_too_few_values_have_no_spread():
    assert estimate([]) == Estimate(n=0)
    assert estimate([0.5]) == Estimate(n=1, mean=0.5)


def test_equal_values_have_no_width():
    assert estimate([0.25] * 4) == Estimate(n=4, mean=0.25, std=0.0, low=0.25, high=0.25)


def test_four_values_by_hand():
    # Of the 4**4 = 256 resamples of 0, 0, 0, 4 the mean is the number of fours drawn. All four:
    # 1/256 < 2.5 %. Three: 12/256, so 13/256 > 2.5 % lie at 3 or above. None: 81/256.
    assert bootstrap_interval([0.0, 0.0, 0.0, 4.0]) == (0.0, 3.0)
    # 80 % leaves 25.6 resamples at each side, and 12 + 1 + 54 lie at 2 or above.
    assert bootstrap_interval([0.0, 0.0, 0.0, 4.0], level=0.8) == (0.0, 2.0)


@pytest.mark.parametrize("n", [2, 3])
def test_interval_of_two_or_three_is_their_range(n):
    values = [0.93, 0.91, 0.96][:n]
    assert bootstrap_interval(values) == pytest.approx((min(values), max(values)), abs=1e-12)


def test_the_range_of_three_covers_three_times_in_four():
    draws = np.random.default_rng(0).normal(size=(20_000, 3))
    covered = np.mean((draws.min(axis=1) < 0) & (draws.max(axis=1) > 0))
    assert covered == pytest.approx(1 - 2 * 0.5**3, abs=0.01)


@pytest.mark.parametrize("n", [4, 5])
def test_exact_interval_is_the_limit_of_scipy(n):
    values = np.random.default_rng(n).normal(0.9, 0.02, size=n)
    sampled = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=100_000, rng=np.random.default_rng(1)
    ).confidence_interval
    # 3,125 resamples lie about 1e-4 apart in the tails.
    assert bootstrap_interval(list(values)) == pytest.approx((sampled.low, sampled.high), abs=5e-4)


def test_sampled_interval_repeats_and_approaches_the_normal_one():
    values = list(np.random.default_rng(2).normal(size=200))
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    half = 1.96 * np.std(values) / math.sqrt(200)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.01)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=5), st.floats(-10, 10))
def test_interval_brackets_the_mean_and_moves_with_the_values(values, shift):
    result = estimate(values)
    assert result.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert result.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert min(values) - 1e-9 <= result.low <= result.mean + 1e-9
    assert result.mean - 1e-9 <= result.high <= max(values) + 1e-9
    moved = bootstrap_interval([value + shift for value in values])
    assert moved == pytest.approx((result.low + shift, result.high + shift), abs=1e-9)


def test_differences_pair_by_seed():
    arm, baseline = {2: 0.75, 0: 0.5, 1: 1.0}, {0: 0.25, 2: 1.0, 7: 0.0}
    assert paired_differences(arm, baseline) == {0: 0.25, 2: -0.25}
    assert paired_differences(arm, {}) == {}


def test_pairing_removes_what_the_seed_gave_to_both():
    seed_effect = {0: 0.0, 1: 10.0, 2: -10.0}
    arm = {seed: effect + 1.0 for seed, effect in seed_effect.items()}
    result = estimate(list(paired_differences(arm, seed_effect).values()))
    assert (result.mean, result.std, result.low, result.high) == (1.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("others", [1, 2, 6])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_seed_that_diverged_stays_visible(odd, others):
    result = estimate([odd, *[0.5] * others])
    assert result.n == 1 + others
    assert np.isnan([result.mean, result.std, result.low, result.high]).all()
