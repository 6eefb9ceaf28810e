import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.ops import vectors

# Compiled, which takes less time here than to run operation by operation.
unit_length = jax.jit(vectors.unit_length, static_argnames="axis")


@pytest.mark.parametrize("length", [1e-37, 1e-20, 1.0, 1e20, 1e37])
def test_vectors_of_any_length_get_length_one(length):
    directions = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, -1.0], [1.0, 2.0, -2.0]])
    wanted = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    actual = np.asarray(unit_length(np.float32(length * directions)))
    np.testing.assert_allclose(actual, wanted, rtol=1e-6)
    np.testing.assert_allclose(unit_length(actual.T, axis=0), wanted.T, rtol=1e-6)


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
def test_the_jacobian_is_the_projection_over_the_length(length):
    x = np.float32(length) * np.float32([2.0, -1.0, 2.0]) / 3
    wanted = (np.eye(3) - np.outer(x, x) / length**2) / length
    jacobian = jax.jit(jax.jacobian(unit_length))(x)
    np.testing.assert_allclose(jacobian, wanted, atol=1e-6 / length)


def test_the_zero_vector_stays_and_has_no_gradient():
    @jax.jit
    def value_and_slope(x):
        value, pull = jax.vjp(unit_length, x)
        return value, *pull(jnp.ones((2, 2)))

    value, slope = value_and_slope(np.float32([[0.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_array_equal(value, [[0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(slope, [[0.0, 0.0], [0.5, 0.0]])


def test_what_is_broken_stays_broken():
    np.testing.assert_array_equal(unit_length(np.float32([np.nan, 0.0])), [jnp.nan, jnp.nan])


def test_small_floats_are_computed_in_float32():
    x = np.array([1.0, 3.0, -2.0], jnp.bfloat16)
    np.testing.assert_array_equal(unit_length(x), unit_length(x.astype(np.float32)))
    assert unit_length(x).dtype == jnp.float32
