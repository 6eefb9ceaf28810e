import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from scipy.ndimage import distance_transform_edt

from opsin.imaging.distance import distance_transform

transform = jax.jit(distance_transform)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.bool_, (4, 7)))
def test_distances_are_those_of_scipy(mask):
    expected = distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    np.testing.assert_allclose(transform(mask), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(41, 29), (1, 17), (17, 1), (1, 1)])
@pytest.mark.parametrize("share", [0.002, 0.1, 0.9])
def test_distances_in_larger_and_narrow_images(shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    mask[-1, 0] = True
    actual = transform(mask)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, distance_transform_edt(~mask), rtol=1e-6)


def test_by_hand_from_the_corners():
    mask = np.zeros((4, 5), bool)
    mask[0, 0] = True
    y, x = np.mgrid[:4, :5]
    np.testing.assert_allclose(transform(mask), np.hypot(y, x), rtol=1e-6)
    mask[0, 0], mask[3, 4] = False, True
    np.testing.assert_allclose(transform(mask), np.hypot(3 - y, 4 - x), rtol=1e-6)


def test_batches_and_masks_without_a_true_pixel():
    masks = np.random.default_rng(1).random((3, 6, 5)) < 0.2
    masks[1] = False
    actual = jax.jit(jax.vmap(distance_transform))(masks)
    np.testing.assert_array_equal(actual[1], np.inf)
    for i in (0, 2):
        np.testing.assert_allclose(actual[i], distance_transform_edt(~masks[i]), rtol=1e-6)


def test_memory_does_not_grow_with_the_cube_of_the_side():
    side = 256
    mask = jax.ShapeDtypeStruct((side, side), bool)
    analysis = jax.jit(distance_transform).lower(mask).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 20 * side**2 * 4
