"""Local response normalisation against its formula, its gradient and the edges of the channels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.ops.response_norm import response_norm
from tests.drawn import normal

# Constants under which the neighbours matter as much as the channel itself.
OPTIONS = {"k": 1.5, "alpha": 0.3, "beta": 0.6}


def written_out(x, cotangent, size, k, alpha, beta):
    """Value, and the gradient of its product with the cotangent, channel by channel."""
    channels, half = x.shape[-1], size // 2
    near = [range(max(0, i - half), min(channels - 1, i + half) + 1) for i in range(channels)]
    base = np.stack([k + alpha * sum(x[..., j] ** 2 for j in js) for js in near], -1)
    pull = cotangent * x * base ** (-beta - 1)
    shared = np.stack([sum(pull[..., j] for j in js) for js in near], -1)
    return x * base**-beta, cotangent * base**-beta - 2 * alpha * beta * x * shared


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_value_and_gradient_are_the_formulas(size):
    x, cotangent = 2 * normal(2, 2, 3, 4, 6)

    @jax.jit
    def value_and_slope(x, cotangent):
        value, pull = jax.vjp(partial(response_norm, size=size, **OPTIONS), x)
        return value, *pull(cotangent)

    found = value_and_slope(x, cotangent)
    expected = written_out(np.float64(x), np.float64(cotangent), size, **OPTIONS)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_constants_are_those_of_the_paper_and_the_sum_is_no_mean():
    x = np.full((1, 7), 100.0, np.float32)
    # Three, four or five neighbours, themselves included; a mean would be the same everywhere.
    counts = np.array([3, 4, 5, 5, 5, 4, 3])
    expected = 100 / (2 + 1e-4 * 1e4 * counts) ** 0.75
    np.testing.assert_allclose(jax.jit(response_norm)(x)[0], expected, rtol=1e-6)


def test_pytorchs_alpha_is_divided_by_the_size():
    x = 2 * normal(3, 8)
    padded = np.pad(np.float64(x) ** 2, ((0, 0), (2, 2)))
    means = np.stack([padded[:, i : i + 5].mean(1) for i in range(8)], 1)
    theirs = x / (1 + 0.5 * means) ** 0.75
    ours = jax.jit(partial(response_norm, k=1.0, alpha=0.5 / 5))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_pixel_of_zeros_has_a_finite_gradient():
    slope = jax.jit(jax.grad(lambda x: jnp.sum(response_norm(x))))(np.zeros((2, 5), np.float32))
    np.testing.assert_allclose(slope, np.full((2, 5), 2**-0.75), rtol=1e-6)


def test_half_precision_sums_in_single():
    x = np.full((1, 9), 300, np.float16)  # whose square float16 does not hold
    y = jax.jit(partial(response_norm, alpha=1.0))(x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(np.float32(y)[0, 4], 300 / (2 + 5 * 300.0**2) ** 0.75, rtol=1e-3)


def test_options_out_of_range_are_named():
    x = np.zeros((1, 4), np.float32)
    for size in (0, 4):
        with pytest.raises(ValueError, match=f"an odd number .* got {size}"):
            response_norm(x, size=size)
    for options in ({"k": 0.0}, {"alpha": -1.0}, {"beta": -1.0}, {"k": float("nan")}):
        with pytest.raises(ValueError, match="k is above 0, alpha and beta not below"):
            response_norm(x, **options)
