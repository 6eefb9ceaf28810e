"""GANs: the papers' counts, sizes, classes, and kernels whose largest singular value is 1."""

from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.config.tree import rebuild, resolve
from opsin.models.generative.dcgan import (
    DCGANDiscriminator,
    DCGANDiscriminator32,
    DCGANGenerator,
    DCGANGenerator32,
)
from opsin.models.generative.gan import Discriminator, glorot, small_normal
from opsin.models.generative.resnet_gan import (
    ResidualBlock,
    ResidualDiscriminator,
    ResidualGenerator,
)
from opsin.models.layers import Conv, group_norm
from opsin.models.spectral import SpectralConv, SpectralDense
from tests.drawn import normal

LABELS = np.asarray([0, 1, 2, 1], np.int32)


def shapes(model, channels: int = 3):
    size = (64, 64) if isinstance(model, Discriminator) else ()
    if isinstance(model, ResidualDiscriminator) or model.halvings == 3:
        size = size and (32, 32)
    shape = (4, *size, channels) if size else (4, model.latent)
    labels = None if model.num_classes is None else LABELS
    init = partial(model.init, labels=labels)
    return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def parameters(model, channels: int = 3) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, channels)["params"]))


def test_parameters_of_dcgan():
    pyramid = 64 * 128 + 128 * 256 + 256 * 512
    norms = 2 * (64 + 128 + 256 + 512)
    assert parameters(DCGANGenerator()) == 16 * (100 * 512 + pyramid + 64 * 3) + norms == 3_576_704
    norms -= 2 * 64
    assert parameters(DCGANDiscriminator()) == 16 * (3 * 64 + pyramid + 512) + norms == 2_765_568

    pyramid = 64 * 128 + 128 * 256
    norms = 2 * (64 + 128 + 256)
    got = parameters(DCGANGenerator32())
    assert got == 16 * (100 * 256 + pyramid + 64 * 3) + norms == 1_068_928
    norms -= 2 * 64
    assert parameters(DCGANDiscriminator32()) == 16 * (3 * 64 + pyramid + 256) + norms == 663_296


def test_parameters_of_the_residual_pair():
    def conv(taps, inputs, outputs):
        return taps * inputs * outputs + outputs

    width = 256
    block = 2 * conv(9, width, width) + conv(1, width, width) + 4 * width
    ends = conv(1, 128, 16 * width) + 2 * width + conv(9, width, 3)
    assert parameters(ResidualGenerator()) == 3 * block + ends == 4_276_739
    width = 128
    first = conv(9, 3, width) + conv(9, width, width) + conv(1, 3, width)
    halving = 2 * conv(9, width, width) + conv(1, width, width)
    got = parameters(ResidualDiscriminator())
    assert got == first + halving + 4 * conv(9, width, width) + width == 1_053_824


@pytest.mark.proofs
def test_parameters_of_options():
    generator, discriminator = DCGANGenerator(), DCGANDiscriminator()
    # A class is one more number beside z, ...
    more = parameters(DCGANGenerator(num_classes=10)) - parameters(generator)
    assert more == 10 * 16 * 512
    # ... a linear layer of its own, or a plane.
    more = parameters(DCGANDiscriminator(num_classes=10)) - parameters(discriminator)
    assert more == 10 * 16 * 512
    planes = DCGANDiscriminator(num_classes=10, condition="planes")
    assert parameters(planes) - parameters(discriminator) == 10 * 16 * 64
    # Hidden units see the last map, and the head sees them.
    more = parameters(DCGANDiscriminator(hidden=256)) - parameters(discriminator)
    assert more == (16 * 512 + 1) * 256 + 256 - 16 * 512
    # Without norms, of two parameters a channel, convolutions have biases.
    more = parameters(DCGANGenerator(norm=None)) - parameters(generator)
    assert more == 3 - (64 + 128 + 256 + 512)
    more = parameters(DCGANDiscriminator(norm=None)) - parameters(discriminator)
    assert more == 64 - (128 + 256 + 512)
    # Spectral normalisation has none, and a vector for each kernel.
    spectral, plain = (
        shapes(DCGANDiscriminator(num_classes=10, spectral=s)) for s in (True, False)
    )
    assert spectral["params"] == plain["params"]
    assert "spectral" not in plain
    vectors = {name: leaf["u"].shape for name, leaf in spectral["spectral"].items()}
    convolutions = {f"conv{i}": (64 * 2 ** (i - 1),) for i in (1, 2, 3, 4)}
    assert vectors == convolutions | {"head": (1,), "projection": (16 * 512,)}


