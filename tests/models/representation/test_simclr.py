"""SimCLR: exact counts, features where a classifier has them, statistics over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification.linear import Linear
from opsin.models.classification.resnet import BasicBlock, ResNet, ResNet18Cifar, ResNet50
from opsin.models.classification.vit import ViT
from opsin.models.layers import batch_norm
from opsin.models.representation.simclr import (
    ProjectionHead,
    SimCLR,
    SimCLRResNet18Cifar,
    SimCLRResNet50,
)
from opsin.models.segmentation.unet import UNet
from opsin.ops.mapped import REPLICAS
from opsin.train.paths import flatten

SMALL = ResNet(stage_sizes=(1, 1), block=BasicBlock, width=4, stem="cifar", num_classes=3)
IMAGES = np.random.default_rng(1).uniform(size=(4, 8, 8, 3)).astype(np.float32)


def shapes_of(module, size):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return flatten(jax.eval_shape(module.init, jax.random.key(0), image)["params"])


def count(shapes, part=""):
    return sum(x.size for name, x in shapes.items() if name.startswith(part))


@pytest.mark.parametrize(
    ("network", "classifier", "size", "head", "output_layer"),
    [
        pytest.param(
            *(SimCLRResNet50, ResNet50, 64, 4_458_624, 2048 * 1000 + 1000),
            marks=pytest.mark.proofs,
        ),
        (SimCLRResNet18Cifar, ResNet18Cifar, 32, 328_320, 512 * 10 + 10),
    ],
)
def test_the_backbone_is_that_of_the_classifier(network, classifier, size, head, output_layer):
    found, whole = shapes_of(network(), size), shapes_of(classifier(), size)
    assert count(found, "head/") == head
    assert count(found, "backbone/") == count(whole) - output_layer
    backbone = {name: x.shape for name, x in whole.items() if name.startswith("backbone/")}
    assert backbone.items() <= {name: x.shape for name, x in found.items()}.items()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(0, 0), (1, 8 * 5 + 5), (2, 8 * 6 + 6 + 6 * 5 + 5), (3, 8 * 6 + 6 + 6 * 6 + 6 + 6 * 5 + 5)],
)
def test_heads_have_the_parameters_of_their_layers(layers, expected):
    head = ProjectionHead(layers=layers, width=6, output=5)
    x = jax.ShapeDtypeStruct((2, 8), jnp.float32)
    output, variables = jax.eval_shape(head.init_with_output, jax.random.key(0), x)
    assert sum(x.size for x in jax.tree.leaves(variables)) == expected
    assert output.shape == (2, 8 if layers == 0 else 5)
    assert output.dtype == jnp.float32


def test_a_head_is_relu_between_its_layers_and_nothing_behind():
    head = ProjectionHead(layers=2, output=3)
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    init = jax.jit(head.init_with_output)
    output, variables = jax.tree.map(np.asarray, init(jax.random.key(0), x))
    first, last = (variables["params"][f"layer{i}"] for i in (1, 2))
    hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
    np.testing.assert_allclose(output, hidden @ last["kernel"] + last["bias"], rtol=1e-5, atol=1e-6)
    assert (output < 0).any()


def test_a_norm_takes_the_place_of_biases_and_follows_the_last_layer_too():
    head = ProjectionHead(layers=2, width=6, output=5, norm=batch_norm)
    x = np.random.default_rng(1).normal(3, 1, size=(64, 8)).astype(np.float32)
    variables = jax.jit(head.init)(jax.random.key(0), x)
    names = flatten(variables["params"])
    assert {name for name in names if "bias" in name} == {"norm1/bias"}
    train = jax.jit(partial(head.apply, train=True, mutable=["batch_stats"]))
    output = np.asarray(train(variables, x)[0])
    np.testing.assert_allclose(output.mean(axis=0), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(output.std(axis=0), np.ones(5), atol=1e-3)


def test_features_are_the_mean_of_the_last_map(randomise):
    model = SimCLR(backbone=SMALL.without_head(), head=ProjectionHead(layers=0))

    @jax.jit
    def both(variables, images):
        inner = {name: tree["backbone"] for name, tree in variables.items()}
        *_, last = SMALL.without_head().apply(inner, images).values()
        return model.apply(variables, images), last

    features, last = map(np.asarray, both(randomise(model, IMAGES), IMAGES))
    np.testing.assert_allclose(features, last.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_a_vision_transformer_is_a_backbone_too():
    vit = ViT(depth=1, width=8, mlp_width=8, heads=2, patch=4, pool="gap")
    shape = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    model = SimCLR(backbone=vit.without_head())
    output, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), shape)
    assert output.shape == (2, 128)


def test_statistics_of_both_parts_are_taken_over_a_mapped_axis(randomise):
    model = SimCLR(
        backbone=SMALL.without_head(), head=ProjectionHead(layers=1, output=3, norm=batch_norm)
    )

    @jax.jit
    def both(variables, images):
        train = partial(model.apply, variables, train=True, mutable=["batch_stats"])
        return train(images), jax.vmap(train, axis_name=REPLICAS)(images.reshape(2, 2, 8, 8, 3))

    results = jax.tree.map(np.asarray, both(randomise(model, IMAGES), IMAGES))
    (whole, stats), (halves, mapped_stats) = results
    np.testing.assert_allclose(halves.reshape(4, 3), whole, rtol=1e-3, atol=1e-4)
    for name, leaf in flatten(stats).items():
        np.testing.assert_allclose(flatten(mapped_stats)[name][0], leaf, rtol=1e-3, atol=1e-5)


def test_a_backbone_without_pooled_features_is_told_in_a_line():
    model = SimCLR(backbone=UNet(num_classes=2, width=2, padding="same"))
    shape = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"UNet gives \(1, 16, 16, 2\): take a backbone such as"):
        jax.eval_shape(model.init, jax.random.key(0), shape)
    with pytest.raises(ValueError, match="0 layers or more; got -1"):
        ProjectionHead(layers=-1).init(jax.random.key(0), np.ones((1, 2), np.float32))


def test_the_linear_classifier_is_one_product():
    init = jax.jit(Linear(num_classes=3).init_with_output)
    output, variables = jax.tree.map(np.asarray, init(jax.random.key(0), IMAGES))
    head = variables["params"]["head"]
    assert head["kernel"].shape == (8 * 8 * 3, 3)
    flat = IMAGES.reshape(4, -1)
    np.testing.assert_allclose(output, flat @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"Linear takes \[batch"):
        Linear().init(jax.random.key(0), np.ones((2, 3), np.float32))
