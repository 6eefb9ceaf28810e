from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opsin.models.classification.resnet import BasicBlock, ResNet, ResNet18
from opsin.models.classification.vgg import VGG, VGG11
from opsin.models.layers import batch_norm
from opsin.models.segmentation.fcn import FCN, FCN8s, FCN16s, FCN32s, FCNResNet50, SkipFCN
from opsin.models.upsampling import ConvTranspose
from opsin.ops.mapped import REPLICAS
from opsin.ops.upsampling import transposed_convolution
from tests.drawn import normal


def abstract(model, *shape, **options):
    """Shapes of the output and of the variables, by `init`."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(partial(model.init_with_output, **options), jax.random.key(0), images)


def count(variables):
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("model", "total"),
    [
        (FCN32s(), 134_346_581),
        (FCN32s(learned_output=True), 136_152_917),
        (FCN16s(), 134_364_410),
        (FCN8s(), 134_376_863),
        (FCN8s(learned_output=True), 134_489_759),
        (FCNResNet50(), 35_322_218),
        pytest.param(FCNResNet50(auxiliary=False), 32_957_013, marks=pytest.mark.proofs),
    ],
)
def test_parameter_counts(model, total):
    _, variables = abstract(model, 1, 64, 64, 3)
    assert count(variables) == total


SMALL = {
    "skip": FCN8s(
        num_classes=12,
        backbone=VGG11(width=16, norm=batch_norm).without_head(),
        hidden=128,
        kernel_size=3,
    ),
    "resnet": FCN(
        ResNet18(width=16, output_stride=8).without_head(), num_classes=12, auxiliary=True
    ),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "size", [(180, 240), pytest.param((33, 50), marks=pytest.mark.proofs), (1, 7)]
)
def test_any_image_keeps_its_size_and_small_networks_are_small(name, size):
    logits, variables = abstract(SMALL[name], 2, *size, 3)
    assert logits.shape == (2, *size, 12)
    assert logits.dtype == jnp.float32
    assert count(variables) < 1_000_000


# The skip architecture.


def test_a_classifier_slides_over_the_image_with_its_own_weights(randomise):
    # Where fc6 sees all of the 7×7 features, the score is the logit of the classifier.
    x = normal(1, 28, 28, 3)
    classifier = VGG((1, 1), width=4, hidden=8, num_classes=3)
    weights = randomise(classifier, x)["params"]
    fcn = SkipFCN(classifier.without_head(), num_classes=3, hidden=8)
    head = {"kernel": weights["head"]["kernel"][None, None], "bias": weights["head"]["bias"]}
    params = {"backbone": weights["backbone"], "fc": weights["fc"], "score4": head}
    run = jax.jit(partial(fcn.apply, capture_intermediates=True, mutable=["intermediates"]))
    (scores,) = run({"params": params}, x)[1]["intermediates"]["score4"]["__call__"]
    scores = np.asarray(scores)
    assert scores.shape == (1, 7, 7, 3)
    logits = jax.jit(classifier.apply)({"params": weights}, x)
    np.testing.assert_allclose(scores[:, 3, 3], logits, rtol=1e-5)
    assert not np.allclose(scores[:, 3, 4], logits)


class Ramp(nn.Module):
    """Features that hold their own place: row and column of a feature's centre, in pixels."""

    strides: tuple[int, ...]

    def __call__(self, x, *, train=False):
        del train

        def centres(stride):
            rows, columns = (jnp.arange(-(-side // stride)) for side in x.shape[1:3])
            grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
            return stride * (grid[None] + 0.5) - 0.5

        return {stride: centres(stride) for stride in self.strides}


def test_untrained_scores_are_zero_and_scores_of_all_strides_lie_over_each_other():
    learned = SkipFCN(
        Ramp((4, 8, 16)), 2, skips=(8, 4), hidden=2, kernel_size=1, learned_output=True
    )
    x = np.zeros((1, 90, 101, 3), np.float32)
    logits, variables = jax.jit(learned.init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(logits, np.zeros((1, 90, 101, 2)))

    # Places are their own interpolation: the sum of three scores is three times the place.
    identity = {"kernel": np.eye(2, dtype=np.float32)[None, None], "bias": np.zeros(2, np.float32)}
    layers = {"score4": identity, "score8": identity, "score16": identity}
    layers["fc"] = {"fc6": identity, "fc7": identity}
    upsampling = {name: p for name, p in variables["params"].items() if name not in layers}
    assert upsampling.keys() == {"upsample16", "upsample8", "upsample4"}
    place = np.moveaxis(np.mgrid[:90, :101], 0, -1)
    inside = (slice(20, -20), slice(20, -20))
    for model in (learned, learned.clone(learned_output=False)):
        logits = jax.jit(model.apply)({"params": layers | upsampling}, x)
        np.testing.assert_allclose(np.asarray(logits)[0][inside], 3.0 * place[inside], rtol=1e-5)


def test_bad_fields_are_named():
    def run(model):
        abstract(model, 1, 32, 32, 3)

    ramp = Ramp((4, 8, 16))
    for skips in ((4, 8), (32,), (16,), (8, 8)):
        with pytest.raises(ValueError, match=r"skips descend among \[8, 4\]; got"):
            run(SkipFCN(ramp, skips=skips))
    with pytest.raises(ValueError, match="odd to keep the size; got 4"):
        run(SkipFCN(ramp, kernel_size=4))
    with pytest.raises(ValueError, match=r"features of stride 32 .* without dilation"):
        run(SkipFCN(ResNet18(width=4, output_stride=8).without_head()))
    with pytest.raises(ValueError, match=r"got \(32, 32, 3\)"):
        abstract(FCN(ResNet18(width=4).without_head()), 32, 32, 3)


# The head on any backbone.


@pytest.fixture(scope="module")
def images():
    return normal(4, 10, 7, 3)


@pytest.fixture(scope="module")
def small(images, randomise):
    backbone = ResNet((1, 1), BasicBlock, width=4, stem="cifar").without_head()
    model = FCN(backbone, 3, auxiliary=True, dropout=0.0)
    return model, randomise(model, images)


@pytest.fixture(scope="module")
def trained(small, images):
    model, variables = small
    train = partial(model.apply, train=True, mutable=["batch_stats", "auxiliary"])
    return jax.jit(train)(variables, images)


def test_auxiliary_logits_are_sown_in_training_only(small, trained, images):
    model, variables = small
    assert variables.keys() == {"params", "batch_stats"}
    assert variables["params"].keys() == {"backbone", "head", "auxiliary_head"}
    assert abstract(model, 1, 8, 8, 3, train=True)[1].keys() == {"params", "batch_stats"}
    logits, after = trained
    (auxiliary,) = after["auxiliary"]["logits"]
    assert auxiliary.shape == logits.shape == (4, 10, 7, 3)
    assert auxiliary.dtype == logits.dtype == jnp.float32
    assert not np.allclose(auxiliary, logits)
    evaluate = partial(model.apply, mutable=["batch_stats", "auxiliary"])
    _, after = jax.eval_shape(evaluate, variables, images)
    assert "auxiliary" not in after
    alone = model.clone(auxiliary=False)
    assert abstract(alone, 1, 8, 8, 3)[1]["params"].keys() == {"backbone", "head"}


def test_axis_name_synchronises_backbone_and_heads(small, trained, images):
    model, variables = small
    train = {"train": True, "mutable": ["batch_stats", "auxiliary"]}
    split = partial(model.apply, **train)
    logits, synchronised = jax.jit(jax.vmap(split, in_axes=(None, 0), axis_name=REPLICAS))(
        variables, images.reshape(2, 2, *images.shape[1:])
    )
    both, after = trained
    np.testing.assert_allclose(np.asarray(logits).reshape(both.shape), both, atol=1e-4)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(np.asarray(two)[1], one, atol=1e-5),
        after["batch_stats"],
        synchronised["batch_stats"],
    )


# The layer, and learning.


def test_the_layer_is_the_transposed_convolution_and_a_bias(randomise):
    x = normal(2, 3, 4, 5)
    layer = ConvTranspose(6, (4, 3), (2, 1), padding=(1, 0))
    variables = randomise(layer, x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (4, 3, 5, 6)
    expected = transposed_convolution(x, kernel, strides=(2, 1), padding=(1, 0)) + bias
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-6)
    y, variables = abstract(layer.clone(dtype=jnp.bfloat16, use_bias=False), *x.shape)
    assert y.dtype == jnp.bfloat16
    assert {name: p.dtype for name, p in variables["params"].items()} == {"kernel": jnp.float32}


def test_a_tiny_network_learns_two_images_by_heart(randomise):
    rows, columns = np.mgrid[:16, :16]
    stairs, disc = (rows > 7) + (columns > 5), ((rows - 8) ** 2 + (columns - 8) ** 2 < 30) * 2
    labels = np.stack([stairs, disc])
    images = np.eye(3, dtype=np.float32)[labels] + 0.3 * normal(2, 16, 16, 3)
    backbone = VGG((1, 1), width=8).without_head()
    model = SkipFCN(backbone, 3, skips=(2,), hidden=16, kernel_size=3, dropout=0.0)
    optimizer = optax.adam(1e-2)

    def loss(params):
        logits = model.apply(params, images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    @jax.jit
    def step(params, state):
        grads, logits = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, logits

    params = randomise(model, images)
    state = jax.jit(optimizer.init)(params)
    accuracy = []
    for _ in range(60):
        params, state, logits = step(params, state)
        accuracy.append(np.mean(np.asarray(logits).argmax(-1) == labels))
    assert accuracy[0] < 0.6
    assert accuracy[-1] > 0.95
