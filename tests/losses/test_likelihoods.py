from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from opsin.losses.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian

BYTES = np.arange(256) / 255
LIKELIHOODS = [
    Bernoulli(),
    Gaussian(),
    Gaussian(std=0.3),
    pytest.param(DiscretizedLogistic(), marks=pytest.mark.proofs),  # a mixture of one
    DiscretizedLogistic(mixtures=3),
]


# Compiled, which takes less time here than to run operation by operation.


@partial(jax.jit, static_argnums=0)
def log_prob(likelihood, outputs, images):
    return likelihood.log_prob(outputs, images)


@partial(jax.jit, static_argnums=0)
def mean(likelihood, outputs):
    return likelihood.mean(outputs)


@partial(jax.jit, static_argnums=(0, 3))
def sample(likelihood, seed, outputs, n):
    """n draws, as one of a tiled batch."""
    outputs = jnp.broadcast_to(outputs, (n, *outputs.shape))
    return likelihood.sample(jax.random.key(seed), outputs)


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images_for(likelihood, shape):
    x = np.random.default_rng(0).random(shape, np.float32)
    return {"binary": np.round(x), "bytes": np.round(255 * x) / np.float32(255), "real": x}[
        likelihood.support
    ]


def outputs_for(likelihood, shape, channels, seed=1):
    return normal(seed, (*shape, likelihood.outputs(channels)))


def pixels(values):
    """Images of one pixel: [n, 1, 1, channels] from [n, channels]."""
    return np.asarray(values, np.float32).reshape(len(values), 1, 1, -1)


# Against SciPy.


def test_bernoulli_is_scipys():
    images, logits = images_for(Bernoulli(), (3, 4, 5, 2)), normal(1, (3, 4, 5, 2))
    expected = stats.bernoulli.logpmf(images, special.expit(logits)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(log_prob(Bernoulli(), logits, images), expected, rtol=1e-5)


def test_gaussian_is_scipys():
    images, centre, log_std = images_for(Gaussian(), (3, 4, 5, 2)), *normal(2, (2, 3, 4, 5, 2))
    expected = stats.norm.logpdf(images, centre, np.exp(log_std)).sum(axis=(1, 2, 3))
    outputs = np.concatenate([centre, log_std], axis=-1)
    np.testing.assert_allclose(log_prob(Gaussian(), outputs, images), expected, rtol=1e-5)
    expected = stats.norm.logpdf(images, centre, 0.3).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(log_prob(Gaussian(std=0.3), centre, images), expected, rtol=1e-5)


@pytest.mark.parametrize("mixtures", [1, 3])
def test_discretised_logistic_is_differences_of_scipys_distribution(mixtures):
    likelihood = DiscretizedLogistic(mixtures)
    images = images_for(likelihood, (3, 4, 5, 2))
    images[0, 0], images[0, 1] = 0.0, 1.0
    outputs = outputs_for(likelihood, (3, 4, 5), channels=2)
    parts = np.asarray(outputs, np.float64).reshape(3, 4, 5, mixtures, 5)
    weights = np.exp(parts[..., 0]) / np.exp(parts[..., 0]).sum(axis=-1, keepdims=True)
    logistic = stats.logistic(parts[..., 1:3], np.exp(parts[..., 3:]))
    x = 2 * images.astype(np.float64)[..., None, :] - 1
    upper = np.where(x > 0.999, 1.0, logistic.cdf(x + 1 / 255))
    lower = np.where(x < -0.999, 0.0, logistic.cdf(x - 1 / 255))
    p = np.sum(weights * np.prod(upper - lower, axis=-1), axis=-1)
    expected = np.log(p).sum(axis=(1, 2))
    np.testing.assert_allclose(log_prob(likelihood, outputs, images), expected, rtol=1e-5)


# Sums over all values.


@pytest.mark.parametrize("logit", [-3.0, 0.0, 20.0])
def test_two_values_sum_to_one(logit):
    log_p = log_prob(Bernoulli(), np.full((1, 1, 1), logit), pixels([0.0, 1.0]))
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("centre", [-30.0, -1.0, 0.1, 1.0])
@pytest.mark.parametrize("log_scale", [-1e4, -7.0, -2.0, 3.0, 1e4])
def test_256_values_sum_to_one(centre, log_scale):
    outputs = np.array([5.0, centre, log_scale]).reshape(1, 1, 3)
    log_p = np.asarray(log_prob(DiscretizedLogistic(), outputs, pixels(BYTES)), np.float64)
    assert np.isfinite(log_p).all()
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-5)


