import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.layers import Conv, batch_norm, group_norm, shared_fields


@pytest.fixture
def x(key):
    return 3 + 2 * jax.random.normal(key, (4, 5, 5, 6))


def test_batch_norm_follows_torch_and_numpy(x):
    norm = batch_norm(train=True)
    variables = norm.init(jax.random.key(1), x)
    y, updated = norm.apply(variables, x, mutable=["batch_stats"])
    mean, var = np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    statistics = updated["batch_stats"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * var, rtol=1e-5)


def test_frozen_statistics_train_as_they_evaluate(x):
    evaluate, frozen = batch_norm(train=False), batch_norm(train=True, frozen_statistics=True)
    variables = evaluate.init(jax.random.key(1), x)
    y, updated = frozen.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, evaluate.apply(variables, x))
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], np.zeros(6))


def test_group_norm_gives_each_image_its_own_statistics(x):
    norm = group_norm(train=True, axis_name="ignored", groups=2)
    variables = norm.init(jax.random.key(1), x)
    assert variables.keys() == {"params"}
    groups = np.asarray(x).reshape(4, 25, 2, 3)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(norm.apply(variables, x), expected, atol=1e-5)


def test_conv_is_linens(x, randomise):
    ours, theirs = (make(7, (3, 3), strides=2, padding=1) for make in (Conv, nn.Conv))
    variables = randomise(theirs, x)
    np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))


def test_shared_fields_are_those_of_both():
    dense = nn.Dense(3, use_bias=False, dtype=jnp.bfloat16)
    fields = shared_fields(dense, nn.Conv)
    assert fields["features"] == 3
    assert fields["dtype"] == jnp.bfloat16
    assert fields["use_bias"] is False
    assert not fields.keys() & {"parent", "name", "kernel_size"}
