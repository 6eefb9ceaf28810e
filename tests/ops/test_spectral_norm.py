"""Power iteration against the singular values that numpy finds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from opsin.ops import spectral_norm as module

# Compiled, which takes less time here than to run operation by operation.
spectral_norm = jax.jit(module.spectral_norm, static_argnames="iterations")


@partial(jax.jit, static_argnames="iterations")
def value_and_slope(kernel, u, iterations=1):
    """(σ, new u), and the gradient of σ by the kernel."""
    rounds = partial(spectral_norm, iterations=iterations)
    return jax.value_and_grad(rounds, has_aux=True)(kernel, u)


@jax.jit
def converged(kernel, u):
    """u after a hundred calls; as many rounds in one would be a long program."""
    return lax.fori_loop(0, 100, lambda _, u: spectral_norm(kernel, u)[1], u)


SHAPES = [(5, 7), (7, 5), (9, 1), (3, 3, 4, 6), (4, 2, 1, 3)]


def draw(shape, seed=0):
    """A kernel, and a first u that is not of length 1."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape, np.float32), 3 * rng.standard_normal(shape[-1:], np.float32)


def decompose(kernel):
    return np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_converges_to_the_largest_singular_value_and_its_gradient(shape):
    kernel, u = draw(shape)
    left, values, right = decompose(kernel)
    found = value_and_slope(kernel, converged(kernel, u))
    (sigma, new_u), slope = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(sigma, values[0], rtol=1e-5)
    np.testing.assert_allclose(np.abs(new_u @ right[0]), 1.0, rtol=1e-5)
    wanted = np.outer(left[:, 0], right[0]).reshape(shape)
    np.testing.assert_allclose(slope, wanted, atol=1e-3)
    largest = decompose(kernel / sigma)[1][0]
    np.testing.assert_allclose(largest, 1.0, rtol=1e-5)


def test_one_round_is_the_formula():
    kernel, u = draw((3, 3, 4, 6))
    matrix = kernel.reshape(-1, 6)
    v = matrix @ u / np.linalg.norm(matrix @ u)
    new_u = matrix.T @ v / np.linalg.norm(matrix.T @ v)
    (sigma, got), slope = value_and_slope(kernel, u)
    np.testing.assert_allclose(got, new_u, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sigma, v @ matrix @ new_u, rtol=1e-5)
    np.testing.assert_allclose(slope, np.outer(v, new_u).reshape(kernel.shape), atol=1e-6)


def test_rounds_in_one_call_are_as_many_calls_and_rise_from_below():
    kernel, start = draw((16, 12), seed=1)
    sigmas, u = [], start
    for calls in range(1, 31):
        sigma, u = spectral_norm(kernel, u)
        sigmas.append(float(sigma))
        if calls == 5:
            several = spectral_norm(kernel, start, iterations=5)
            np.testing.assert_allclose(several[0], sigma, rtol=1e-5)
            np.testing.assert_allclose(several[1], u, atol=1e-5)
    largest = decompose(kernel)[1][0]
    assert (np.diff(sigmas) > -1e-5).all()
    assert sigmas[0] < 0.9 * largest < 0.98 * largest < sigmas[-1] < largest + 1e-5


def test_one_round_a_step_follows_a_kernel_that_learns():
    kernel, u = draw((8, 6), seed=2)
    u = converged(kernel, u)
    rng = np.random.default_rng(3)
    for _ in range(50):
        kernel += 0.02 * rng.standard_normal(kernel.shape, np.float32)
        sigma, u = spectral_norm(kernel, u)
        assert 0.98 < sigma / decompose(kernel)[1][0] < 1 + 1e-5


def test_no_gradient_flows_through_the_vectors():
    kernel, u = draw((4, 3))

    @jax.jit
    def slopes(kernel, u):
        to_new_u = lambda k, u: jnp.sum(jnp.square(spectral_norm(k, u)[1] - 1.0))  # noqa: E731
        to_sigma = lambda u: spectral_norm(kernel, u)[0]  # noqa: E731
        return *jax.grad(to_new_u, (0, 1))(kernel, u), jax.grad(to_sigma)(u)

    for slope in slopes(kernel, u):
        np.testing.assert_array_equal(slope, np.zeros(slope.shape))


def test_a_kernel_of_zeros_leaves_a_u_to_go_on_from():
    kernel, u = draw((2, 2, 3, 4))
    (sigma, same), slope = value_and_slope(np.zeros_like(kernel), u, 2)
    assert sigma == 0.0
    np.testing.assert_array_equal(same, u)
    np.testing.assert_array_equal(slope, np.zeros(kernel.shape))
    small = np.float32(1e-8) * kernel  # however small it is
    sigma, _ = spectral_norm(small, converged(small, same))
    np.testing.assert_allclose(sigma, 1e-8 * decompose(kernel)[1][0], rtol=1e-4)


def test_the_convolution_itself_is_bounded_by_it():
    """Its norm, as a matrix from images to images, is another, at most √(3 · 2) times as large."""
    kernel, _ = draw((3, 2, 2, 3), seed=4)

    def convolution(image):
        return lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    jacobian = jax.jit(jax.jacobian(convolution))(np.zeros((1, 6, 6, 2), np.float32))
    norm = np.linalg.norm(np.asarray(jacobian).reshape(-1, 72), 2)
    largest = decompose(kernel)[1][0]
    assert 1.05 * largest < norm < np.sqrt(6) * largest


def test_small_floats_are_computed_in_float32():
    kernel, u = (x.astype(jnp.bfloat16) for x in draw((5, 4)))
    small = spectral_norm(kernel, u, iterations=3)
    wide = spectral_norm(kernel.astype(np.float32), u.astype(np.float32), iterations=3)
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
