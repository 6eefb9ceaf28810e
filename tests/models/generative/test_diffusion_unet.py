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
# The middle, with its attention, and one block.
tiniest = partial(tiny, multiples=(1,), blocks=0, attention=())
IMAGE = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 8, 8, 1)
NOISE = np.array([3.0, 700.0], np.float32)
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
        pytest.param(HO_256(), 256, 3, 113_673_219, marks=pytest.mark.proofs),
        pytest.param(DDPM_SMALL(), 32, 1, 1_623_169, marks=pytest.mark.proofs),
        pytest.param(
            DDPM_SMALL(num_classes=10), 32, 1, 1_623_169 + 11 * 128, marks=pytest.mark.proofs
        ),
    ],
    ids=["cifar", "256", "small", "small with classes"],
)
def test_parameter_counts_are_those_of_the_papers(model, size, channels, parameters):
    found = jax.tree.leaves(shapes_of(model, size, channels)["params"])
    assert sum(leaf.size for leaf in found) == parameters


def test_resizing_has_no_parameters():
    plain, resized = (
        shapes_of(tiny(resample=r, attention=()), 8, 1)["params"] for r in ("conv", "resize")
    )
    assert plain.keys() - resized.keys() == {"halve1", "double2"}
    assert resized.keys() <= plain.keys()


def test_it_starts_at_zero(key, randomise):
    """Whatever the layers before the head say."""
    head = jax.jit(lambda key: tiniest().init(key, IMAGE, NOISE)["params"]["head"])(key)
    variables = randomise(tiniest(), IMAGE, NOISE)
    variables["params"]["head"] = head
    made = jax.jit(tiniest().apply)(variables, IMAGE, NOISE)
    np.testing.assert_array_equal(made, np.zeros_like(IMAGE))


def test_each_input_is_seen(randomise):
    """The image, its noise, its label and its context change what is predicted of it alone."""
    model = tiny(num_classes=3, attention=())  # in the middle there is one
    labels, context = np.array([0, 2], np.int32), np.ones((2, 5, 6), np.float32)

    with_context = SimpleNamespace(
        init=lambda key, *inputs, context=context: model.init(key, *inputs, context=context)
    )
    variables = randomise(with_context, IMAGE, NOISE, labels)

    @jax.jit
    def apply(x, noise, labels, context):
        return model.apply(variables, x, noise, labels, context=context)

    inputs = (IMAGE, NOISE, labels, context)
    plain = np.asarray(apply(*inputs))
    assert plain.dtype == np.float32
    for place, (where, change) in enumerate([(0, 0.1), (0, 1.0), (0, 1), ((0, 3), 0.5)]):
        changed = [array.copy() for array in inputs]
        changed[place][where] += change
        other = np.asarray(apply(*changed))
        assert np.abs(other[0] - plain[0]).max() > 1e-3
        np.testing.assert_allclose(other[1], plain[1], atol=1e-5)


def test_no_label_is_the_last_one(randomise):
    model = tiniest(num_classes=3)
    variables = randomise(model, IMAGE, NOISE)
    nothing = np.array([3, 3], np.int32)
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(
        apply(variables, IMAGE, NOISE), apply(variables, IMAGE, NOISE, nothing)
    )


def test_sinusoids_are_those_of_ho():
    found = sinusoids(jnp.array([0, 7]), 6)
    frequencies = np.array([1.0, 1e-2, 1e-4])
    np.testing.assert_allclose(found[0], [0, 0, 0, 1, 1, 1], atol=1e-7)
    wanted = np.concatenate([np.sin(7 * frequencies), np.cos(7 * frequencies)])
    np.testing.assert_allclose(found[1], wanted, rtol=1e-5)


def test_a_score_is_what_the_network_says_over_sigma(randomise):
    """Twice the noise with twice the image is half the score, but for what σ tells the network."""
    score = ScoreUNet(network=tiniest())
    variables = randomise(score, IMAGE, NOISE)

    @jax.jit
    def both(variables, x, noise):
        inner, sigma = {"params": variables["params"]["network"]}, noise[:, None, None, None]
        said = tiniest().apply(inner, x / jnp.sqrt(1 + sigma**2), 250 * jnp.log(noise))
        return score.apply(variables, x, noise), said / sigma

    found, wanted = both(variables, IMAGE, NOISE)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "image", "labels", "message"),
    [
        (tiny(), IMAGE, np.array([0, 1]), "knows no classes"),
        (tiny(), IMAGE[:, :7], None, "whose sides 2 divides"),
        (tiny(resample="bicubic"), IMAGE, None, "resample must be"),
        (tiny(attention=(5,)), IMAGE, None, "no features have the height 5, they have"),
        (tiny(heads=3), IMAGE, None, "3 heads do not divide"),
        (tiniest(width=2, norm=partial(group_norm, groups=1)), IMAGE, None, "at least 4"),
    ],
)
def test_bad_input_is_one_line(model, image, labels, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), image, NOISE, labels)
