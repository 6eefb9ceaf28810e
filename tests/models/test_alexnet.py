from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification import alexnet
from opsin.models.classification.alexnet import AlexNet, AlexNetOneWeirdTrick, ZFNet
from opsin.models.classification.vgg import FullyConnected
from opsin.models.layers import adaptive_average_pool
from tests.drawn import normal
from tests.models import plain


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("AlexNet", 60_965_224),
        ("AlexNetOneTower", 62_378_344),
        ("AlexNetOneWeirdTrick", 61_100_840),
        ("ZFNet", 62_357_608),
        ("ZFNetWide", 107_627_624),
    ],
)
def test_parameter_counts(name, total):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(getattr(alexnet, name)().init, jax.random.key(0), images)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == total


def sides(model, height, width):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    backbone = model.without_head()
    features, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)
    return {stride: feature.shape[1:] for stride, feature in features.items()}


def test_sizes_are_those_of_the_papers():
    assert sides(AlexNet(), 224, 224) == {
        4: (55, 55, 96),
        8: (27, 27, 256),
        16: (13, 13, 256),
        32: (6, 6, 256),
    }
    assert sides(ZFNet(), 224, 224) == {
        2: (110, 110, 96),
        4: (55, 55, 96),
        8: (26, 26, 256),
        16: (13, 13, 256),
        32: (6, 6, 256),
    }
    odd = sides(AlexNet(widths=(4,) * 5), 97, 130)
    assert odd == {4: (23, 31, 4), 8: (11, 15, 4), 16: (5, 7, 4), 32: (2, 3, 4)}


# Small networks on an image of odd sides, step by step.

SMALL = {
    "AlexNet": AlexNet(widths=(4, 6, 4, 4, 2), hidden=5, num_classes=3),
    "ZFNet": ZFNet(widths=(4, 6, 4, 4, 2), hidden=5, num_classes=3),
    "torchvision": AlexNetOneWeirdTrick(widths=(4, 6, 4, 4, 2), hidden=5, num_classes=3),
}
IMAGES = 100 * normal(1, 67, 75, 3)  # large, so that neighbours matter to the response norm


def written_out(model, params):
    """Features of the image by stride, and logits."""
    x, level, features = IMAGES[0], 1, {}
    ceil = model.pool_padding == "CEIL"
    for index, (stride, padding) in enumerate(
        zip(model.strides, model.paddings, strict=True), start=1
    ):
        groups = model.groups if index in (2, 4, 5) else 1
        layer = params["backbone"][f"conv{index}"]
        x = np.maximum(plain.conv(x, layer, stride, padding, groups), 0)
        if index < 3 and model.response_norm == "before":
            x = plain.response_norm(x)
        level *= stride
        features[level] = x
        if index in (1, 2, 5):
            x = plain.pool(x, 3, 2, ceil=ceil)
            if index < 3 and model.response_norm == "after":
                x = plain.response_norm(x)
            level *= 2
            features[level] = x
    x = np.asarray(jax.jit(partial(adaptive_average_pool, size=(6, 6)))(np.float32(x)[None]))[0]
    x = np.maximum(plain.dense(x, params["fc"]["fc6"]), 0)
    x = np.maximum(x @ params["fc"]["fc7"]["kernel"][0, 0] + params["fc"]["fc7"]["bias"], 0)
    return features, plain.dense(x, params["head"])


@pytest.mark.parametrize("name", SMALL)
def test_it_equals_numpy(name, randomise):
    model = SMALL[name]
    variables = randomise(model, IMAGES)
    part = {"params": variables["params"]["backbone"]}
    both = jax.jit(lambda v, p, x: (model.without_head().apply(p, x), model.apply(v, x)))
    features, logits = both(variables, part, IMAGES)
    expected, expected_logits = written_out(model, variables["params"])
    assert variables["params"].keys() == {"backbone", "fc", "head"}
    assert list(features) == list(expected)
    for stride, feature in features.items():
        tolerance = 1e-5 * np.abs(expected[stride]).max()
        np.testing.assert_allclose(feature[0], expected[stride], atol=tolerance)
    np.testing.assert_allclose(logits[0], expected_logits, rtol=1e-4)
    assert logits.dtype == jnp.float32


def test_neighbours_matter_in_what_is_compared(randomise):
    """Else a response norm at another place would be the same number."""
    model = SMALL["AlexNet"]
    params = randomise(model, IMAGES)["params"]
    before, _ = written_out(model, params)
    after, _ = written_out(model.clone(response_norm="after"), params)
    assert np.abs(before[8] / before[8].max() - after[8] / after[8].max()).max() > 0.01


def test_half_precision_keeps_parameters_and_logits_in_single():
    model = SMALL["AlexNet"].clone(dtype=jnp.bfloat16)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), IMAGES)
    features = jax.eval_shape(model.without_head().init_with_output, jax.random.key(0), IMAGES)[0]
    assert logits.dtype == jnp.float32
    assert {f.dtype for f in features.values()} == {jnp.dtype("bfloat16")}
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("first", [False, True])
def test_dropout_is_after_the_hidden_layers_or_before_each(first):
    """A hidden layer of ones: where the last dropout comes after it, half of them are zero."""
    fc = FullyConnected(hidden=64, kernel_size=1, dropout_first=first)
    x = np.ones((8, 1, 1, 3), np.float32)
    shapes = jax.eval_shape(fc.init, jax.random.key(0), x)
    ones = jax.tree.map(lambda leaf: np.full(leaf.shape, float(leaf.ndim == 1)), shapes)
    run = jax.jit(partial(fc.apply, train=True))
    y = np.asarray(run(ones, x, rngs={"dropout": jax.random.key(1)}))
    assert (y == 1).all() if first else 0.4 < np.mean(y == 0) < 0.6
    assert set(np.unique(y)) <= {0, 1, 2}
    np.testing.assert_array_equal(jax.jit(fc.apply)(ones, x), np.ones((8, 1, 1, 64)))
    # Where they see the image itself, pixels that are dropped show in one form alone.
    sees = {"fc6": {"kernel": np.ones((1, 1, 3, 64)), "bias": np.zeros(64)}}
    passes = {"fc7": {"kernel": np.eye(64)[None, None], "bias": np.zeros(64)}}
    y = np.asarray(run({"params": sees | passes}, x, rngs={"dropout": jax.random.key(1)}))
    assert (len(np.unique(y[y > 0])) > 1) == first


def test_bad_input_is_named():
    model = SMALL["AlexNet"]
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got \(67, 75, 3\)"):
        model.init(jax.random.key(0), IMAGES[0])
    for size, where in ((4, "conv1"), (32, "conv5")):
        with pytest.raises(ValueError, match=f"images of {size}x{size} are too small .* {where}"):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    with pytest.raises(ValueError, match='"before", "after" or None; got \'always\''):
        model.clone(response_norm="always").init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match='"VALID" or "CEIL"; got \'SAME\''):
        model.clone(pool_padding="SAME").init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="five convolutions"):
        model.clone(widths=(4, 4)).init(jax.random.key(0), IMAGES)
