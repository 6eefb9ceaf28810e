import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opsin.losses import regularization

# Compiled, which takes less time here than to run operation by operation.
l2_loss = jax.jit(regularization.l2_loss, static_argnames="match")


@pytest.fixture(scope="module")
def params():
    """As Flax names them."""
    w = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    bias = np.ones(3, np.float32)
    return {
        "Dense_0": {"kernel": w[0], "bias": bias},
        "LayerNorm_0": {"scale": bias, "bias": bias},
        "Dense_1": {"kernel": w[1], "bias": bias},
    }


def test_half_the_sum_of_squared_kernels(params):
    kernels = [np.asarray(params[name]["kernel"], np.float64) for name in ("Dense_0", "Dense_1")]
    expected = 0.5 * sum(np.sum(w**2) for w in kernels)
    np.testing.assert_allclose(l2_loss(params), expected, rtol=1e-6)


def test_biases_and_norm_scales_have_no_gradient(params):
    slope = jax.jit(jax.grad(l2_loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slope):
        is_kernel = path[-1].key == "kernel"
        weight = params[path[0].key][path[1].key]
        np.testing.assert_array_equal(leaf, weight if is_kernel else np.zeros_like(weight))


def test_path_chooses(params):
    w = np.asarray(params["Dense_1"]["kernel"])
    one = l2_loss(params, match=r"^Dense_1/")
    np.testing.assert_allclose(one, 0.5 * (np.sum(w**2) + 3), rtol=1e-6)
    everything = float(l2_loss(params)) + 0.5 * 4 * 3
    np.testing.assert_allclose(l2_loss(params, match=""), everything, rtol=1e-6)


def test_penalty_is_weight_decay_under_gradient_descent_and_not_under_adam(params):
    """w ← (1 − ηλ) w − η ∇L for plain descent; under Adam the two part."""
    rate, strength = 0.1, 0.5

    def loss(params):
        return jnp.sum((params["kernel"] - 1.0) ** 4)

    def penalised(params):
        return loss(params) + strength * l2_loss(params)

    def step(objective, optimizer, params):
        updates, _ = optimizer.update(jax.grad(objective)(params), optimizer.init(params), params)
        return optax.apply_updates(params, updates)["kernel"]

    @jax.jit
    def steps(params):
        return (
            (1 - rate * strength) * params["kernel"] - rate * jax.grad(loss)(params)["kernel"],
            step(penalised, optax.sgd(rate), params),
            step(penalised, optax.adam(rate), params),
            step(loss, optax.adamw(rate, weight_decay=strength), params),
        )

    decay, descent, adam, adamw = map(np.asarray, steps(params["Dense_0"]))
    np.testing.assert_allclose(descent, decay, rtol=1e-5, atol=1e-5)
    assert np.abs(adam - adamw).max() > 0.01


def test_small_floats_are_summed_in_float32():
    params = {"kernel": np.ones(1001, jnp.bfloat16)}  # which bfloat16 rounds to 1000
    assert float(l2_loss(params)) == 500.5


def test_a_pattern_that_matches_nothing_raises(params):
    with pytest.raises(ValueError, match="kernle"):
        l2_loss(params, match="kernle$")
