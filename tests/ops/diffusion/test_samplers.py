from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from opsin.ops.diffusion.langevin import AnnealedLangevin, PredictorCorrector
from opsin.ops.diffusion.process import Denoiser, Point, between
from opsin.ops.diffusion.samplers import Ancestral, Ddim, DpmSolver2M, Heun
from opsin.ops.diffusion.sampling import prior_noise, sample, sample_path
from opsin.ops.diffusion.schedules import Discrete, LogSnr, cosine_betas, linear_betas
from opsin.ops.diffusion.sde import SubVariancePreserving, VarianceExploding, VariancePreserving
from tests.ops.mixture import Mixture, two_in_plane

PRESERVING, EXPLODING = VariancePreserving(), VarianceExploding(sigma_max=10.0)
LANGEVIN = AnnealedLangevin(corrections=40)

noise = jax.jit(prior_noise, static_argnums=(1, 2))


def keys_of(number):
    return jax.random.split(jax.random.key(0), number)


def generate(model, sampler, times, number, **options):
    keys = keys_of(number)
    x = noise(keys, (len(model.means[0]),), model.process)
    run = partial(sample, model.denoiser, model.process, sampler, times=times, **options)
    return np.asarray(jax.jit(run)(keys, x))


def grid(process, times):
    return Point(times, process.levels(times))


# Coefficients, in closed form.


@pytest.mark.parametrize(
    "process",
    [Discrete(), Discrete(cosine_betas), PRESERVING, EXPLODING, SubVariancePreserving(), LogSnr()],
    ids=lambda p: type(p).__name__,
)
@pytest.mark.parametrize("steps", [5, 50])
def test_ddim_of_eta_1_is_ancestral_in_law(process, steps):
    """Mean and variance of every step, as functions of x_t and x̂_0, are the same."""
    points = grid(process, process.times(steps))
    ddim, ancestral = (s.plan(process, points) for s in (Ddim(eta=1.0), Ancestral()))
    for ours, theirs in zip(
        (ddim.x, ddim.x0, ddim.noise),
        (ancestral.linear.x, ancestral.linear.x0, ancestral.linear.noise),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    half = Ddim(eta=0.5).plan(process, points)
    np.testing.assert_allclose(half.noise, 0.5 * ddim.noise, rtol=1e-6)


def test_ancestral_steps_are_algorithm_2():
    """Of Ho et al.: x ← (x − β/√(1−ᾱ) ε̂)/√α + σ z, with σ² = β or β̃, and none in the last."""
    schedule, betas = Discrete(), linear_betas(1000)
    bar = np.cumprod(1 - betas)
    points = grid(schedule, schedule.times(1000))
    small, large = (Ancestral(v).plan(schedule, points).linear for v in ("small", "large"))
    now = between(points.levels)[0]
    # With x̂_0 = (x − σ ε̂) / α, coefficients of x and ε̂ instead of x and x̂_0.
    np.testing.assert_allclose((small.x + small.x0 / now.alpha)[::-1], 1 / np.sqrt(1 - betas))
    expected = -betas / np.sqrt(1 - bar) / np.sqrt(1 - betas)
    np.testing.assert_allclose((-small.x0 * now.sigma / now.alpha)[::-1], expected, rtol=1e-6)
    np.testing.assert_allclose(large.noise[:-1], np.sqrt(betas)[:0:-1], rtol=1e-9)
    tilde = (1 - bar[:-1]) / (1 - bar[1:]) * betas[1:]
    np.testing.assert_allclose(small.noise[:-1], np.sqrt(tilde)[::-1], rtol=1e-6)
    assert large.noise[-1] == small.noise[-1] == 0.0


def test_the_law_of_ancestral_samples_nears_the_data_as_steps_grow():
    """Of normal data the law of a sample is normal: its variance, step by step, is exact."""
    model = Mixture(PRESERVING)
    errors = []
    process = VariancePreserving(start=1e-4)
    for steps in (800, 1600, 3200):
        points = grid(process, process.times(steps))
        linear, now = Ancestral().plan(process, points).linear, between(points.levels)[0]
        gain = now.alpha * model.std**2 / (now.alpha**2 * model.std**2 + now.sigma**2)
        variance = 1.0
        for i in range(steps):
            variance *= (linear.x[i] + linear.x0[i] * gain[i]) ** 2
            variance += linear.noise[i] ** 2
        errors.append(abs(variance - model.std**2))
    assert errors[-1] < 0.003
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 1.0, atol=0.05)


