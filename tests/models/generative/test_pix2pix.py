"""Translation of images: the count and the patch of the paper, what is judged, and noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.generative.pix2pix import PatchGAN, TranslationUNet
from tests.drawn import normal

Small = partial(PatchGAN, width=1, norm=None)


def shapes(model, x, condition=None):
    return jax.eval_shape(
        lambda x, condition: model.init_with_output(jax.random.key(0), x, condition=condition),
        jax.ShapeDtypeStruct(x, jnp.float32),
        condition and jax.ShapeDtypeStruct(condition, jnp.float32),
    )


def parameters(model, channels: int) -> int:
    params = shapes(model, (1, 96, 96, channels))[1]["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameters():
    middle = 64 * 128 + 128 * 256 + 256 * 512
    # The first and the last convolution have biases, the others a norm.
    expected = 16 * (6 * 64 + middle + 512) + 64 + 1 + 2 * (128 + 256 + 512)
    assert parameters(PatchGAN(), 6) == expected == 2_768_705
    # Joined, condition and image are one image.
    _, joined = shapes(PatchGAN(), (1, 96, 96, 1), (1, 96, 96, 5))
    _, plain = shapes(PatchGAN(), (1, 96, 96, 6))
    assert joined == plain
    biases = 128 + 256 + 512
    assert parameters(PatchGAN(norm=None), 6) - parameters(PatchGAN(), 6) == biases - 2 * biases
    # Channels double up to eight times the first ones'.
    more = parameters(PatchGAN(strided=4), 6) - parameters(PatchGAN(), 6)
    assert more == 16 * 512 * 512 + 2 * 512


@pytest.mark.parametrize(
    ("strided", "patch"),
    [
        pytest.param(1, 16, marks=pytest.mark.proofs),
        pytest.param(2, 34, marks=pytest.mark.proofs),
        (3, 70),
    ],
)
def test_a_logit_sees_its_patch_and_nothing_else(strided, patch, randomise):
    model = Small(strided=strided)
    images = normal(2, 104, 96, 1)
    variables = randomise(model, images)
    logits = shapes(model, images.shape)[0]
    assert logits.shape == (2, 104 // 2**strided - 2, 96 // 2**strided - 2)
    row, column = 3, 2

    @jax.jit
    @jax.grad
    def moved(images, variables):
        return model.apply(variables, images, train=True)[0, row, column]  # pyright: ignore

    gradient = np.asarray(moved(images, variables))
    # Padding before the first pixel: 1 in each convolution, of pixels of its own input.
    before = sum(2**level for level in range(strided + 1)) + 2**strided
    top, left = (2**strided * index - before for index in (row, column))
    expected = np.zeros(images.shape, bool)
    expected[0, max(top, 0) : top + patch, max(left, 0) : left + patch] = True
    np.testing.assert_array_equal(gradient != 0, expected)
    assert strided < 3 or top > 0  # the whole patch is in the image


def test_the_condition_is_judged_with_the_image(randomise):
    model = Small(strided=1)
    x, condition = normal(2, 3, 12, 14, 2)
    both = np.concatenate([condition, x], axis=-1)
    variables = randomise(model, both)
    apply = jax.jit(lambda x, condition: model.apply(variables, x, condition=condition))
    logits = np.asarray(apply(x, condition))
    np.testing.assert_array_equal(logits, apply(both, None))
    second = np.array([0, 1, 0], np.float32)[:, None, None, None]
    for other in (apply(x + second, condition), apply(x, condition + second)):
        changed = np.any(np.abs(other - logits) > 1e-4, axis=(1, 2))
        np.testing.assert_array_equal(changed, [False, True, False])


def test_features_are_what_the_last_convolution_sees(randomise):
    model = PatchGAN(width=2, strided=1, spectral=True)
    x = normal(2, 12, 14, 2)
    variables = randomise(model, x)
    assert set(variables) == {"params", "batch_stats", "spectral"}
    # A last kernel of zeros but for one feature at one tap, of which the norm is 1.
    kernel = np.zeros((4, 4, 4, 1), np.float32)
    kernel[1, 1, 3, 0] = 5.0
    params = variables["params"] | {"head": {"kernel": kernel, "bias": np.ones(1, np.float32)}}
    logits, sown = jax.jit(partial(model.apply, mutable=["intermediates"]))(
        variables | {"params": params}, x
    )
    features = np.asarray(*sown["intermediates"]["features"])
    assert features.shape == (2, 5, 6, 4)
    np.testing.assert_allclose(logits, features[:, :-1, :-1, 3] + 1, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_named():
    assert shapes(PatchGAN(), (1, 24, 24, 1))[0].shape == (1, 1, 1)
    with pytest.raises(
        ValueError, match=r"strided=3 .* at least 24 pixels a side; got \[1, 24, 23"
    ):
        shapes(PatchGAN(), (1, 24, 23, 1))
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]"):
        shapes(PatchGAN(), (64, 64, 1))
    with pytest.raises(ValueError, match=r"got \[1, 64, 64, 1\] and \[1, 64, 60, 1\]"):
        shapes(PatchGAN(), (1, 64, 64, 1), (1, 64, 60, 1))
    with pytest.raises(ValueError, match="strided is at least 1; got 0"):
        shapes(PatchGAN(strided=0), (1, 64, 64, 1))


def test_the_generator_takes_any_size_and_its_noise_is_dropout(randomise):
    model = TranslationUNet(width=2, depth=1)
    x = normal(2, 9, 6, 1)
    variables = randomise(model, x)

    @partial(jax.jit, static_argnames="train")
    def run(key, train):
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, x, train=train, rngs=rngs, mutable=["batch_stats"])[0]

    assert run(1, True).shape == (2, 9, 6, 3)  # pyright: ignore
    np.testing.assert_array_equal(run(1, True), run(1, True))
    assert not np.array_equal(run(1, True), run(2, True))
    np.testing.assert_array_equal(run(1, False), run(2, False))
