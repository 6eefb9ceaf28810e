from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from opsin.models.classification.drn import DRND22
from opsin.models.classification.resnet import ResNet18, cifar_resnet
from opsin.models.layers import Conv, batch_norm
from opsin.models.segmentation.deeplab import (
    ASPP,
    DeepLabv3,
    DeepLabv3Plus,
    DeepLabv3PlusResNet50,
    DeepLabv3ResNet50,
)
from opsin.ops.mapped import REPLICAS
from opsin.ops.upsampling import upsample_bilinear
from tests.drawn import normal


@pytest.mark.parametrize(
    ("model", "total"),
    [
        pytest.param(DeepLabv3ResNet50(), 42_004_074, marks=pytest.mark.proofs),
        pytest.param(DeepLabv3ResNet50(auxiliary=False), 39_638_869, marks=pytest.mark.proofs),
        pytest.param(DeepLabv3PlusResNet50(), 39_761_845, marks=pytest.mark.proofs),
        (
            DeepLabv3Plus(ResNet18(width=16, output_stride=16).without_head(), 11, width=48),
            935_339,
        ),
    ],
)
def test_parameter_counts(model, total):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == total


@pytest.mark.parametrize("make", [DeepLabv3, DeepLabv3Plus])
@pytest.mark.parametrize(
    "backbone",
    [
        ResNet18(width=4, stage_sizes=(1, 1, 1, 1), output_stride=8).without_head(),
        pytest.param(
            DRND22(width=2, level_sizes=(1,) * 8).without_head(), marks=pytest.mark.proofs
        ),
    ],
)
def test_logits_have_the_size_of_any_image(make, backbone):
    model = make(backbone, num_classes=5, width=8, auxiliary=True, dtype=jnp.bfloat16)
    for height, width in [(180, 240), (33, 17), (1, 1)]:
        images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        assert logits.shape == (2, height, width, 5)
        # Parameters, statistics and logits, whatever the compute dtype.
        assert {a.dtype for a in jax.tree.leaves((logits, variables))} == {jnp.dtype("float32")}
        assert variables.keys() == {"params", "batch_stats"}


