import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.ops.diffusion.process import (
    Denoiser,
    Levels,
    Point,
    between,
    convert,
    diffuse,
    interpolated_log_variance,
    posterior,
    reverse_log_variances,
    target_value,
    transition_variance,
)
from opsin.ops.diffusion.schedules import Discrete, linear_betas
from opsin.ops.diffusion.sde import SubVariancePreserving, VarianceExploding, VariancePreserving

TARGETS = ("epsilon", "x0", "v", "score")
PROCESSES = (Discrete(), VariancePreserving(), VarianceExploding(), SubVariancePreserving())


def draw(seed, shape=(4, 3, 2)):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_marginals_are_those_of_the_chain():
    """By draws of q(x_t|x_{t-1}), step by step."""
    schedule = Discrete(steps=30)
    rng, x = np.random.default_rng(0), np.full(20_000, 1.5)
    for t, beta in enumerate(linear_betas(30), start=1):
        x = np.sqrt(1 - beta) * x + np.sqrt(beta) * rng.normal(size=x.shape)
        if t in (3, 12, 30):
            levels = schedule.levels(np.array(t))
            error = levels.sigma / np.sqrt(len(x))
            assert abs(x.mean() - 1.5 * levels.alpha) < 4 * error
            assert abs(x.std() - levels.sigma) < 4 * error / np.sqrt(2)


def test_draws_of_a_time_have_its_levels():
    schedule = Discrete()
    x0, noise = draw(0, (3, 5)), draw(1, (3, 5))

    @jax.jit
    def run(t):
        levels = schedule.levels(t)
        return levels, diffuse(x0, noise, levels)

    levels, found = jax.tree.map(np.asarray, run(np.array([1, 500, 1000])))
    expected = levels.alpha[:, None] * x0 + levels.sigma[:, None] * noise
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    _, whole = run(np.array(500))
    np.testing.assert_allclose(np.asarray(whole)[1], expected[1], rtol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("steps", [2, 7, 1000])
def test_posterior_is_that_of_bayes(process, steps):
    """The product of N(x_s; α_s x_0, σ_s²) and q(x_t|x_s), between any two times."""
    now, before = between(process.levels(process.times(steps)[:-1]))
    ratio, transition = now.alpha / before.alpha, transition_variance(before, now)
    variance = 1 / (1 / before.sigma**2 + ratio**2 / transition)
    q = posterior(before, now)
    np.testing.assert_allclose(q.variance, variance, rtol=1e-9)
    np.testing.assert_allclose(q.x, variance * ratio / transition, rtol=1e-9)
    np.testing.assert_allclose(q.x0, variance * before.alpha / before.sigma**2, rtol=1e-9)


def test_posterior_of_one_step_is_equation_7():
    schedule, betas = Discrete(), linear_betas(1000)
    bar = np.cumprod(1 - betas)
    q = posterior(schedule.levels(np.arange(1, 1000)), schedule.levels(np.arange(2, 1001)))
    now, before, beta = bar[1:], bar[:-1], betas[1:]
    np.testing.assert_allclose(q.variance, (1 - before) / (1 - now) * beta, rtol=1e-9)
    np.testing.assert_allclose(q.x0, np.sqrt(before) * beta / (1 - now), rtol=1e-9)
    np.testing.assert_allclose(q.x, np.sqrt(1 - beta) * (1 - before) / (1 - now), rtol=1e-9)


def test_posterior_of_the_last_step_is_the_data():
    schedule = Discrete()
    q = posterior(schedule.levels(np.array(0)), schedule.levels(np.array(40)))
    np.testing.assert_allclose(q, (0.0, 1.0, 0.0), atol=1e-12)


def test_reverse_variances_and_what_lies_between():
    schedule, betas = Discrete(steps=50), linear_betas(50)
    small, large = reverse_log_variances(schedule.levels(schedule.times(50)))
    np.testing.assert_allclose(np.exp(large), betas[::-1], rtol=1e-9)
    assert np.all(small <= large)
    assert small[-1] == small[-2]  # log 0 otherwise
    fraction = np.float32([0.0, 1.0, 0.5])
    mixed = interpolated_log_variance(fraction, small[0], large[0])
    np.testing.assert_allclose(mixed, [small[0], large[0], (small[0] + large[0]) / 2], rtol=1e-6)
    alone = reverse_log_variances(schedule.levels(np.array([50, 0])))
    assert np.isfinite(alone).all()


@partial(jax.jit, static_argnames=("source", "target"))
def there_and_back(x0, noise, levels, source, target):
    x_t = diffuse(x0, noise, levels)
    first = target_value(x0, noise, levels, source)
    second = convert(first, x_t, levels, source=source, target=target)
    expected = target_value(x0, noise, levels, target)
    return first, second, expected, convert(second, x_t, levels, source=target, target=source)


@given(
    st.floats(0.05, 1.0),
    st.floats(0.05, 50.0),
    st.integers(0, 2**31 - 1),
    st.sampled_from(list(itertools.product(TARGETS, TARGETS))),
)
@settings(max_examples=60, deadline=None)
def test_conversions_are_true_and_inverses(alpha, sigma, seed, pair):
    x0, noise = np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)
    # Rounding is of x_t, and what is divided by α or σ is as much larger.
    atol = 1e-5 * max(1, sigma) / min(alpha, sigma, 1) ** 2
    first, second, expected, back = there_and_back(x0, noise, Levels(alpha, sigma), *pair)
    np.testing.assert_allclose(second, expected, rtol=1e-4, atol=atol)
    np.testing.assert_allclose(back, first, rtol=1e-4, atol=10 * atol)


