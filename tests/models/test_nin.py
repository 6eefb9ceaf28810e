from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification.nin import NIN, MlpConv
from opsin.train.paths import flatten
from tests.drawn import normal
from tests.models import plain

SMALL = NIN(widths=((3, 4), (2, 3), (3,)), num_classes=4)
IMAGES = normal(2, 13, 10, 3)


def abstract(model, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


@pytest.mark.parametrize("size", [32, 48])
def test_parameters_do_not_depend_on_the_image_and_the_head_has_a_map_a_class(size):
    logits, variables = abstract(NIN(), 1, size, size, 3)
    params = variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 966_986
    assert logits.shape == (1, 10)
    assert sum(leaf.size for leaf in jax.tree.leaves(params["head"])) == 192 * 10 + 10
    # Nothing is fully connected: a window of the image, and 1×1 after it.
    kernels = {path: p.shape[:-2] for path, p in flatten(params).items() if p.ndim > 1}
    windows = {f"backbone/mlpconv{i}/layer1/kernel": (s, s) for i, s in ((1, 5), (2, 5), (3, 3))}
    assert kernels == dict.fromkeys(kernels, (1, 1)) | windows


def test_features_by_stride():
    sizes = {s: f.shape[1:] for s, f in abstract(SMALL.without_head(), 1, 32, 64, 3)[0].items()}
    assert sizes == {1: (32, 64, 4), 2: (16, 32, 3), 4: (8, 16, 3)}
    odd = {s: f.shape[1:3] for s, f in abstract(SMALL.without_head(), 1, 13, 10, 3)[0].items()}
    assert odd == {1: (13, 10), 2: (6, 5), 4: (3, 2)}


def test_a_layer_is_the_same_perceptron_at_every_pixel(randomise):
    layer = MlpConv(widths=(5, 4, 3), kernel_size=3)
    variables = randomise(layer, IMAGES)
    found = jax.jit(layer.apply)(variables, IMAGES)
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for row, column in np.ndindex(13, 10):
        x = padded[:, row : row + 3, column : column + 3].reshape(2, -1)
        for index, width in ((1, 5), (2, 4), (3, 3)):
            dense = variables["params"][f"layer{index}"]
            x = np.maximum(x @ dense["kernel"].reshape(-1, width) + dense["bias"], 0)
        np.testing.assert_allclose(found[:, row, column], x, atol=1e-5)


def test_it_equals_numpy(randomise):
    variables = randomise(SMALL, IMAGES)
    params = variables["params"]
    assert params.keys() == {"backbone", "head"}
    x = IMAGES[0]
    for index, side in ((1, 5), (2, 5), (3, 3)):
        layers = params["backbone"][f"mlpconv{index}"].values()
        for layer, padding in zip(layers, (side // 2, 0), strict=False):
            x = np.maximum(plain.conv(x, layer, padding=padding), 0)
        if index < 3:  # the windows at the edge are smaller, and averaged over what they have
            x = plain.pool(x, 3, 2, ceil=True, reduce=np.max if index == 1 else np.mean)
    maps = np.maximum(plain.conv(x, params["head"]), 0)
    logits = jax.jit(SMALL.apply)(variables, IMAGES)
    np.testing.assert_allclose(logits[0], maps.mean((0, 1)), atol=1e-5)
    assert logits.dtype == jnp.float32


def test_dropout_acts_in_training_only(randomise):
    variables = randomise(SMALL, IMAGES)
    run = jax.jit(partial(SMALL.apply, train=True))
    one, same, other = (
        run(variables, IMAGES, rngs={"dropout": jax.random.key(key)}) for key in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    np.testing.assert_allclose(
        jax.jit(partial(SMALL.clone(dropout=0.0).apply, train=True))(variables, IMAGES),
        jax.jit(SMALL.apply)(variables, IMAGES),
        rtol=1e-6,
    )


def test_half_precision_keeps_parameters_and_logits_in_single():
    half = SMALL.clone(dtype=jnp.bfloat16)
    logits, variables = abstract(half, 1, 8, 8, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype("float32")}
    features = abstract(half.without_head(), 1, 8, 8, 3)[0].values()
    assert {feature.dtype for feature in features} == {jnp.dtype("bfloat16")}


def test_bad_options_are_named():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got \(13, 10, 3\)"):
        SMALL.init(key, IMAGES[0])
    with pytest.raises(ValueError, match=r"each of 3 perceptrons .* got \(5, 5\)"):
        SMALL.clone(kernel_sizes=(5, 5)).init(key, IMAGES)
    with pytest.raises(ValueError, match='"max" or "average"; got'):
        SMALL.clone(pools=("max", "min")).init(key, IMAGES)