# Orders, without draws: of normal data x_t = α m + √(α² s² + σ²) z along the flow, for one z.


def smooth_times(process, steps):
    return process.time_of(np.geomspace(20.0, 0.1, steps + 1))


@pytest.mark.parametrize(
    ("sampler", "order"), [(Ddim(), 1), (DpmSolver2M(), 2), (Heun(), 2)], ids=lambda s: str(s)[:5]
)
@pytest.mark.parametrize("process", [PRESERVING, EXPLODING], ids=("VP", "VE"))
def test_errors_fall_at_the_order_of_the_sampler(sampler, order, process):
    if process is EXPLODING:
        process = replace(process, sigma_max=30.0)
    model, z = Mixture(process), np.linspace(-2, 2, 9)[:, None]
    errors = []
    for steps in (24, 48):
        times = smooth_times(process, steps)
        first, last = (model.at(t) for t in times[[0, -1]])
        x = first.mean() + first.std * z
        run = partial(sample, model.denoiser, process, sampler, times=times, denoise_last=False)
        ended = jax.jit(run)(keys_of(9), np.float32(x))
        errors.append(np.abs(ended - (last.mean() + last.std * z)).max())
    assert errors[-1] < 10.0 ** (-order)
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_orders_hold_for_a_mixture():
    """Against the flow in many steps, for all targets that a model may have."""

    def ended(sampler, steps, target="v"):
        times = smooth_times(PRESERVING, steps)
        model = two_in_plane(PRESERVING, target)
        return generate(model, sampler, times, 64, denoise_last=False)

    exact = ended(Heun(), 500)
    some, more = (ended(DpmSolver2M(), steps) for steps in (20, 40))
    order = np.log2(np.abs(some - exact).mean() / np.abs(more - exact).mean())
    assert order == pytest.approx(2, abs=0.4)
    for target in ("epsilon", "x0", "score"):
        np.testing.assert_allclose(ended(DpmSolver2M(), 20, target), some, atol=2e-3)


# Laws, by draws of a mixture of two in the plane.


