"""Autoencoders: counts, sizes, what each output depends on, and bad input."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from opsin.models.generative.autoencoder import (
    Autoencoder,
    ConvAutoencoder,
    ConvDecoder,
    ConvEncoder,
    DenseEncoder,
)
from opsin.models.generative.inputs import join

IMAGE = (8, 12, 3)


def parameters(model) -> int:
    images = jax.ShapeDtypeStruct((1, *model.image), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def dense(*widths: int) -> int:
    return sum(a * b + b for a, b in pairwise(widths))


def test_parameters():
    down = (784, 1000, 500, 250, 30)
    assert parameters(Autoencoder()) == dense(*down) + dense(*down[::-1]) == 2_837_314
    convolutions = 16 * (1 * 32 + 32 * 64) + 32 + 64, 16 * (64 * 32 + 32 * 1) + 32 + 1
    between = dense(7 * 7 * 64, 30), dense(30, 7 * 7 * 64)
    assert parameters(ConvAutoencoder()) == sum(convolutions + between) == 258_015
    # One linear layer makes all pixels.
    assert parameters(Autoencoder(outputs=5)) - parameters(Autoencoder()) == 4 * 784 * 1001


def test_the_dense_one_equals_numpy(randomise):
    images = np.random.default_rng(1).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    model = Autoencoder(outputs=2)
    variables = randomise(model, images)
    p = variables["params"]

    def layers(x, part):
        for name in ("dense1", "dense2", "dense3"):
            x = np.maximum(
                x @ p[part]["layers"][name]["kernel"] + p[part]["layers"][name]["bias"], 0
            )
        return x

    code = layers(images.reshape(3, -1), "features") @ p["code"]["kernel"] + p["code"]["bias"]
    head = p["pixels"]["head"]
    pixels = (layers(code, "pixels") @ head["kernel"] + head["bias"]).reshape(3, 28, 28, 2)
    encode = jax.jit(partial(model.apply, method="encode"))
    np.testing.assert_allclose(encode(variables, images), code, rtol=1e-4, atol=1e-4)
    outputs = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(outputs, pixels, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def conv(randomise):
    """A small convolutional autoencoder, its variables, and images."""
    model = ConvAutoencoder(image=IMAGE, outputs=4, latent=5)
    images = np.random.default_rng(1).uniform(size=(4, *IMAGE)).astype(np.float32)
    return model, randomise(model, images), images


def test_the_convolutional_one_keeps_the_size_of_its_images(conv):
    model, variables, images = conv

    @jax.jit
    def whole_and_parts(variables, images):
        code = model.apply(variables, images, method="encode")
        outputs = model.apply(variables, images)
        return code, outputs, model.apply(variables, code, method="decode")

    code, outputs, decoded = map(np.asarray, whole_and_parts(variables, images))
    assert (code.shape, outputs.shape) == ((4, 5), (4, 8, 12, 4))
    np.testing.assert_array_equal(outputs, decoded)
    # Each image by itself, in training as in evaluation.
    train = jax.jit(partial(model.apply, train=True))
    for i in range(4):
        alone = np.asarray(train(variables, images[i : i + 1]))
        np.testing.assert_allclose(alone[0], outputs[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "levels"), [(4, 1), (8, 3), (16, 2)])
def test_sizes_halve_as_often_as_there_are_convolutions(side, levels):
    image, channels = (side, 2 * side, 1), (2, 3, 4)[:levels]
    model = ConvDecoder(image, 2, channels)
    shape = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((3, 5)))[0].shape
    assert shape == (3, *image[:2], 2)
    encoder = ConvEncoder(channels)
    out = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((3, *image)))[0]
    assert out.shape == (3, side * 2 * side // 4**levels * channels[-1])


def test_vectors_may_have_more_axes_and_each_makes_its_own_image(randomise):
    decoder = ConvDecoder((4, 8, 1), 1, (3,))
    z = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype(np.float32)
    variables = randomise(decoder, z)
    apply = jax.jit(decoder.apply)
    outputs = apply(variables, z)
    assert outputs.shape == (2, 3, 4, 4, 8, 1)  # pyright: ignore
    flat = np.asarray(apply(variables, z.reshape(-1, 5)))
    np.testing.assert_allclose(outputs, flat.reshape(2, 3, 4, 4, 8, 1), rtol=1e-4, atol=1e-5)


def test_devices_decode_their_own_share_of_the_batch(randomise):
    decoder = ConvDecoder((4, 8, 1), 1, (3,))
    z = np.ones((3, 16, 5), np.float32)
    variables = randomise(decoder, z)
    mesh = Mesh(np.array(jax.devices()), "data")
    shares = NamedSharding(mesh, PartitionSpec(None, "data"))
    compiled = jax.jit(decoder.apply).lower(variables, jax.device_put(z, shares)).compile()
    assert compiled.output_shardings.spec[:2] == (None, "data")
    text = compiled.as_text()
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


def test_a_condition_is_read_by_every_pixel():
    condition = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    joined = join(jnp.zeros((3, 2, 4)), condition)
    np.testing.assert_array_equal(joined[..., :4], np.zeros((3, 2, 4)))
    np.testing.assert_array_equal(joined[..., 4:], np.broadcast_to(condition, (3, 2, 2)))
    assert join(condition, None) is condition

    def kernel(encoder, name):
        args = jnp.zeros((2, *IMAGE)), condition
        return jax.eval_shape(encoder.init, jax.random.key(0), *args)["params"][name]

    assert kernel(ConvEncoder(), "conv1")["kernel"].shape == (4, 4, 3 + 2, 32)
    assert kernel(DenseEncoder((7,)), "layers")["dense1"]["kernel"].shape == (8 * 12 * 3 + 2, 7)


def test_bfloat16_is_for_the_inside_only(conv):
    model, variables, images = conv
    half = model.clone(dtype=jnp.bfloat16)
    code, full = (
        np.asarray(jax.jit(partial(m.apply, method="encode"))(variables, images))
        for m in (half, model)
    )
    outputs = jax.eval_shape(partial(half.apply, method="decode"), variables, code)
    assert code.dtype == outputs.dtype == jnp.float32
    assert not np.array_equal(code, full)
    np.testing.assert_allclose(code, full, atol=0.1 * np.abs(full).max())


def test_shapes_that_do_not_fit_are_named(conv):
    model, variables, images = conv
    with pytest.raises(ValueError, match=r"takes images \[batch, 8, 12, 3\]; got \[4, 12, 8, 3\]"):
        model.apply(variables, images.swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"latents \[..., batch, 5\]; got \[2, 6\]"):
        model.apply(variables, np.zeros((2, 6), np.float32), method="decode")
    with pytest.raises(ValueError, match=r"2 times takes sides that 4 divides; got \(30, 28\)"):
        jax.eval_shape(
            ConvAutoencoder(image=(30, 28, 1)).init, jax.random.key(0), jnp.zeros((1, 30, 28, 1))
        )
    with pytest.raises(ValueError, match="4 divides"):
        jax.eval_shape(ConvDecoder((6, 8, 1), 1).init, jax.random.key(0), jnp.zeros((1, 2)))