@pytest.mark.parametrize(
    ("image", "halvings"),
    [((28, 28, 1), 2), ((20, 12, 3), 2), ((6, 2, 4), 1), ((64, 64, 1), 6)],
)
@pytest.mark.parametrize(
    ("make", "judge"),
    [(DCGANGenerator, DCGANDiscriminator), (ResidualGenerator, ResidualDiscriminator)],
)
def test_sizes(make, judge, image, halvings):
    generator = make(image=image, latent=5, width=4, halvings=halvings)
    residual = {"blocks": halvings + 1} if judge is ResidualDiscriminator else {}
    discriminator = judge(width=4, halvings=halvings, **residual)

    def run(z):
        images, _ = generator.init_with_output(jax.random.key(0), z)
        return images, discriminator.init_with_output(jax.random.key(1), images)[0]

    images, logits = jax.eval_shape(run, jax.ShapeDtypeStruct((3, 5), jnp.float32))
    assert (images.shape, images.dtype) == ((3, *image), jnp.float32)
    assert (logits.shape, logits.dtype) == ((3,), jnp.float32)


def test_what_does_not_fit_is_named():
    def init(model, *size, labels=None):
        x = jax.ShapeDtypeStruct(size, jnp.float32)
        jax.eval_shape(partial(model.init, labels=labels), jax.random.key(0), x)

    three = np.zeros(3, np.int32)
    for make in (DCGANGenerator, ResidualGenerator):
        with pytest.raises(ValueError, match=r"2 times takes sides that 4 divides; got \(28, 30\)"):
            init(make(image=(28, 30, 1), halvings=2, latent=5), 3, 5)
        with pytest.raises(ValueError, match=r"takes \[batch, 5\]; got \[3, 6\]"):
            init(make(latent=5), 3, 6)
        with pytest.raises(ValueError, match="latent=0"):
            init(make(latent=0), 3, 0)
        with pytest.raises(ValueError, match="not conditional: give no labels, or set num_classes"):
            init(make(latent=5), 3, 5, labels=three)
        with pytest.raises(ValueError, match="conditional on 7 classes: give labels"):
            init(make(latent=5, num_classes=7), 3, 5)
        with pytest.raises(ValueError, match=r"one label an example: 2 of them; got \[3\]"):
            init(make(latent=5, num_classes=7), 2, 5, labels=three)
        with pytest.raises(ValueError, match="halvings is at least 1; got 0"):
            init(make(latent=5, halvings=0), 3, 5)
    for make in (DCGANDiscriminator, ResidualDiscriminator):
        with pytest.raises(ValueError, match=r"2 times takes sides that 4 divides; got \(28, 30\)"):
            init(make(halvings=2), 3, 28, 30, 1)
        with pytest.raises(ValueError, match=r"takes batches of images; got \[28, 28, 1\]"):
            init(make(), 28, 28, 1)
        with pytest.raises(ValueError, match="conditional on 7 classes: give labels"):
            init(make(num_classes=7), 3, 64, 64, 1)
        with pytest.raises(ValueError, match='condition is "projection" or "planes"; got '):
            init(make(condition="sum"), 3, 64, 64, 1)  # pyright: ignore
    with pytest.raises(ValueError, match="1 blocks cannot halve images 2 times"):
        init(ResidualDiscriminator(blocks=1), 3, 32, 32, 1)