def test_a_mixture_sums_to_one_over_all_colours():
    likelihood = DiscretizedLogistic(mixtures=3)
    outputs = outputs_for(likelihood, (1, 1), channels=2)
    colours = pixels(np.stack(np.meshgrid(BYTES, BYTES), axis=-1).reshape(-1, 2))
    p = np.exp(np.asarray(log_prob(likelihood, outputs, colours), np.float64))
    assert p.shape == (256**2,)
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-5)
    joint = p.reshape(256, 256)  # one choice of the component: the channels are dependent
    assert np.abs(joint - np.outer(joint.sum(axis=1), joint.sum(axis=0))).max() > 1e-6


def test_a_density_integrates_to_one():
    outputs = np.array([0.4, -1.5]).reshape(1, 1, 2)
    x = np.linspace(-3, 4, 7001)
    p = np.exp(log_prob(Gaussian(), outputs, pixels(x)))
    np.testing.assert_allclose(np.trapezoid(p, x), 1.0, rtol=1e-5)


# Extremes.


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_finite_at_extreme_outputs(likelihood):
    """Every combination of outputs of ±1e4 and 0, with black, white and grey or either."""
    count = likelihood.outputs(1)
    signs = np.stack(np.meshgrid(*[[-1e4, 0.0, 1e4]] * count), axis=-1).reshape(-1, 1, 1, count)
    values = [0.0, 1.0] if likelihood.support == "binary" else [0.0, 1 / 255, 0.6, 254 / 255, 1.0]
    images = pixels(values)[:, None]

    @jax.jit
    def both(outputs):
        log_p, back = jax.vjp(lambda outputs: likelihood.log_prob(outputs, images), outputs)
        return log_p, back(jnp.ones_like(log_p))[0]

    log_p, slope = both(np.float32(signs))
    assert log_p.shape == (len(values), len(signs))
    assert np.isfinite(log_p).all()
    assert np.isfinite(slope).all()


def test_slopes_pull_towards_the_image_from_afar():
    """Where differences of distribution functions in float32 are 0, and so would be the slope."""

    @partial(jax.jit, static_argnums=0)
    def slope(likelihood, outputs, images):
        return jax.grad(lambda outputs: likelihood.log_prob(outputs, images).sum())(outputs)

    outputs = np.tile(np.float32([0.0, 40.0, -3.0]), (2, 1, 1, 1))
    pulls = np.asarray(slope(DiscretizedLogistic(), outputs, pixels([0.0, 128 / 255])))
    assert (pulls[..., 1] < -10).all()
    saturated = slope(Bernoulli(), pixels([1e4, -1e4]), pixels([0.0, 1.0]))
    np.testing.assert_allclose(np.asarray(saturated).ravel(), [-1.0, 1.0])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_small_floats_are_computed_in_float32(likelihood):
    outputs = outputs_for(likelihood, (2, 3, 3), 1).astype(jnp.bfloat16)
    images = images_for(likelihood, (2, 3, 3, 1))

    @jax.jit
    def every(outputs, images):
        draws = likelihood.sample(jax.random.key(0), outputs)
        return likelihood.log_prob(outputs, images), likelihood.mean(outputs), draws

    narrow, wide = (every(x, images) for x in (outputs, outputs.astype(np.float32)))
    for one, other in zip(narrow, wide, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-6)
    if likelihood.support != "real":  # bytes survive in 8 bits
        small = log_prob(likelihood, outputs, images.astype(jnp.bfloat16))
        np.testing.assert_allclose(narrow[0], small, rtol=1e-6)


