from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.ops.diffusion.schedules import (
    Discrete,
    LogSnr,
    cosine_betas,
    cosine_log_snr,
    linear_betas,
    linear_log_snr,
    rescale_to_zero_snr,
    sigmoid_betas,
)
from opsin.ops.diffusion.sde import SubVariancePreserving, VarianceExploding, VariancePreserving

BETAS = (linear_betas, cosine_betas, sigmoid_betas)
CONTINUOUS = (
    LogSnr(),
    LogSnr(linear_log_snr),
    VariancePreserving(),
    VarianceExploding(),
    SubVariancePreserving(),
)


def name(thing):
    return getattr(thing, "__name__", type(thing).__name__)


def test_linear_is_that_of_ddpm():
    betas = linear_betas(1000)
    np.testing.assert_allclose(betas[[0, -1]], [1e-4, 0.02])
    np.testing.assert_allclose(np.diff(betas), np.diff(betas)[0])
    np.testing.assert_allclose(Discrete().levels(np.array(1000)).alpha ** 2, 4.0358e-5, rtol=1e-4)
    short = Discrete(steps=100).levels(np.array(100))
    np.testing.assert_allclose(np.log(short.alpha**2), np.log(4.0358e-5), rtol=0.1)


def test_cosine_is_equation_17():
    t = np.arange(1000)
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    levels = Discrete(cosine_betas).levels(t)
    np.testing.assert_allclose(levels.alpha**2, f[:-1] / f[0], rtol=1e-9)
    assert cosine_betas(1000)[-1] == 0.999


def test_sigmoid_is_a_sigmoid():
    levels = Discrete(sigmoid_betas).levels(np.arange(1001))
    bar = levels.alpha**2
    np.testing.assert_allclose(bar[500], 0.5, rtol=1e-9)
    np.testing.assert_allclose((bar + bar[::-1])[1:-1], 1.0, rtol=1e-9)  # point symmetric
    steep = Discrete(partial(sigmoid_betas, tau=0.5)).levels(np.array(100)).alpha ** 2
    assert steep > bar[100]


@pytest.mark.parametrize("betas", BETAS, ids=name)
@pytest.mark.parametrize("zero", [False, True])
def test_levels_fall_from_data_to_noise(betas, zero):
    schedule = Discrete(betas, steps=200, zero_terminal_snr=zero)
    levels = schedule.levels(np.arange(201))
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1.0, rtol=1e-12)
    assert (levels.alpha[0], levels.sigma[0]) == (1.0, 0.0)
    assert np.all(np.diff(levels.alpha) < 0)
    assert (levels.alpha[-1] == 0) == zero
    assert levels.alpha[-1] < 0.02


def test_zero_terminal_snr_is_algorithm_1():
    """Lin et al.: no signal in the end, the first step as it was, and β_T = 1."""
    plain, rescaled = (Discrete(zero_terminal_snr=z).levels(np.arange(1, 1001)) for z in (0, 1))
    np.testing.assert_allclose(rescaled.alpha[0], plain.alpha[0], rtol=1e-12)
    np.testing.assert_allclose(rescale_to_zero_snr(plain.alpha), rescaled.alpha)
    slope = np.diff(rescaled.alpha) / np.diff(plain.alpha)
    np.testing.assert_allclose(slope, slope[0], rtol=1e-9)
    assert rescaled.sigma[-1] == 1.0


def test_times_of_discrete_steps():
    schedule = Discrete(steps=100)
    np.testing.assert_array_equal(schedule.times(100), np.arange(100, -1, -1))
    np.testing.assert_array_equal(schedule.times(4), [100, 75, 50, 25, 0])
    for steps in (0, 101):
        with pytest.raises(ValueError, match="100 steps"):
            schedule.times(steps)
    with pytest.raises(TypeError, match="integers"):
        schedule.levels(jnp.array([0.5]))
    with pytest.raises(ValueError, match=r"beta must lie in \(0, 1\]"):
        Discrete(steps=10)
    with pytest.raises(ValueError, match="at least 2"):
        Discrete(steps=1)


def test_variances_are_the_tables():
    schedule, betas = Discrete(steps=50), linear_betas(50)
    small, large = jax.jit(schedule.log_variances)(np.array([1, 2, 50]))
    np.testing.assert_allclose(np.exp(large), betas[[0, 1, 49]], rtol=1e-5)
    bar = np.cumprod(1 - betas)
    posterior = (1 - bar[:-1]) / (1 - bar[1:]) * betas[1:]
    np.testing.assert_allclose(np.exp(small), posterior[[0, 0, 48]], rtol=1e-5)