def test_weights_start_as_in_the_papers(key):
    for start, std in [(small_normal, 0.02), (glorot, (2 / (30 + 50)) ** 0.5)]:
        kernel = np.asarray(start(key, (30, 50)))
        assert np.std(kernel) == pytest.approx(std, rel=0.1)
        assert abs(np.mean(kernel)) < 0.1 * std
    for model, x in [
        (DCGANGenerator(image=(4, 4, 1), width=1, halvings=1, latent=2), np.zeros((1, 2))),
        (DCGANDiscriminator(width=1, halvings=1), np.zeros((1, 4, 4, 1))),
    ]:
        assert model.kernel_init is small_normal
        init = jax.jit(model.clone(kernel_init=nn.initializers.ones).init)
        params = init(key, x.astype(np.float32))["params"]
        kernels = {name: layer["kernel"] for name, layer in params.items() if "kernel" in layer}
        assert kernels.keys() == {"conv1", "head"}
        for kernel in kernels.values():
            np.testing.assert_array_equal(kernel, np.ones(kernel.shape))


def drawn(randomise, model, *inputs, labels=None):
    """Variables that `randomise` draws for a model with labels."""
    return randomise(SimpleNamespace(init=partial(model.init, labels=labels)), *inputs)


def judges(**options):
    return [
        DCGANDiscriminator(width=4, halvings=2, **options),
        ResidualDiscriminator(width=4, halvings=1, blocks=2, spectral=False, **options),
    ]


@pytest.fixture(scope="module")
def images():
    return normal(4, 8, 12, 2)


@pytest.mark.parametrize(
    "model",
    [
        DCGANGenerator(image=(8, 12, 2), latent=5, width=2, halvings=2, num_classes=3),
        ResidualGenerator(image=(4, 6, 2), latent=5, width=2, halvings=1, num_classes=3),
    ],
    ids=["dcgan", "residual"],
)
def test_a_generator_makes_each_image_of_its_latent_and_class(model, randomise):
    z = normal(4, 5)
    variables = drawn(randomise, model, z, labels=LABELS)
    apply = jax.jit(lambda z, labels: model.apply(variables, z, labels=labels))
    images = np.asarray(apply(z, LABELS))
    # In evaluation, even with batch norm: one after the other, others in their place.
    order = np.asarray([2, 0, 3, 1])
    np.testing.assert_allclose(apply(z[order], LABELS[order]), images[order], atol=1e-5)

    def changed(z, labels):
        return np.any(np.abs(np.asarray(apply(z, labels)) - images) > 1e-3, axis=(1, 2, 3))

    labels, latents = LABELS.copy(), z.copy()
    labels[1], latents[3, 0] = 2, latents[3, 0] + 1
    np.testing.assert_array_equal(changed(z, labels), [False, True, False, False])
    np.testing.assert_array_equal(changed(latents, LABELS), [False, False, False, True])


@pytest.mark.parametrize("norm", [None, partial(group_norm, groups=1)], ids=["none", "layer"])
@pytest.mark.parametrize("index", [0, 1], ids=["dcgan", "residual"])
def test_without_batch_norm_logits_are_of_each_image_by_itself(index, norm, randomise, images):
    model = judges(norm=norm)[index]
    variables = randomise(model, images)
    jacobian = jax.jacrev(partial(model.apply, train=True), argnums=1)
    per_image = np.abs(jax.jit(jacobian)(variables, images)).max(axis=(2, 3, 4))
    assert (np.diag(per_image) > 0).all()
    np.testing.assert_array_equal(per_image, np.diag(np.diag(per_image)))


def test_with_batch_norm_logits_depend_on_the_batch_in_training_only(randomise, images):
    model = judges()[0]
    variables = randomise(model, images)

    @partial(jax.jit, static_argnames="train")
    def run(x, train):
        return model.apply(variables, x, train=train, mutable=["batch_stats"])

    other = images * np.array([3, 1, 1, 1], np.float32)[:, None, None, None]
    for train in (True, False):
        logits, changed = run(images, train)
        others, _ = run(other, train)
        same = np.allclose(np.asarray(logits)[1:], np.asarray(others)[1:], atol=1e-6)
        assert same == (not train)
        kept = jax.tree.map(np.array_equal, changed["batch_stats"], variables["batch_stats"])
        assert set(jax.tree.leaves(kept)) == {not train}


