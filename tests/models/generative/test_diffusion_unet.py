"""The U-Net of diffusion: the papers' counts, and what each input changes."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.generative.diffusion_unet import DiffusionUNet, ScoreUNet, sinusoids
from opsin.models.layers import group_norm

tiny = partial(
    DiffusionUNet,
    outputs=1,
    width=8,
    multiples=(1, 2),
    blocks=1,
    attention=(4,),
    norm=partial(group_norm, groups=4),
)
IMAGE = jnp.linspace(-1, 1, 128).reshape(2, 8, 8, 1)
NOISE = jnp.array([3.0, 700.0])
DDPM_SMALL = partial(DiffusionUNet, outputs=1, width=32, multiples=(1, 2, 2))
HO_256 = partial(DiffusionUNet, multiples=(1, 1, 2, 2, 4, 4))


def shapes_of(model, size: int, channels: int):
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    noise = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image, noise)


@pytest.mark.parametrize(
    ("model", "size", "channels", "parameters"),
    [
        (DiffusionUNet(), 32, 3, 35_746_307),
        (HO_256(), 256, 3, 113_673_219),
        (DDPM_SMALL(), 32, 1, 1_623_169),
        (DDPM_SMALL(num_classes=10), 32, 1, 1_623_169 + 11 * 128),
    ],
    ids=["cifar", "256", "small", "small with classes"],
)
def test_parameter_counts_are_those_of_the_papers(model, size, channels, parameters):
    found = jax.tree.leaves(shapes_of(model, size, channels)["params"])
    assert sum(leaf.size for leaf in found) == parameters


def test_resizing_has_no_parameters():
    plain, resized = (shapes_of(tiny(resample=r), 8, 1)["params"] for r in ("conv", "resize"))
    assert plain.keys() - resized.keys() == {"halve1", "double2"}
    assert resized.keys() <= plain.keys()


def test_it_starts_at_zero(key):
    made, _ = jax.jit(tiny().init_with_output)(key, IMAGE, NOISE)
    np.testing.assert_array_equal(made, jnp.zeros_like(IMAGE))


def test_each_input_is_seen(randomise):
    """The image, its noise, its label and its context change what is predicted of it alone."""
    model = tiny(num_classes=3)
    labels, context = jnp.array([0, 2]), jnp.ones((2, 5, 6))

    with_context = SimpleNamespace(
        init=lambda key, *inputs, context=context: model.init(key, *inputs, context=context)
    )
    variables = randomise(with_context, IMAGE, NOISE, labels)

    @jax.jit
    def apply(x, noise, labels, context):
        return model.apply(variables, x, noise, labels, context=context)

    plain = apply(IMAGE, NOISE, labels, context)
    assert plain.dtype == jnp.float32
    for changed in (
        (IMAGE.at[0].add(0.1), NOISE, labels, context),
        (IMAGE, NOISE.at[0].add(1.0), labels, context),
        (IMAGE, NOISE, labels.at[0].set(1), context),
        (IMAGE, NOISE, labels, context.at[0, 3].add(0.5)),
    ):
        other = apply(*changed)
        assert float(jnp.abs(other[0] - plain[0]).max()) > 1e-3
        np.testing.assert_allclose(other[1], plain[1], atol=1e-5)


def test_no_label_is_the_last_one(randomise):
    model = tiny(num_classes=3)
    variables = randomise(model, IMAGE, NOISE, jnp.array([0, 1]))
    nothing = jnp.array([3, 3])
    np.testing.assert_allclose(
        model.apply(variables, IMAGE, NOISE), model.apply(variables, IMAGE, NOISE, nothing)
    )


def test_sinusoids_are_those_of_ho():
    found = sinusoids(jnp.array([0, 7]), 6)
    frequencies = np.array([1.0, 1e-2, 1e-4])
    np.testing.assert_allclose(found[0], [0, 0, 0, 1, 1, 1], atol=1e-7)
    wanted = np.concatenate([np.sin(7 * frequencies), np.cos(7 * frequencies)])
    np.testing.assert_allclose(found[1], wanted, rtol=1e-5)


def test_a_score_is_what_the_network_says_over_sigma(randomise):
    """Twice the noise with twice the image is half the score, but for what σ tells the network."""
    score = ScoreUNet(network=tiny())
    variables = randomise(score, IMAGE, NOISE)
    found = score.apply(variables, IMAGE, NOISE)
    inner = {"params": variables["params"]["network"]}
    scaled = IMAGE / jnp.sqrt(1 + NOISE**2)[:, None, None, None]
    wanted = tiny().apply(inner, scaled, 250 * jnp.log(NOISE)) / NOISE[:, None, None, None]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "image", "labels", "message"),
    [
        (tiny(), IMAGE, jnp.array([0, 1]), "knows no classes"),
        (tiny(), IMAGE[:, :7], None, "whose sides 2 divides"),
        (tiny(resample="bicubic"), IMAGE, None, "resample must be"),
        (tiny(attention=(5,)), IMAGE, None, "no features have the height 5, they have"),
        (tiny(heads=3), IMAGE, None, "3 heads do not divide"),
        (tiny(width=2, norm=partial(group_norm, groups=1)), IMAGE, None, "at least 4"),
    ],
)
def test_bad_input_is_one_line(model, image, labels, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), image, NOISE, labels)
