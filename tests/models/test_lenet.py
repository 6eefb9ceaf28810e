import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from opsin.models.classification.lenet import (
    C3_CONNECTIONS,
    LeNet5,
    LeNet5Original,
    SparseConv,
    Subsample,
    digit_codes,
    fit_image,
    squash,
)
from tests.drawn import normal

# Table I of the paper as it is printed: a row for each map of S2, a column for each map of C3.
TABLE_I = """
X . . . X X X . . X X X X . X X
X X . . . X X X . . X X X X . X
X X X . . . X X X . . X . X X X
. X X X . . X X X X . . X . X X
. . X X X . . X X X X . X X . X
. . . X X X . . X X X X . X X X
"""
TABLE_I = np.array([[mark == "X" for mark in row.split()] for row in TABLE_I.split("\n") if row])


def counts(model, size, channels):
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return {name: sum(p.size for p in jax.tree.leaves(layer)) for name, layer in params.items()}


@pytest.mark.parametrize(("size", "channels", "total"), [(28, 1, 61_706), (32, 3, 62_006)])
def test_modern_parameter_count(size, channels, total):
    assert sum(counts(LeNet5(), size, channels).values()) == total


def test_original_parameter_count_layer_by_layer():
    layers = {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert counts(LeNet5Original(), 28, 1) == layers
    assert sum(layers.values()) == 60_000


def test_c3_sees_the_maps_of_table_i_and_no_others(randomise):
    layer = SparseConv(C3_CONNECTIONS)
    x = normal(1, 5, 5, 6)
    params = randomise(layer, x)
    jacobian = np.asarray(jax.jit(jax.jacobian(lambda x: layer.apply(params, x)[0, 0, 0]))(x))
    assert jacobian.shape == (16, 1, 5, 5, 6)
    np.testing.assert_array_equal((jacobian != 0).all((1, 2, 3)), TABLE_I.T)
    np.testing.assert_array_equal((jacobian != 0).any((1, 2, 3)), TABLE_I.T)


def test_sparse_conv_equals_scipy(randomise):
    layer = SparseConv(((0, 2), (1,)), kernel_size=3)
    x = normal(1, 6, 5, 3)
    params = randomise(layer, x)
    kernel, bias = (params["params"][name] for name in ("kernel", "bias"))
    # The connections in order of the kernels: 0 to 0, 2 to 0, 1 to 1.
    maps = [correlate(x[0, :, :, m], kernel[:, :, i], "valid") for i, m in enumerate((0, 2, 1))]
    expected = np.stack([maps[0] + maps[1], maps[2]], axis=-1) + bias
    found = np.asarray(jax.jit(layer.apply)(params, x))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_every_unit_of_c3_starts_with_the_variance_of_its_inputs(key):
    init = jax.jit(SparseConv(C3_CONNECTIONS).init)
    kernel = init(key, np.zeros((1, 5, 5, 6), np.float32))["params"]["kernel"]
    outputs = np.repeat(np.arange(16), [len(inputs) for inputs in C3_CONNECTIONS])
    gain = np.bincount(outputs, weights=np.square(kernel).sum((0, 1)))
    np.testing.assert_allclose(gain, np.ones(16), atol=0.5)
    assert abs(gain.mean() - 1) < 0.1


def test_subsampling_closed_form():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1) * jnp.array([1.0, -1.0])
    params = {"scale": jnp.array([0.5, 2.0]), "bias": jnp.array([1.0, -3.0])}
    y = Subsample().apply({"params": params}, x)
    sums = np.array([[10.0, 18.0], [42.0, 50.0]])
    np.testing.assert_allclose(y[0], np.stack([0.5 * sums + 1, -2 * sums - 3], axis=-1))


def test_squash_fixes_one_and_saturates():
    np.testing.assert_allclose(squash(jnp.array([-1.0, 0.0, 1.0])), [-1, 0, 1], atol=1e-4)
    np.testing.assert_allclose(squash(jnp.array([-100.0, 100.0])), [-1.7159, 1.7159], rtol=1e-6)


def test_codes_are_ten_different_drawings():
    codes = digit_codes()
    assert codes.shape == (10, 7 * 12)
    assert set(np.unique(codes)) == {-1.0, 1.0}
    different_dots = (codes[:, None] != codes[None]).sum(-1)
    assert different_dots[~np.eye(10, dtype=bool)].min() >= 3


