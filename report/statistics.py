"""Numbers over seeds: mean, spread, bootstrap interval and paired differences."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LARGEST_EXACT = 5  # 5**5 = 3,125 resamples; one value more would need 46,656
SAMPLED_RESAMPLES = 9_999


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What ``n`` values say about the mean they were drawn around; None where ``n`` is too small.

    Attributes:
        n: how many values.
        mean: their mean; None for n = 0.
        std: sample standard deviation, divisor n - 1; None for n < 2.
        low: lower end of the 95 % interval of ``bootstrap_interval``; None for n < 2.
        high: its upper end.
    """

    n: int
    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, sample standard deviation and bootstrap interval of ``values``, one for each seed.

    One value that is not finite makes them all NaN: a seed that diverged must not look fine.
    """
    n = len(values)
    if n == 0:
        return Estimate(n=0)
    finite = all(map(math.isfinite, values))
    # fsum rounds once, so the last digit does not depend on the machine or the NumPy version.
    mean = math.fsum(values) / n if finite else math.nan
    if n == 1:
        return Estimate(n=1, mean=mean)
    if not finite:
        return Estimate(n=n, mean=mean, std=math.nan, low=math.nan, high=math.nan)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    low, high = bootstrap_interval(values)
    return Estimate(n=n, mean=mean, std=std, low=low, high=high)


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron, 1979; Efron and Tibshirani, 1993, ch. 13).

    Up to five values, all n**n resamples are enumerated: the interval is exact and draws nothing.
    Beyond, ``scipy.stats.bootstrap`` draws 9,999 resamples with a fixed generator.

    Read it with care for few seeds. With two or three values each extreme is the mean of more than
    2.5 % of the resamples (1/4 and 1/27), so the 95 % interval is exactly their range. Around a
    symmetric distribution that range covers the true mean with probability 1 - 2 * 0.5**n: 75 %
    with three seeds, not 95 %. An interval that excludes 0 then says that all seeds agree, no more.

    Args:
        values: n >= 2 finite numbers.
        level: the interval's nominal coverage, between 0 and 1.

    Returns:
        The lower and the upper end.
    """
    if len(values) > LARGEST_EXACT:
        from scipy import stats  # takes a second to import and few reports need it

        interval = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=level,
            method="percentile",
            n_resamples=SAMPLED_RESAMPLES,
            rng=np.random.default_rng(0),
        ).confidence_interval
        return float(interval.low), float(interval.high)
    resamples = np.array(list(itertools.product(values, repeat=len(values))))  # [n**n, n]
    tail = (1 - level) / 2
    # The distribution is discrete: its quantiles are members of it, nothing between them.
    low, high = np.quantile(resamples.mean(axis=1), [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def prediction_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Where one more value lies with probability ``level``, if they are normally distributed.

    mean ± t s √(1 + 1/n), with the quantile t of Student's distribution of n - 1 degrees of freedom
    and the sample standard deviation s. Two values give ± 15.6 s, three ± 5.0 s, five ± 3.0 s.

    Args:
        values: n >= 2 finite numbers.
        level: between 0 and 1.

    Returns:
        The lower and the upper end.
    """
    from scipy import stats  # takes a second to import and few commands need it

    n = len(values)
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    room = float(stats.t.ppf((1 + level) / 2, n - 1)) * std * math.sqrt(1 + 1 / n)
    return mean - room, mean + room


def paired_differences(arm: Mapping[int, float], baseline: Mapping[int, float]) -> dict[int, float]:
    """``arm`` minus ``baseline`` for each seed that both have: seed -> difference.

    Arms that share a seed share data order and often initialisation; their difference loses what
    the seed gave to both.
    """
    return {seed: arm[seed] - baseline[seed] for seed in sorted(arm.keys() & baseline.keys())}