@pytest.mark.parametrize(
    ("sampler", "process", "steps"),
    [
        (Ancestral(), PRESERVING, 100),
        (Ddim(), LogSnr(), 100),
        (DpmSolver2M(), Discrete(), 40),
        (Heun(), EXPLODING, 30),
        (PredictorCorrector(snr=0.1), PRESERVING, 100),
        pytest.param(Ancestral("large"), Discrete(), 400, marks=pytest.mark.proofs),
        pytest.param(Ancestral(), SubVariancePreserving(), 200, marks=pytest.mark.proofs),
        pytest.param(Ddim(eta=0.5), Discrete(cosine_betas), 100, marks=pytest.mark.proofs),
        pytest.param(Heun(churn=20.0), Discrete(), 30, marks=pytest.mark.proofs),
        pytest.param(Heun(), Discrete(cosine_betas), 25, marks=pytest.mark.proofs),
        pytest.param(LANGEVIN, EXPLODING, 60, marks=pytest.mark.proofs),
        pytest.param(PredictorCorrector(snr=0.1), EXPLODING, 200, marks=pytest.mark.proofs),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_samples_are_of_the_data(sampler, process, steps):
    """Means, covariances and shares of the components, within 0.03 and four standard errors."""
    number = 4000
    model = two_in_plane(process)
    times = process.karras_times if isinstance(sampler, Heun) else process.times
    x = generate(model, sampler, times(steps), number)
    assert_moments(x, model, bias=0.03)
    assert stats.kstest(x[:, 0], model.cdf).statistic < 0.03 + 1.36 / np.sqrt(number)


def assert_moments(x, model, bias):
    covariance = model.covariance()
    error = np.sqrt(np.diag(covariance) / len(x))
    assert (np.abs(x.mean(axis=0) - model.mean()) < bias + 4 * error).all()
    # The products of a mixture vary no more than those of a normal distribution would.
    spread = 4 * np.sqrt(2 / len(x)) * covariance.max()
    assert (np.abs(np.cov(x.T) - covariance) < bias + spread).all()


def test_no_signal_at_the_end_is_no_obstacle():
    schedule = Discrete(zero_terminal_snr=True)
    model = two_in_plane(schedule, "v")
    for sampler in (Ancestral(), DpmSolver2M()):
        x = generate(model, sampler, schedule.times(100), 2000)
        assert_moments(x, model, bias=0.03)
    for target in ("epsilon", "score"):
        with pytest.raises(ValueError, match='predict "v" or "x0"'):
            generate(two_in_plane(schedule, target), Ddim(), schedule.times(10), 2)
    with pytest.raises(ValueError, match="some signal"):
        generate(model, Heun(), schedule.times(10), 2)


def test_the_last_step_takes_the_noise_away():
    model = Mixture(VarianceExploding(sigma_min=0.3, sigma_max=10.0), std=0.1)
    times = model.process.times(100)
    noisy, clean = (
        generate(model, Ancestral(), times, 2000, denoise_last=last).std() for last in (False, True)
    )
    assert noisy == pytest.approx(np.hypot(0.1, 0.3), rel=0.06)
    assert clean < 0.1  # the mean of what the noise leaves open


# Options.


def test_learned_variances_are_between_the_fixed_ones():
    schedule = Discrete(steps=30)
    model, times = Mixture(schedule), schedule.times(30)
    keys = keys_of(4)
    x = noise(keys, (1,), schedule)

    def path(denoiser, variance="small"):
        run = partial(sample_path, denoiser, schedule, Ancestral(variance), times=times)
        return jax.jit(run)(keys, x).x

    for fraction, variance in ((0.0, "small"), (1.0, "large")):

        def learned(x, t, fraction=fraction):
            return jnp.concatenate([model(x, t), jnp.full_like(x, fraction)], axis=-1)

        learned = path(Denoiser(learned, "epsilon", learned_variance=True))
        np.testing.assert_allclose(learned, path(model.denoiser, variance), rtol=1e-4, atol=1e-5)
        assert np.isfinite(learned).all()


def test_corrections_of_size_0_leave_the_predictor():
    run = partial(generate, two_in_plane(EXPLODING), times=EXPLODING.times(7), number=4)
    np.testing.assert_allclose(
        run(sampler=PredictorCorrector(snr=0.0)), run(sampler=Ancestral()), rtol=1e-5
    )


def test_langevin_is_algorithm_1():
    """Of normal data, in one dimension, the law is exact: also with steps that are too large."""
    model = Mixture(EXPLODING, means=((0.0,),))
    times, a = np.array([1.0, 0.9]), 0.8
    last = EXPLODING.levels(np.array(1.0)).sigma
    variance = model.std**2 + last**2
    sampler = AnnealedLangevin(step_size=a, corrections=3)
    keys = keys_of(4000)
    x = np.full((4000, 1), 2.0, np.float32)
    run = partial(sample, model.denoiser, EXPLODING, sampler, times=times, denoise_last=False)
    ended = np.asarray(jax.jit(run)(keys, x))
    shrink, mean, expected = 1 - a * last**2 / (2 * variance), 2.0, 0.0
    for _ in range(3):
        mean, expected = shrink * mean, shrink**2 * expected + a * last**2
    error = np.sqrt(expected / 4000)
    assert abs(ended.mean() - mean) < 4 * error
    assert abs(ended.std() - np.sqrt(expected)) < 4 * error / np.sqrt(2)


def test_langevin_takes_steps_in_proportion_to_each_noise():
    """Also on the way: at every level the step is a share of its variance, and x stays as it is."""
    model = Mixture(EXPLODING, means=((0.0,),))
    times, a, count = EXPLODING.times(5), 0.8, 4000
    x = noise(keys_of(count), (1,), EXPLODING)
    sampler = AnnealedLangevin(step_size=a, corrections=2)
    run = partial(sample_path, model.denoiser, EXPLODING, sampler, times=times)
    passed = np.asarray(jax.jit(run)(keys_of(count), x).x)[..., 0]
    sigma, variance = EXPLODING.levels(times[:-1]).sigma, EXPLODING.prior_std**2
    for level, found in zip(sigma[:-1], passed[:-1], strict=True):
        for _ in range(2):
            shrink = 1 - a * level**2 / (2 * (model.std**2 + level**2))
            variance = shrink**2 * variance + a * level**2
        assert found.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / count))


def test_samplers_that_do_not_suit_are_refused():
    with pytest.raises(ValueError, match="does not scale the data"):
        LANGEVIN.plan(PRESERVING, grid(PRESERVING, PRESERVING.times(5)))
    for make, message in (
        (lambda: Ancestral("smal"), '"small" or "large"'),
        (lambda: AnnealedLangevin(step_size=0.0), "must be positive"),
        (lambda: PredictorCorrector(snr=-1.0), "must not be negative"),
        (lambda: Heun(churn=-1.0), "must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert PredictorCorrector(DpmSolver2M()).remembers
    assert not PredictorCorrector().remembers