def test_logits_are_minus_the_squared_distance_to_the_codes(randomise):
    model = LeNet5Original()
    images = np.ones((1, 28, 28, 1), np.float32)
    params = randomise(model, images)["params"]
    run = jax.jit(model.apply)
    codes = digit_codes()
    for digit in (3, 7):
        bias = 1.5 * np.arctanh(codes[digit] / 1.7159)
        f6 = {"kernel": np.zeros((120, 84), np.float32), "bias": bias.astype(np.float32)}
        logits = np.asarray(run({"params": params | {"f6": f6}}, images))
        expected = -4.0 * (codes != codes[digit]).sum(-1)
        np.testing.assert_allclose(logits[0], expected, atol=1e-3)


def test_every_parameter_of_the_original_learns(randomise):
    model = LeNet5Original()
    images = normal(4, 28, 28, 1)
    variables = randomise(model, images)

    def loss(variables, images):
        return -nn.log_softmax(model.apply(variables, images))[jnp.arange(4), jnp.arange(4)].mean()

    for gradient in map(np.asarray, jax.tree.leaves(jax.jit(jax.grad(loss))(variables, images))):
        assert np.isfinite(gradient).all()
        assert gradient.any()


def test_modern_forward_equals_numpy(randomise):
    model = LeNet5()
    x = normal(1, 32, 32, 1)
    variables = randomise(model, x)
    logits = jax.jit(model.apply)(variables, x)
    params = variables["params"]

    def conv(x, layer):
        kernel = layer["kernel"]
        maps = [correlate(x, kernel[..., o], "valid")[..., 0] for o in range(kernel.shape[-1])]
        return np.maximum(np.stack(maps, -1) + layer["bias"], 0)

    def pool(x):
        return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max((1, 3))

    y = pool(conv(x[0], params["c1"]))
    y = conv(pool(conv(y, params["c3"])), params["c5"])[0, 0]
    y = np.maximum(y @ params["f6"]["kernel"] + params["f6"]["bias"], 0)
    y = y @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(np.asarray(logits)[0], y, atol=1e-5)


def test_padding_centres_and_continues_the_paper():
    digit = np.full((1, 28, 28, 1), -0.42, np.float32)
    digit[:, 10:18, 10:18] = 2.8
    x = np.asarray(jax.jit(fit_image)(digit))
    np.testing.assert_array_equal(x[:, 2:30, 2:30], digit)
    assert np.all(x[:, [0, 1, 30, 31]] == np.float32(-0.42))
    assert np.all(x[:, :, [0, 1, 30, 31]] == np.float32(-0.42))
    odd = jax.ShapeDtypeStruct((2, 27, 27, 3), jnp.float32)
    assert jax.eval_shape(fit_image, odd).shape == (2, 32, 32, 3)


def test_small_digits_are_enlarged_evenly():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (1, 8, 8, 1))
    x = np.asarray(jax.jit(fit_image)(ramp))
    inside = (np.arange(2, 30) + 0.5) / 4 - 0.5  # pixel centres of the fine grid on the coarse one
    np.testing.assert_allclose(x[0, 2:30, 5, 0], inside, atol=1e-6)
    np.testing.assert_array_equal(fit_image(x), x)


@pytest.mark.parametrize("shape", [(1, 12, 12, 1), (1, 40, 40, 1), (1, 28, 32, 1), (28, 28, 1)])
def test_impossible_sizes_are_named(shape):
    with pytest.raises(ValueError, match="from 17 to 32 or one that divides 32; got"):
        LeNet5().init(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("model", [LeNet5, LeNet5Original])
def test_bfloat16_keeps_parameters_and_logits_in_float32(model, randomise):
    images = normal(2, 8, 8, 1)
    variables = randomise(model(dtype=jnp.bfloat16), images)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    half = jax.jit(model(dtype=jnp.bfloat16).apply)(variables, images)
    full = jax.jit(model().apply)(variables, images)
    assert half.dtype == jnp.float32
    assert half.shape == (2, 10)
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, rtol=0.05, atol=0.2)


def test_activation_and_pool_are_fields(randomise):
    model = LeNet5(activation=jnp.ones_like, pool=nn.avg_pool)
    images = np.zeros((1, 32, 32, 1), np.float32)
    variables = randomise(model, images)
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    head = variables["params"]["head"]
    np.testing.assert_allclose(logits[0], head["kernel"].sum(0) + head["bias"], atol=1e-5)
