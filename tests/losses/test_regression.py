"""Closed forms in NumPy, relations between the losses, masks, extreme errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.losses.reduction import weighted_mean
from opsin.losses.regression import (
    absolute_error_loss,
    huber_loss,
    smooth_l1_loss,
    squared_error_loss,
    squared_log_error_loss,
)

LOSSES = [
    absolute_error_loss,
    squared_error_loss,
    squared_log_error_loss,
    functools.partial(huber_loss, delta=0.5),
    functools.partial(smooth_l1_loss, beta=0.5),
]


@pytest.fixture(scope="module")
def pair():
    """Predictions and targets above −1, [4, 6]."""
    return jax.random.uniform(jax.random.key(1), (2, 4, 6), minval=-0.9, maxval=3.0)


def gradient(loss, predictions, targets, **options):
    return jax.grad(lambda p: jnp.sum(loss(p, targets, **options)))(predictions)


def test_closed_forms(pair):
    p, t = np.asarray(pair, np.float64)
    e = np.abs(p - t)
    assert (e < 0.5).any()
    assert (e > 0.5).any()
    for loss, expected in zip(
        LOSSES,
        [
            e,
            e**2,
            (np.log(1 + p) - np.log(1 + t)) ** 2,
            np.where(e <= 0.5, e**2 / 2, 0.5 * (e - 0.25)),
            np.where(e <= 0.5, e**2, e - 0.25),
        ],
        strict=True,
    ):
        np.testing.assert_allclose(loss(*pair), expected, rtol=1e-5, atol=1e-7)


def test_smooth_l1_is_huber_over_beta(pair):
    for beta in (0.1, 1.0, 2.0):
        huber = huber_loss(*pair, delta=beta) / beta
        np.testing.assert_allclose(smooth_l1_loss(*pair, beta=beta), huber, rtol=1e-6)


def test_limits_of_huber_and_smooth_l1(pair):
    half_square = huber_loss(*pair, delta=100.0)
    np.testing.assert_allclose(2 * half_square, squared_error_loss(*pair), rtol=1e-6)
    small = smooth_l1_loss(*pair, beta=1e-6)
    np.testing.assert_allclose(small, absolute_error_loss(*pair), atol=1e-6)


def test_gradients():
    errors = jnp.array([-3.0, -0.25, 0.0, 0.25, 3.0])
    zero = jnp.zeros(5)
    sign = np.sign(errors)
    for loss, expected in [
        (absolute_error_loss, sign),
        (squared_error_loss, 2 * errors),
        (LOSSES[3], np.clip(errors, -0.5, 0.5)),
        (LOSSES[4], np.clip(2 * errors, -1, 1)),
    ]:
        np.testing.assert_allclose(gradient(loss, errors, zero), expected, rtol=1e-6)


def test_what_the_means_are_least_at():
    """The mean for squared errors, the median for absolute ones."""
    sample = jnp.array([0.0, 1.0, 2.0, 3.0, 94.0])
    guesses = jnp.array([1.0, 2.0, 3.0, 19.0, 20.0, 21.0])
    for loss, best in [(squared_error_loss, 20.0), (absolute_error_loss, 2.0)]:
        risk = jnp.mean(loss(*jnp.broadcast_arrays(guesses[:, None], sample)), axis=1)
        assert guesses[jnp.argmin(risk)] == best


def test_logarithmic_error_measures_ratios():
    p, t = jnp.array([1.0, 99.0]), jnp.array([3.0, 199.0])  # 1 + p is half of 1 + t
    np.testing.assert_allclose(squared_log_error_loss(p, t), np.log(2) ** 2, rtol=1e-5)


@pytest.mark.parametrize(("p", "t"), [(-1.0, 0.0), (-2.0, 0.0), (0.0, -1.0), (-1.0, -1.0)])
def test_no_logarithm_at_or_below_minus_one(p, t):
    p, t = jnp.array([p, 0.5]), jnp.array([t, 0.5])
    np.testing.assert_array_equal(np.isnan(squared_log_error_loss(p, t)), [True, False])
    keep = jnp.array([False, True])
    np.testing.assert_array_equal(squared_log_error_loss(p, t, where=keep), 0)
    assert jnp.isfinite(gradient(squared_log_error_loss, p, t, where=keep)).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_where_masks_value_and_gradient(loss, pair):
    p, t = pair
    keep = p < 1.0
    broken = jnp.where(keep, p, jnp.nan), jnp.where(keep, t, -7.0)
    actual = loss(*broken, where=keep)
    np.testing.assert_array_equal(actual, jnp.where(keep, loss(p, t), 0.0))
    slope = gradient(loss, *broken, where=keep)
    np.testing.assert_array_equal(slope, jnp.where(keep, gradient(loss, p, t), 0.0))
    assert weighted_mean(actual, keep) > 0
    with jax.debug_nans(True):
        assert jnp.isfinite(gradient(loss, p, t, where=jnp.zeros_like(keep))).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_finite_at_large_errors(loss):
    p = jnp.array([1e4, 0.0, 1e4, -0.999])
    t = jnp.array([0.0, 1e4, 1e4, 1e4])
    assert jnp.isfinite(loss(p, t)).all()
    assert jnp.isfinite(gradient(loss, p, t)).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_small_floats_and_integers_are_computed_in_float32(loss, pair):
    small = pair[0].astype(jnp.bfloat16)
    whole = jnp.ones(small.shape, jnp.uint8)
    actual = loss(small, whole)
    assert actual.dtype == jnp.float32
    expected = loss(small.astype(jnp.float32), whole.astype(jnp.float32))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_broadcast(loss):
    with pytest.raises(ValueError, match="shape of predictions"):
        loss(jnp.zeros((4, 1)), jnp.zeros(4))
    with pytest.raises(ValueError, match="shape of predictions"):
        loss(jnp.zeros(4), jnp.zeros(4), where=jnp.ones((4, 1), bool))


@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_bad_options_raise(wrong):
    with pytest.raises(ValueError, match="delta"):
        huber_loss(jnp.zeros(4), jnp.zeros(4), delta=wrong)
    with pytest.raises(ValueError, match="beta"):
        smooth_l1_loss(jnp.zeros(4), jnp.zeros(4), beta=wrong)
