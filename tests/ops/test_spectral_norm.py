"""Power iteration against the singular values that numpy finds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from opsin.ops.spectral_norm import spectral_norm

SHAPES = [(5, 7), (7, 5), (9, 1), (3, 3, 4, 6), (4, 2, 1, 3)]


def draw(shape, seed=0):
    """A kernel, and a first u that is not of length 1."""
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], shape), 3.0 * jax.random.normal(keys[1], shape[-1:])


def decompose(kernel):
    return np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_converges_to_the_largest_singular_value_and_its_gradient(shape):
    kernel, u = draw(shape)
    left, values, right = decompose(kernel)
    (sigma, new_u), slope = jax.value_and_grad(
        partial(spectral_norm, iterations=100), has_aux=True
    )(kernel, u)
    np.testing.assert_allclose(sigma, values[0], rtol=1e-5)
    np.testing.assert_allclose(np.abs(new_u @ right[0]), 1.0, rtol=1e-5)
    wanted = np.outer(left[:, 0], right[0]).reshape(shape)
    np.testing.assert_allclose(slope, wanted, atol=1e-3)
    largest = decompose(kernel / sigma)[1][0]
    np.testing.assert_allclose(largest, 1.0, rtol=1e-5)


def test_one_round_is_the_formula():
    kernel, u = draw((3, 3, 4, 6))
    matrix = np.asarray(kernel).reshape(-1, 6)
    v = matrix @ u / np.linalg.norm(matrix @ u)
    new_u = matrix.T @ v / np.linalg.norm(matrix.T @ v)
    (sigma, got), slope = jax.value_and_grad(spectral_norm, has_aux=True)(kernel, u)
    np.testing.assert_allclose(got, new_u, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sigma, v @ matrix @ new_u, rtol=1e-5)
    np.testing.assert_allclose(slope, np.outer(v, new_u).reshape(kernel.shape), atol=1e-6)


def test_rounds_in_one_call_are_as_many_calls_and_rise_from_below():
    kernel, start = draw((16, 12), seed=1)
    one = jax.jit(spectral_norm)
    sigmas, u = [], start
    for _ in range(30):
        sigma, u = one(kernel, u)
        sigmas.append(float(sigma))
    largest = decompose(kernel)[1][0]
    assert (np.diff(sigmas) > -1e-5).all()
    assert sigmas[0] < 0.9 * largest < 0.98 * largest < sigmas[-1] < largest + 1e-5
    several = spectral_norm(kernel, start, iterations=30)
    np.testing.assert_allclose(several[0], sigmas[-1], rtol=1e-5)
    np.testing.assert_allclose(several[1], u, atol=1e-5)


def test_one_round_a_step_follows_a_kernel_that_learns():
    kernel, u = draw((8, 6), seed=2)
    _, u = spectral_norm(kernel, u, iterations=50)
    step = jax.jit(spectral_norm)
    for key in jax.random.split(jax.random.key(3), 50):
        kernel += 0.02 * jax.random.normal(key, kernel.shape)
        sigma, u = step(kernel, u)
        assert 0.98 < sigma / decompose(kernel)[1][0] < 1 + 1e-5


def test_no_gradient_flows_through_the_vectors():
    kernel, u = draw((4, 3))
    to_new_u = jax.grad(lambda k, u: jnp.sum(jnp.square(spectral_norm(k, u)[1] - 1.0)), (0, 1))
    for slope in to_new_u(kernel, u):
        np.testing.assert_array_equal(slope, jnp.zeros_like(slope))
    np.testing.assert_array_equal(jax.grad(lambda u: spectral_norm(kernel, u)[0])(u), np.zeros(3))


def test_a_kernel_of_zeros_leaves_a_u_to_go_on_from():
    kernel, u = draw((2, 2, 3, 4))
    (sigma, same), slope = jax.value_and_grad(partial(spectral_norm, iterations=2), has_aux=True)(
        jnp.zeros_like(kernel), u
    )
    assert sigma == 0.0
    np.testing.assert_array_equal(same, u)
    np.testing.assert_array_equal(slope, np.zeros(kernel.shape))
    sigma, _ = spectral_norm(1e-8 * kernel, same, iterations=100)  # however small it is
    np.testing.assert_allclose(sigma, 1e-8 * decompose(kernel)[1][0], rtol=1e-4)


def test_the_convolution_itself_is_bounded_by_it():
    """Its norm, as a matrix from images to images, is another, at most √(3 · 2) times as large."""
    kernel, _ = draw((3, 2, 2, 3), seed=4)

    def convolution(image):
        return lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    jacobian = jax.jacobian(convolution)(jnp.zeros((1, 6, 6, 2)))
    norm = np.linalg.norm(jacobian.reshape(-1, 72), 2)
    largest = decompose(kernel)[1][0]
    assert 1.05 * largest < norm < np.sqrt(6) * largest


def test_small_floats_are_computed_in_float32():
    kernel, u = (x.astype(jnp.bfloat16) for x in draw((5, 4)))
    small = spectral_norm(kernel, u, iterations=3)
    wide = spectral_norm(kernel.astype(jnp.float32), u.astype(jnp.float32), iterations=3)
    for one, other in zip(small, wide, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)


def test_what_does_not_fit_is_named():
    kernel, u = draw((5, 4))
    with pytest.raises(ValueError, match="not one number for each output"):
        spectral_norm(kernel, u[:3])
    with pytest.raises(ValueError, match="not one number for each output"):
        spectral_norm(u, u)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        spectral_norm(kernel, u, iterations=0)