def test_targets_are_the_papers():
    alpha, sigma = 0.8, 0.6
    x0, noise = draw(2), draw(3)
    value = jax.jit(target_value, static_argnums=3)
    values = {t: value(x0, noise, Levels(alpha, sigma), t) for t in TARGETS}
    np.testing.assert_allclose(values["v"], alpha * noise - sigma * x0, rtol=1e-6)
    np.testing.assert_array_equal(values["epsilon"], noise)
    np.testing.assert_array_equal(values["x0"], x0)
    x_t = alpha * x0 + sigma * noise

    def log_q(x):
        return jnp.sum(-0.5 * jnp.square((x - alpha * x0) / sigma))

    np.testing.assert_allclose(values["score"], jax.jit(jax.grad(log_q))(x_t), rtol=1e-4, atol=1e-5)


def test_levels_of_a_batch_reach_their_images():
    levels = Levels(np.float32([0.6, 1.0]), np.float32([0.8, 2.0]))
    x0, noise = draw(4, (2, 3, 3, 1)), draw(5, (2, 3, 3, 1))
    pairs = list(itertools.product(TARGETS, TARGETS))

    @jax.jit
    def every(x0, noise, levels):
        x_t = diffuse(x0, noise, levels)
        return jnp.stack([convert(x0, x_t, levels, source=s, target=t) for s, t in pairs])

    together = np.asarray(every(x0, noise, levels))
    for i in range(2):
        one = jax.tree.map(lambda v, i=i: v[i : i + 1], (x0, noise, levels))
        np.testing.assert_allclose(together[:, i : i + 1], every(*one), rtol=1e-6)


def test_denoiser_clips_and_splits():
    def model(x, t):
        assert t.shape == (2,)
        return jnp.concatenate([2 * x, x - 1], axis=-1).astype(jnp.bfloat16)

    x, point = np.float32([[0.25, -3.0], [1.0, 0.5]]), Point(4, Levels(0.6, 0.8))

    @jax.jit
    def both(x):
        options = ({}, {"clip": 1.0})
        return [Denoiser(model, "x0", learned_variance=True, **o)(x, point) for o in options]

    plain, clipped = both(x)
    np.testing.assert_allclose(plain.x0, 2 * x, rtol=1e-2)
    np.testing.assert_allclose(plain.fraction, x - 1, rtol=1e-2)
    assert plain.x0.dtype == jnp.float32
    np.testing.assert_array_equal(clipped.x0, [[0.5, -1.0], [1.0, 1.0]])
    without = Denoiser(lambda x, t: x, "v")
    assert jax.eval_shape(lambda x: without(x, point), x).fraction is None


def test_levels_are_a_pytree():
    levels = jax.jit(lambda v: Levels(v, 2 * v))(2.0)
    assert levels.snr == 0.25