@pytest.mark.parametrize("hidden", [None, 8])
def test_hidden_units_see_far_places_together(hidden, randomise):
    model = DCGANDiscriminator(width=2, halvings=1, norm=None, hidden=hidden)
    # Blank, one corner, the other, and both.
    images = np.zeros((4, 12, 12, 1), np.float32)
    images[[1, 3], 0, 0] = images[[2, 3], 11, 11] = 50
    variables = drawn(randomise, model, images[:1])
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    # Mixed difference: zero where a logit is a sum over patches.
    mixed = logits[3] - logits[1] - logits[2] + logits[0]
    assert (abs(mixed) > 1e-3) == (hidden is not None)


@pytest.mark.parametrize("condition", ["projection", "planes"])
@pytest.mark.parametrize("index", [0, 1], ids=["dcgan", "residual"])
def test_classes(index, condition, randomise, images):
    model = judges(norm=None, num_classes=3, condition=condition)[index]
    variables = drawn(randomise, model, images, labels=LABELS)
    assert set(variables) == {"params"}  # sown features are no variables

    @jax.jit
    def run(labels):
        return model.apply(variables, images, labels=labels, mutable=["intermediates"])

    logits, sown = jax.tree.map(np.asarray, run(LABELS))
    labels = LABELS.copy()
    labels[2] = 0
    changed = np.abs(np.asarray(run(labels)[0]) - logits) > 1e-4
    np.testing.assert_array_equal(changed, [False, False, True, False])
    # The logits are read off the features that are sown.
    (features,) = sown["intermediates"]["features"]
    params = variables["params"]
    expected = (features @ params["head"]["kernel"])[:, 0]
    if condition == "projection":
        expected += np.sum(features * params["projection"]["kernel"][LABELS], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_config_can_name_all_fields():
    for make in (DCGANGenerator, ResidualGenerator, DCGANDiscriminator, ResidualDiscriminator):
        fields = resolve(make())  # raises for what has no name
        assert resolve(rebuild(fields)) == fields


@pytest.mark.parametrize("resize", ["up", "down", None])
def test_the_shortcut_of_a_block_resizes_as_its_branch_does(resize, randomise, images):
    block = ResidualBlock(3, Conv, None, resize=resize)
    variables = randomise(block, images)
    params = variables["params"]
    last = jax.tree.map(np.zeros_like, params["conv2"])  # the branch is zero
    got = jax.jit(block.apply)({"params": params | {"conv2": last}}, images)
    kernel, bias = (params["shortcut"][name] for name in ("kernel", "bias"))
    expected = images @ kernel[0, 0] + bias
    if resize == "up":
        expected = expected.repeat(2, axis=1).repeat(2, axis=2)
    if resize == "down":
        expected = expected.reshape(4, 4, 2, 6, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_after_many_steps_the_largest_singular_value_of_a_kernel_is_one(kind):
    # Inputs for which a layer without bias gives its kernel, a row each.
    if kind == "dense":
        layer, inputs, rows = SpectralDense(7, use_bias=False, train=True), np.eye(5), (5,)
    else:
        layer = SpectralConv(7, (3, 2), padding="VALID", use_bias=False, train=True)
        inputs, rows = np.eye(3 * 2 * 4).reshape(-1, 3, 2, 4), (24, 1, 1)

    inputs = inputs.astype(np.float32)

    @jax.jit
    def normalised(kernel):
        variables = layer.init(jax.random.key(0), inputs)
        start = variables["spectral"]

        def step(spectral, _):
            variables = {"params": {"kernel": kernel}, "spectral": spectral}
            out, changed = layer.apply(variables, inputs, mutable=["spectral"])
            return changed["spectral"], out

        return jax.lax.scan(step, start, length=200)[1]

    shape = (5, 7) if kind == "dense" else (3, 2, 4, 7)
    kernel = np.random.default_rng(0).normal(0, 10, shape).astype(np.float32)
    out = np.asarray(normalised(kernel))
    assert out.shape == (200, *rows, 7)
    matrix = kernel.reshape(-1, 7)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(out[-1].reshape(-1, 7), matrix / values[0], rtol=1e-4, atol=1e-5)
    largest = [np.linalg.norm(each.reshape(-1, 7), 2) for each in out[[0, 1, 2, -1]]]
    assert largest[0] > 1.01
    assert np.all(np.diff(largest) < 0)
    assert largest[-1] == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(normalised(np.zeros_like(kernel)), np.zeros_like(out))


@pytest.fixture(scope="module")
def spectral(randomise, images):
    """A discriminator of normalised kernels, its variables, and a jitted step of it."""
    model = ResidualDiscriminator(width=4, halvings=1, blocks=2, num_classes=3)
    variables = drawn(randomise, model, images, labels=LABELS)

    @partial(jax.jit, static_argnames=("train", "mutable"))
    def run(variables, train=False, mutable=("spectral",)):
        return model.apply(variables, images, labels=LABELS, train=train, mutable=list(mutable))

    return variables, lambda *args, **options: jax.tree.map(np.asarray, run(*args, **options))


def test_the_singular_vectors_move_in_training_and_not_otherwise(spectral):
    variables, run = spectral
    before = variables["spectral"]
    logits, evaluated = run(variables)
    jax.tree.map(np.testing.assert_array_equal, evaluated["spectral"], before)
    trained, after = run(variables, train=True)
    moved = jax.tree.map(lambda a, b: bool(np.any(np.abs(a - b) > 1e-4)), after["spectral"], before)
    assert all(jax.tree.leaves(moved))
    frozen, nothing = run(variables, train=True, mutable=())
    assert nothing == {}
    # All of them see the same kernels.
    np.testing.assert_allclose(trained, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(frozen, logits, rtol=1e-5, atol=1e-6)
    nearer, _ = run(variables | after)
    assert not np.allclose(nearer, logits, rtol=1e-3)


def test_the_scale_of_no_kernel_matters(spectral):
    variables, run = spectral
    logits, _ = run(variables)

    def scaled(path, leaf):
        return 8 * leaf if path[-1].key == "kernel" else leaf

    params = jax.tree_util.tree_map_with_path(scaled, variables["params"])
    np.testing.assert_allclose(run(variables | {"params": params})[0], logits, rtol=1e-4, atol=1e-5)


def test_a_penalty_on_the_gradient_can_be_learnt_from(randomise, images):
    model = ResidualDiscriminator(width=4, halvings=1, blocks=2)
    variables = randomise(model, images)

    @jax.jit
    @jax.grad
    def gradient(params, images):
        def total(x):
            return jnp.sum(model.apply({**variables, "params": params}, x))  # pyright: ignore

        return jnp.sum(jnp.square(jax.grad(total)(images)))

    found = jax.tree.map(np.asarray, gradient(variables["params"], images))
    kernels = [leaf for leaf in jax.tree.leaves(found) if leaf.ndim > 1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert all(np.any(leaf != 0) for leaf in kernels)


def test_bfloat16_is_for_the_inside_only(randomise, images):
    generator = DCGANGenerator(image=(8, 12, 2), latent=5, width=2, halvings=2)
    models = [(generator, np.ones((4, 5), np.float32))] + [(judge, images) for judge in judges()]
    for model, x in models:
        variables = randomise(model, x)
        half, full = (
            jax.jit(each.apply)(variables, x) for each in (model.clone(dtype=jnp.bfloat16), model)
        )
        assert half.dtype == jnp.float32
        assert not np.array_equal(half, full)
        np.testing.assert_allclose(half, full, atol=0.1 * np.abs(full).max())