# Draws and means.


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (Bernoulli(), [0.6]),
        (DiscretizedLogistic(), [0.0, 0.8, -1.5]),  # a tenth of it is white
        (DiscretizedLogistic(mixtures=2), [0.5, -0.4, -2.5, -0.5, 0.3, -1.5]),
    ],
)
def test_draws_have_the_probabilities(likelihood, outputs):
    outputs = np.float32(outputs).reshape(1, 1, -1)
    values = [0.0, 1.0] if likelihood.support == "binary" else BYTES
    p = np.exp(np.asarray(log_prob(likelihood, outputs, pixels(values)), np.float64))
    draws = np.asarray(sample(likelihood, 6, outputs, 20_000)).ravel()
    places = np.round(draws * (len(values) - 1)).astype(int)
    np.testing.assert_allclose(draws, np.asarray(values)[places], atol=1e-6)
    shares = np.bincount(places, minlength=len(values)) / 20_000
    # Kolmogorov and Smirnov's bound at one in a hundred.
    assert np.abs(np.cumsum(shares - p)).max() < 1.63 / np.sqrt(20_000)


def test_colours_are_drawn_from_one_component():
    """Black and white halves, far apart: never one channel of each."""
    outputs = np.float32([0.0, -9.0, -9.0, -7.0, -7.0, 0.0, 9.0, 9.0, -7.0, -7.0]).reshape(1, 1, 10)
    draws = np.asarray(sample(DiscretizedLogistic(mixtures=2), 7, outputs, 2000))
    np.testing.assert_array_equal(draws[..., 0], draws[..., 1])
    assert abs(draws.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_noise_of_the_gaussian():
    outputs = np.float32([0.4, -1.0]).reshape(1, 1, 2)
    draws = np.asarray(sample(Gaussian(), 8, outputs, 20_000)).ravel()
    assert stats.kstest(draws, stats.norm(0.4, np.exp(-1)).cdf).pvalue > 0.01
    draws = np.asarray(sample(Gaussian(std=2.0), 9, outputs[..., :1], 20_000)).ravel()
    assert stats.kstest(draws, stats.norm(0.4, 2.0).cdf).pvalue > 0.01


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_means_are_images_and_those_of_the_draws(likelihood):
    outputs = outputs_for(likelihood, (2, 3), 2, seed=10)
    wide = np.asarray(mean(likelihood, 10 * outputs))
    assert ((wide >= 0) & (wide <= 1)).all()
    # Means inside (0, 1) and little spread, so that nothing is clipped.
    outputs = {"binary": outputs, "bytes": 0.3 * outputs, "real": 0.1 * outputs + 0.5}[
        likelihood.support
    ]
    if isinstance(likelihood, DiscretizedLogistic):
        outputs.reshape(2, 3, likelihood.mixtures, 5)[..., 3:] = -4.0
    centre = np.asarray(mean(likelihood, outputs))
    assert centre.shape == (2, 3, 2)
    draws = np.asarray(sample(likelihood, 11, outputs, 4000))
    error = draws.std(axis=0) / np.sqrt(4000)
    assert (np.abs(draws.mean(axis=0) - centre) < 4.5 * error + 1e-4).all()


# Shapes.


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_draws_of_a_latent_broadcast_over_one_batch(likelihood):
    images = images_for(likelihood, (2, 3, 4, 3))
    outputs = outputs_for(likelihood, (5, 2, 3, 4), 3)
    log_p = log_prob(likelihood, outputs, images)
    assert log_p.shape == (5, 2)
    each = [log_prob(likelihood, draw, images) for draw in outputs]
    np.testing.assert_allclose(log_p, each, rtol=1e-5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_nothing_else_broadcasts(likelihood):
    images = images_for(likelihood, (2, 3, 4, 3))
    outputs = outputs_for(likelihood, (2, 3, 4), 3)
    for wrong in (outputs[:, :1], outputs[:, :, :1], outputs[..., :1], outputs[..., :-1]):
        with pytest.raises(ValueError, match=r"takes outputs \[..., 3, 4, \d+\]") as caught:
            likelihood.log_prob(wrong, images)
        assert "\n" not in str(caught.value)


def test_bad_options_and_outputs_raise():
    for std in (0.0, -1.0):
        with pytest.raises(ValueError, match="std"):
            Gaussian(std=std)
    with pytest.raises(ValueError, match="mixtures"):
        DiscretizedLogistic(mixtures=0)
    with pytest.raises(ValueError, match="log-deviations"):
        Gaussian().mean(jnp.zeros((2, 2, 3)))
    for width in (2, 5, 7, 8):
        with pytest.raises(ValueError, match="2 components"):
            DiscretizedLogistic(mixtures=2).mean(jnp.zeros((2, 2, width)))
