import itertools

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
    return jax.random.normal(jax.random.key(seed), shape)


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
    schedule, t = Discrete(), jnp.array([1, 500, 1000])
    levels = schedule.levels(t)
    x0, noise = draw(0, (3, 5)), draw(1, (3, 5))
    expected = np.asarray(levels.alpha)[:, None] * x0 + np.asarray(levels.sigma)[:, None] * noise
    np.testing.assert_allclose(diffuse(x0, noise, levels), expected, rtol=1e-6)
    whole = diffuse(x0, noise, schedule.levels(jnp.array(500)))
    np.testing.assert_allclose(whole[1], expected[1], rtol=1e-6)


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
    fraction = jnp.array([0.0, 1.0, 0.5])
    mixed = interpolated_log_variance(fraction, small[0], large[0])
    np.testing.assert_allclose(mixed, [small[0], large[0], (small[0] + large[0]) / 2], rtol=1e-6)
    alone = reverse_log_variances(schedule.levels(np.array([50, 0])))
    assert np.isfinite(alone).all()


@given(
    st.floats(0.05, 1.0),
    st.floats(0.05, 50.0),
    st.integers(0, 2**31 - 1),
    st.sampled_from(list(itertools.product(TARGETS, TARGETS))),
)
@settings(max_examples=60, deadline=None)
def test_conversions_are_true_and_inverses(alpha, sigma, seed, pair):
    source, target = pair
    levels = Levels(jnp.float32(alpha), jnp.float32(sigma))
    x0, noise = (np.random.default_rng(seed).normal(size=(2, 3, 4))).astype(np.float32)
    x_t = diffuse(jnp.asarray(x0), jnp.asarray(noise), levels)
    first = target_value(jnp.asarray(x0), jnp.asarray(noise), levels, source)
    second = convert(first, x_t, levels, source=source, target=target)
    # Rounding is of x_t, and what is divided by α or σ is as much larger.
    atol = 1e-5 * max(1, sigma) / min(alpha, sigma, 1) ** 2
    expected = target_value(jnp.asarray(x0), jnp.asarray(noise), levels, target)
    np.testing.assert_allclose(second, expected, rtol=1e-4, atol=atol)
    back = convert(second, x_t, levels, source=target, target=source)
    np.testing.assert_allclose(back, first, rtol=1e-4, atol=10 * atol)


def test_targets_are_the_papers():
    alpha, sigma = 0.8, 0.6
    x0, noise = draw(2), draw(3)
    values = {t: target_value(x0, noise, Levels(alpha, sigma), t) for t in TARGETS}
    np.testing.assert_allclose(values["v"], alpha * noise - sigma * x0, rtol=1e-6)
    np.testing.assert_array_equal(values["epsilon"], noise)
    np.testing.assert_array_equal(values["x0"], x0)
    x_t = alpha * x0 + sigma * noise

    def log_q(x):
        return jnp.sum(-0.5 * jnp.square((x - alpha * x0) / sigma))

    np.testing.assert_allclose(values["score"], jax.grad(log_q)(x_t), rtol=1e-4, atol=1e-5)


def test_levels_of_a_batch_reach_their_images():
    levels = Levels(jnp.array([0.6, 1.0]), jnp.array([0.8, 2.0]))
    x0, noise = draw(4, (2, 3, 3, 1)), draw(5, (2, 3, 3, 1))
    x_t = diffuse(x0, noise, levels)
    for source, target in itertools.product(TARGETS, TARGETS):
        options = {"source": source, "target": target}
        together = convert(x0, x_t, levels, **options)
        for i in range(2):
            one = jax.tree.map(lambda v, i=i: v[i : i + 1], (x0, x_t, levels))
            np.testing.assert_allclose(together[i : i + 1], convert(*one, **options), rtol=1e-6)


def test_denoiser_clips_and_splits():
    def model(x, t):
        assert t.shape == (2,)
        return jnp.concatenate([2 * x, x - 1], axis=-1).astype(jnp.bfloat16)

    x, point = jnp.array([[0.25, -3.0], [1.0, 0.5]]), Point(4, Levels(0.6, 0.8))
    plain = Denoiser(model, "x0", learned_variance=True)(x, point)
    np.testing.assert_allclose(plain.x0, 2 * x, rtol=1e-2)
    np.testing.assert_allclose(plain.fraction, x - 1, rtol=1e-2)
    assert plain.x0.dtype == jnp.float32
    clipped = Denoiser(model, "x0", clip=1.0, learned_variance=True)(x, point)
    np.testing.assert_array_equal(clipped.x0, [[0.5, -1.0], [1.0, 1.0]])
    assert Denoiser(lambda x, t: x, "v")(x, point).fraction is None


def test_levels_are_a_pytree():
    levels = jax.jit(lambda v: Levels(v, 2 * v))(jnp.array(2.0))
    assert levels.snr == 0.25
