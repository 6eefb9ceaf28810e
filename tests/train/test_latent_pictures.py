"""Pictures of latents by their values: with a linear decoder each image is known in closed form."""

from functools import partial

import jax
import numpy as np
import pytest
from scipy.stats import norm

from opsin.train.tasks.latent_pictures import (
    arithmetic,
    interpolation,
    latent_grid,
    latent_pictures,
    reconstructions,
    square,
)

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((2, 3 * 4 * 1)).astype(np.float32)
LATENTS = RNG.standard_normal((17, 2)).astype(np.float32)
IMAGES = RNG.random((17, 3, 4, 1)).astype(np.float32)  # not those of the latents
LABELS = RNG.integers(1, 9, 17).astype(np.int32)


def linear(latents, labels):
    """An image that is linear in the latent, and higher by 100 times the label."""
    shift = 0 if labels is None else 100.0 * labels[:, None]
    return (latents @ MATRIX + shift).reshape(-1, 3, 4, 1)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_interpolation_goes_straight_from_one_image_to_its_neighbour(labels):
    found = jax.jit(partial(interpolation, linear, steps=9))(LATENTS, labels).images
    assert found.shape == (5, 9, 3, 4, 1)
    for row in range(5):
        first, second = 2 * row, 2 * row + 1
        asked = None if labels is None else labels[[first, first]]
        ends = linear(LATENTS[[first, second]], asked)  # both by the label of the first
        for column in range(9):
            share = column / 8
            assert_close(found[row, column], (1 - share) * ends[0] + share * ends[1])


@pytest.mark.parametrize("labels", [None, LABELS])
def test_arithmetic_is_a_minus_b_plus_c(labels):
    panels = jax.jit(partial(arithmetic, linear))(IMAGES, LATENTS, labels)
    assert panels.columns == ("a", "b", "c", "a - b + c")
    assert panels.images.shape == (5, 4, 3, 4, 1)
    plain = linear(LATENTS, None)
    for row in range(5):
        a, b, c = range(3 * row, 3 * row + 3)
        for column, image in enumerate((a, b, c)):
            np.testing.assert_array_equal(panels.images[row, column], IMAGES[image])
        shift = 0 if labels is None else 100.0 * labels[a]
        assert_close(panels.images[row, 3], plain[a] - plain[b] + plain[c] + shift)


@pytest.mark.parametrize("label", [None, np.array(7)])
def test_the_grid_lies_at_the_quantiles_of_the_prior(label):
    """The first latent grows to the right, the second downwards; the middle is the mean."""
    found = jax.jit(partial(latent_grid, linear, side=5))(label).images
    quantiles = norm.ppf(np.array([0.1, 0.3, 0.5, 0.7, 0.9]))
    for row, column in np.ndindex(5, 5):
        latent = np.array([[quantiles[column], quantiles[row]]], np.float32)
        expected = linear(latent, None if label is None else label[None])[0]
        assert_close(found[row, column], expected)


def test_rows_of_images_are_those_that_were_given():
    others = {"corrupted": IMAGES + 2, "codes": IMAGES + 3}
    panels = jax.jit(reconstructions)(IMAGES, IMAGES + 1, **others)
    assert panels.rows == ("image", "corrupted", "code", "reconstruction")
    for found, above in zip(panels.images, (0, 2, 3, 1), strict=True):
        np.testing.assert_array_equal(found, IMAGES[:10] + above)
    assert jax.eval_shape(reconstructions, IMAGES, IMAGES).rows == ("image", "reconstruction")
    np.testing.assert_array_equal(square(IMAGES).images.reshape(16, 3, 4, 1), IMAGES[:16])


def test_there_are_as_many_pictures_as_images_are_enough_for():
    pictures = partial(latent_pictures, linear, labels=None)
    for count, names in ((1, set()), (2, {"interpolation"})):
        assert jax.eval_shape(pictures, IMAGES[:count], latents=LATENTS[:count]).keys() == names

    @jax.jit
    def of_three(images, latents):
        made = pictures(images, latents=latents)
        alone = arithmetic(linear, images, latents, None), interpolation(linear, latents[:2], None)
        return made, dict(zip(("arithmetic", "interpolation"), alone, strict=True))

    found, expected = of_three(IMAGES[:3], LATENTS[:3])
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name].images, expected[name].images)
