"""Closed forms in NumPy, relations between the losses, masks, extreme errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    return np.random.default_rng(1).uniform(-0.9, 3.0, (2, 4, 6)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def both(loss, predictions, targets, **options):
    """Values, and the gradient of their sum, in one program."""
    values, pull = jax.vjp(lambda p: loss(p, targets, **options), predictions)
    return values, pull(jnp.ones_like(values))[0]


def run(loss, *arguments, **options):
    """The values."""
    return np.asarray(both(loss, *arguments, **options)[0])


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
        np.testing.assert_allclose(run(loss, *pair), expected, rtol=1e-5, atol=1e-7)


def test_smooth_l1_is_huber_over_beta(pair):
    for beta in (0.1, 1.0, 2.0):
        huber = run(functools.partial(huber_loss, delta=beta), *pair) / beta
        smooth = run(functools.partial(smooth_l1_loss, beta=beta), *pair)
        np.testing.assert_allclose(smooth, huber, rtol=1e-6)


def test_limits_of_huber_and_smooth_l1(pair):
    half_square = run(functools.partial(huber_loss, delta=100.0), *pair)
    np.testing.assert_allclose(2 * half_square, run(squared_error_loss, *pair), rtol=1e-6)
    small = run(functools.partial(smooth_l1_loss, beta=1e-6), *pair)
    np.testing.assert_allclose(small, run(absolute_error_loss, *pair), atol=1e-6)


def test_gradients():
    errors = np.float32([-3.0, -0.25, 0.0, 0.25, 3.0])
    zero = np.zeros(5, np.float32)
    sign = np.sign(errors)
    for loss, expected in [
        (absolute_error_loss, sign),
        (squared_error_loss, 2 * errors),
        (LOSSES[3], np.clip(errors, -0.5, 0.5)),
        (LOSSES[4], np.clip(2 * errors, -1, 1)),
    ]:
        np.testing.assert_allclose(both(loss, errors, zero)[1], expected, rtol=1e-6)


def test_what_the_means_are_least_at():
    """The mean for squared errors, the median for absolute ones."""
    sample = np.float32([0.0, 1.0, 2.0, 3.0, 94.0])
    guesses = np.float32([1.0, 2.0, 3.0, 19.0, 20.0, 21.0])
    for loss, best in [(squared_error_loss, 20.0), (absolute_error_loss, 2.0)]:
        risk = np.mean(run(loss, *np.broadcast_arrays(guesses[:, None], sample)), axis=1)
        assert guesses[np.argmin(risk)] == best


def test_logarithmic_error_measures_ratios():
    p, t = np.float32([1.0, 99.0]), np.float32([3.0, 199.0])  # 1 + p is half of 1 + t
    np.testing.assert_allclose(run(squared_log_error_loss, p, t), np.log(2) ** 2, rtol=1e-5)


@pytest.mark.parametrize(("p", "t"), [(-1.0, 0.0), (-2.0, 0.0), (0.0, -1.0), (-1.0, -1.0)])
def test_no_logarithm_at_or_below_minus_one(p, t):
    p, t = np.float32([p, 0.5]), np.float32([t, 0.5])
    np.testing.assert_array_equal(np.isnan(run(squared_log_error_loss, p, t)), [True, False])
    keep = np.array([False, True])
    value, slope = both(squared_log_error_loss, p, t, where=keep)
    np.testing.assert_array_equal(value, 0)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_where_masks_value_and_gradient(loss, pair):
    p, t = pair
    keep = p < 1.0
    broken = np.float32(np.where(keep, p, np.nan)), np.where(keep, t, np.float32(-7))
    actual, slope = both(loss, *broken, where=keep)
    for found, plain in zip((actual, slope), both(loss, p, t), strict=True):
        np.testing.assert_array_equal(found, np.where(keep, plain, 0.0))
    assert np.asarray(actual)[keep].mean() > 0
    nothing = np.zeros_like(keep)
    with jax.debug_nans(True):  # not compiled: of a program only the results are looked at
        slope = jax.grad(lambda p: jnp.sum(loss(p, t, where=nothing)))(p)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_finite_at_large_errors(loss):
    p = np.float32([1e4, 0.0, 1e4, -0.999])
    t = np.float32([0.0, 1e4, 1e4, 1e4])
    assert all(np.isfinite(found).all() for found in both(loss, p, t))


@pytest.mark.parametrize("loss", LOSSES)
def test_small_floats_and_integers_are_computed_in_float32(loss, pair):
    small = pair[0].astype(jnp.bfloat16)
    whole = np.ones(small.shape, np.uint8)
    actual = run(loss, small, whole)
    assert actual.dtype == jnp.float32
    expected = run(loss, small.astype(np.float32), whole.astype(np.float32))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_broadcast(loss):
    with pytest.raises(ValueError, match="shape of predictions"):
        loss(np.zeros((4, 1)), np.zeros(4))
    with pytest.raises(ValueError, match="shape of predictions"):
        loss(np.zeros(4), np.zeros(4), where=np.ones((4, 1), bool))


@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_bad_options_raise(wrong):
    with pytest.raises(ValueError, match="delta"):
        huber_loss(np.zeros(4), np.zeros(4), delta=wrong)
    with pytest.raises(ValueError, match="beta"):
        smooth_l1_loss(np.zeros(4), np.zeros(4), beta=wrong)