@pytest.mark.parametrize("process", [*CONTINUOUS, Discrete()], ids=name)
def test_grids_of_karras_are_equation_5(process):
    grid = process.karras_times(12, rho=5.0)
    assert grid.shape == (13,)
    assert grid[-1] == 0
    levels = process.levels(grid[:-1])
    ratios = (levels.sigma / levels.alpha) ** (1 / 5)
    rtol = 0.03 if isinstance(process, Discrete) else 1e-9
    np.testing.assert_allclose(ratios, np.linspace(ratios[0], ratios[-1], 12), rtol=rtol)
    assert grid[-2] == pytest.approx(1 if isinstance(process, Discrete) else process.start)
    last = process.levels(process.times(12)[:1])
    first = min((last.sigma / last.alpha)[0], 80 * process.prior_std)
    np.testing.assert_allclose(ratios[0] ** 5, first, rtol=rtol)
    with pytest.raises(ValueError, match="at least 2"):
        process.karras_times(1)


def test_grids_that_discrete_steps_do_not_have():
    with pytest.raises(ValueError, match="take fewer"):
        Discrete(steps=100).karras_times(90)
    for silent in (Discrete(zero_terminal_snr=True), Discrete(steps=20)):  # β of the last is 1
        with pytest.raises(ValueError, match="there is no signal"):
            silent.karras_times(5)


@pytest.mark.parametrize("betas", BETAS, ids=name)
def test_every_schedule_has_short_grids_of_karras(betas):
    """Without an end in between the noise of a cosine goes from 20,000 to 13 in one of 20 steps."""
    schedule = Discrete(betas)
    for steps in (2, 5, 10):
        levels = schedule.levels(schedule.karras_times(steps)[:-1])
        assert (levels.sigma / levels.alpha)[0] < 90


@pytest.mark.parametrize("process", CONTINUOUS, ids=name)
def test_times_of_noise(process):
    t = np.linspace(0.01, 1.0, 50)
    levels = process.levels(t)
    np.testing.assert_allclose(process.time_of(levels.sigma / levels.alpha), t, rtol=1e-9)
    np.testing.assert_allclose(process.times(4), [1, 0.75, 0.5, 0.25, 0])
    for steps in (0, round(2 / process.start)):
        with pytest.raises(ValueError, match="steps must lie in 1 to"):
            process.times(steps)


def test_nearest_discrete_time():
    schedule = Discrete()
    levels = schedule.levels(np.arange(1, 1001))
    ratios = levels.sigma / levels.alpha
    np.testing.assert_array_equal(schedule.time_of(ratios * 1.0001), np.arange(1, 1001))
    np.testing.assert_array_equal(schedule.time_of(np.array([1e-9, 1e9])), [1, 1000])


@pytest.mark.parametrize("process", [*CONTINUOUS, Discrete(), Discrete(cosine_betas)], ids=name)
def test_levels_traced_are_those_of_numpy(process):
    discrete = isinstance(process, Discrete)
    t = np.array([1, 30, 500, 1000]) if discrete else np.array([1e-3, 0.03, 0.5, 1.0], np.float32)
    traced, host = jax.jit(process.levels)(t), process.levels(t)
    np.testing.assert_allclose(traced.alpha, host.alpha, rtol=1e-4)
    np.testing.assert_allclose(traced.sigma, host.sigma, rtol=1e-4)
    assert traced.sigma.dtype == jnp.float32


def test_log_snr_is_what_its_name_says():
    t = np.linspace(0, 1, 11)
    for log_snr in (cosine_log_snr, linear_log_snr, partial(cosine_log_snr, low=-8.0, high=9.0)):
        levels = LogSnr(log_snr).levels(t)
        np.testing.assert_allclose(np.log(levels.snr), log_snr(t), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1.0)
    np.testing.assert_allclose(cosine_log_snr(t[[0, -1]], low=-8.0, high=9.0), [9.0, -8.0])
    np.testing.assert_allclose(linear_log_snr(t), np.linspace(13.3, -10, 11))
    wide = LogSnr(partial(cosine_log_snr, low=-40.0, high=40.0)).levels(t)
    np.testing.assert_allclose(wide.alpha, np.cos(t * np.pi / 2), atol=1e-8)


@pytest.mark.parametrize("process", [Discrete(steps=20), VariancePreserving(start=0.25)], ids=name)
def test_times_of_training(process):
    keys = jax.random.split(jax.random.key(0), 4000)
    draw_times = jax.jit(process.draw_times)
    t = np.asarray(draw_times(keys))
    low, high = (1, 20) if isinstance(process, Discrete) else (0.25, 1.0)
    assert low <= t.min() < low + 0.01 * high
    assert high * 0.99 < t.max() <= high
    assert abs(t.mean() - (low + high) / 2) < 4 * t.std() / np.sqrt(4000)
    np.testing.assert_array_equal(draw_times(keys[7:9]), t[7:9])
