import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.losses import reduction

# Compiled, which takes less time here than to run operation by operation.
weighted_mean = jax.jit(reduction.weighted_mean)
value_and_slope = jax.jit(jax.value_and_grad(reduction.weighted_mean))


def test_weights_and_masks():
    values = np.float32([[1.0, 2.0], [4.0, 8.0]])
    assert weighted_mean(values, np.float32([[1.0, 0.0], [3.0, 0.0]])) == 13.0 / 4.0
    assert weighted_mean(values, np.array([[True, False], [True, True]])) == 13.0 / 3.0
    assert weighted_mean(values.astype(jnp.bfloat16), np.ones((2, 2))).dtype == jnp.float32


def test_no_weight_left():
    """A batch of ignored pixels costs nothing and moves nothing, even where it holds NaN."""
    values = np.float32([1.0, np.nan])
    value, slope = value_and_slope(values, np.zeros(2, bool))
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


def test_weight_zero_hides_nan_in_value_and_gradient():
    values = np.float32([3.0, np.nan, 5.0])
    value, slope = value_and_slope(values, np.float32([1.0, 0.0, 1.0]))
    assert value == 4.0
    np.testing.assert_array_equal(slope, [0.5, 0.0, 0.5])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape of values"):
        weighted_mean(np.ones((4, 4)), np.ones(4))
