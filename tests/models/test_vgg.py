from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from opsin.models.classification import vgg
from opsin.models.classification.vgg import VGG, VGG11
from opsin.models.layers import adaptive_average_pool, batch_norm
from opsin.ops.mapped import REPLICAS


def count(model, size=224):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return sum(p.size for p in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("depth", "plain", "normed"),
    [
        (11, 132_863_336, 132_868_840),
        pytest.param(13, 133_047_848, 133_053_736, marks=pytest.mark.proofs),
        (16, 138_357_544, 138_365_992),
        (19, 143_667_240, 143_678_248),
    ],
)
def test_imagenet_parameter_counts(depth, plain, normed):
    assert count(getattr(vgg, f"VGG{depth}")()) == plain
    assert count(getattr(vgg, f"VGG{depth}BatchNorm")()) == normed


def test_counts_do_not_depend_on_the_image():
    small = partial(VGG11, width=4, hidden=8, num_classes=2)
    assert count(small(), 20) == count(small(), 224)


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((64, 96), [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]),
        ((180, 33), [(90, 17), (45, 9), (23, 5), (12, 3), (6, 2)]),
    ],
)
def test_features_by_stride(size, sides):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    backbone = VGG11(width=4).without_head()
    features, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)
    channels = (4, 8, 16, 32, 32)
    expected = [(2, *side, width) for side, width in zip(sides, channels, strict=True)]
    assert list(features) == [2, 4, 8, 16, 32]
    assert [feature.shape for feature in features.values()] == expected


# A small network on an image of odd sides, step by step.


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(8).normal(size=(4, 9, 6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def small(images, randomise):
    model = VGG((1, 2), width=2, norm=batch_norm, num_classes=5, hidden=6)
    return model, randomise(model, images)


@pytest.fixture(scope="module")
def logits(small, images):
    model, variables = small
    return jax.jit(model.apply)(variables, images)


def test_it_equals_numpy(small, logits, images):
    _, variables = small
    params, statistics = variables["params"], variables["batch_stats"]
    x = images[0]
    for stage, layers in ((1, 1), (2, 2)):
        for layer in range(1, layers + 1):
            name = f"{stage}_{layer}"
            conv, norm = (params["backbone"][kind + name] for kind in ("conv", "norm"))
            running = statistics["backbone"]["norm" + name]
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            maps = [
                correlate(padded, w, "valid")[..., 0] for w in np.moveaxis(conv["kernel"], 3, 0)
            ]
            x = np.stack(maps, -1) + conv["bias"]
            x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5)
            x = np.maximum(x * norm["scale"] + norm["bias"], 0)
        rows, columns = range(0, x.shape[0], 2), range(0, x.shape[1], 2)
        x = np.array([[x[i : i + 2, j : j + 2].max((0, 1)) for j in columns] for i in rows])
    assert x.shape == (3, 2, 4)
    x = np.asarray(jax.jit(partial(adaptive_average_pool, size=(7, 7)))(x[None]))[0]
    fc = params["fc"]
    x = np.maximum(np.tensordot(x, fc["fc6"]["kernel"], 3) + fc["fc6"]["bias"], 0)
    x = np.maximum(x @ fc["fc7"]["kernel"][0, 0] + fc["fc7"]["bias"], 0)
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    assert params.keys() == {"backbone", "fc", "head"}
    np.testing.assert_allclose(np.asarray(logits)[0], expected, rtol=1e-4)


def test_dropout_acts_in_training_only(small, logits, images):
    model, variables = small
    run = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    one, same, other = (
        run(variables, images, rngs={"dropout": jax.random.key(k)}) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(one[0], same[0])
    assert not np.allclose(one[0], other[0])
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])  # statistics come before it
    changed = jax.tree.map(
        lambda a, b: np.all(np.asarray(a) != b), one[1]["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, images), logits)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(small, logits, images):
    model, variables = small
    half = model.clone(dtype=jnp.bfloat16)
    ours = jax.jit(half.apply)(variables, images)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, logits, rtol=0.1)
    init = half.without_head().init_with_output
    features, initial = jax.eval_shape(init, jax.random.key(0), images)
    assert {f.dtype for f in features.values()} == {jnp.dtype("bfloat16")}
    assert {a.dtype for a in jax.tree.leaves(initial)} == {jnp.dtype("float32")}


def test_axis_name_synchronises_statistics(small, images):
    model, variables = small
    backbone = model.without_head()
    part = {name: tree["backbone"] for name, tree in variables.items()}
    train = {"train": True, "mutable": ["batch_stats"]}
    whole, after = jax.jit(partial(backbone.apply, **train))(part, images)
    split = partial(model.without_head().apply, **train)
    halves, synchronised = jax.jit(jax.vmap(split, in_axes=(None, 0), axis_name=REPLICAS))(
        part, images.reshape(2, 2, *images.shape[1:])
    )
    features = np.asarray(halves[4])
    np.testing.assert_allclose(features.reshape(whole[4].shape), whole[4], atol=1e-4)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(np.asarray(two)[1], one, atol=1e-5),
        after,
        synchronised,
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got \(8, 8, 3\)"):
        VGG11(width=2, hidden=2).init(jax.random.key(0), jnp.zeros((8, 8, 3)))