def convolved(params, x, rate=1):
    sides = [(rate * (taps // 2),) * 2 for taps in params["kernel"].shape[:2]]
    dilation = (rate, rate)
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, params["kernel"], (1, 1), sides, rhs_dilation=dilation, dimension_numbers=numbers
    )


def normalised(params, statistics, x):
    x = (x - statistics["mean"]) / jnp.sqrt(statistics["var"] + 1e-5)
    return jnp.maximum(x * params["scale"] + params["bias"], 0)


@pytest.fixture(scope="module")
def pyramid():
    conv = partial(Conv, use_bias=False)
    return ASPP(rates=(2, 9), width=4, dropout=0.5, conv=conv, norm=batch_norm)


def test_pyramid_is_its_branches_side_by_side(pyramid, randomise):
    x = normal(2, 6, 7, 3)

    @jax.jit
    def both(variables, x):
        params, statistics = variables["params"], variables["batch_stats"]

        def branch(name, x, rate=1):
            y = convolved(params[f"{name}_conv"], x, rate)
            return normalised(params[f"{name}_norm"], statistics[f"{name}_norm"], y)

        # A rate beyond the features leaves the centre of the kernel (Chen et al., 2017, section
        # 3.3).
        centre = x @ params["atrous2_conv"]["kernel"][1, 1]
        branches = [
            branch("point", x),
            branch("atrous1", x, 2),
            normalised(params["atrous2_norm"], statistics["atrous2_norm"], centre),
            jnp.broadcast_to(branch("image", x.mean((1, 2), keepdims=True)), (2, 6, 7, 4)),
        ]
        expected = branch("project", jnp.concatenate(branches, axis=-1))
        return pyramid.apply(variables, x), expected

    found, expected = both(randomise(pyramid, x), x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_in_a_batch_of_one_the_mean_of_the_image_tells_nothing(pyramid, key, randomise):
    x = normal(2, 6, 7, 3)
    variables = randomise(pyramid, x)

    def loss(params, x):
        y, _ = pyramid.apply(
            variables | {"params": params},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.sum(y**2)

    for images, learns in ((x[:1], False), (x, True)):
        gradient = jax.jit(jax.grad(loss))(variables["params"], images)
        gradient = np.asarray(gradient["image_conv"]["kernel"])
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient).max() > 1e-3) == learns


# One small network of version 3+, on features {1, 2, 4} where 4 is dilated to 2.


@pytest.fixture(scope="module")
def images():
    return normal(4, 8, 10, 3)


@pytest.fixture(scope="module")
def small(images, randomise):
    backbone = cifar_resnet(8, width=4, output_stride=2).without_head()
    model = DeepLabv3Plus(
        backbone,
        num_classes=3,
        rates=(1, 2),
        width=6,
        dropout=0.0,
        low_level=1,
        low_level_width=2,
        auxiliary=True,
    )
    return model, randomise(model, images)


def test_version_3_plus_is_its_parts(small, images):
    model, variables = small

    @jax.jit
    def both(variables, images):
        params, statistics = variables["params"], variables["batch_stats"]
        part = {name: tree["backbone"] for name, tree in variables.items()}
        features = model.backbone.apply(part, images)
        pyramid = ASPP((1, 2), 6, 0.0, partial(Conv, use_bias=False), batch_norm)
        part = {name: tree["aspp"] for name, tree in variables.items()}
        y = pyramid.apply(part, features[4])
        low = convolved(params["low_level_conv"], features[1])
        low = normalised(params["low_level_norm"], statistics["low_level_norm"], low)
        y = jnp.concatenate([upsample_bilinear(y, (8, 10)), low], axis=-1)
        y = normalised(params["norm"], statistics["norm"], convolved(params["conv"], y))
        expected = convolved(params["score"], y) + params["score"]["bias"]
        return model.apply(variables, images, mutable=["auxiliary"]), expected

    (logits, sown), expected = both(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert sown == {}  # in training alone


def train_mode(model, variables, images):
    return model.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats", "auxiliary"],
        rngs={"dropout": jax.random.key(2)},
    )


def test_auxiliary_head_sees_the_level_before_the_last(small, images):
    model, variables = small

    def loss(params, variables, images):
        logits, updated = train_mode(model, variables | {"params": params}, images)
        (auxiliary,) = updated["auxiliary"]["logits"]
        assert auxiliary.shape == logits.shape
        assert auxiliary.dtype == jnp.float32
        return jnp.sum(auxiliary**2)

    gradients = jax.jit(jax.grad(loss))(variables["params"], variables, images)
    moved = jax.tree.map(lambda g: np.asarray(g).any(), gradients)
    backbone = moved["backbone"]
    assert all(jax.tree.leaves(moved["auxiliary_head"]))
    assert backbone["stage2_block1"]["conv2"]["kernel"]
    apart = [moved[name] for name in ("aspp", "conv", "score")] + [backbone["stage3_block1"]]
    assert not any(jax.tree.leaves(apart))


@pytest.mark.proofs
def test_axis_name_synchronises_every_statistic(small, images):
    model, variables = small
    model = model.clone(auxiliary=False)
    halves = images.reshape(2, 2, 8, 10, 3)

    def both(variables, halves):
        images = halves.reshape(4, 8, 10, 3)
        each = jax.vmap(partial(train_mode, model, variables), axis_name=REPLICAS)(halves)
        return train_mode(model, variables, images), each

    (logits, after), (parts, each) = jax.jit(both)(variables, halves)
    # The means of four images differ little: to normalise them magnifies rounding.
    np.testing.assert_allclose(np.asarray(parts).reshape(logits.shape), logits, atol=1e-3)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(np.asarray(two)[1], one, atol=1e-4), after, each
    )


@pytest.mark.proofs
def test_it_learns_two_images(small, key):
    model, variables = small
    model = model.clone(dropout=0.1, auxiliary=False)
    images = normal(2, 8, 10, 3)
    labels = jnp.argmax(upsample_bilinear(images[:, ::4, ::4], (8, 10)), axis=-1)

    def step(variables, key):
        def loss(params):
            logits, updated = model.apply(
                variables | {"params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
            return jnp.mean(losses), (updated, accuracy)

        params = variables["params"]
        gradient, (updated, accuracy) = jax.grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        return {"params": params, **updated}, accuracy

    @jax.jit
    def steps(variables, key):
        return jax.lax.scan(step, variables, jax.random.split(key, 80))[1]

    accuracies = np.asarray(steps(variables, key))
    assert accuracies[0] < 0.6
    assert min(accuracies[-10:]) > 0.9


def test_a_level_that_is_not_there_is_named(small, images, key):
    model, _ = small
    with pytest.raises(ValueError, match=r"low_level is None or one of \[1, 2, 4\]; got 8"):
        jax.eval_shape(model.clone(low_level=8).init, key, images)
