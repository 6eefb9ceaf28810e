"""Tiles: the same as the whole image where borders do not matter, and every pixel exactly once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from opsin.imaging.tiles import over_tiles


def blur(x: np.ndarray, size: int, mode: str = "mirror") -> np.ndarray:
    """A mean over `size` × `size` pixels of each image [batch, height, width, channels]."""
    return ndimage.uniform_filter(x.astype(np.float64), (0, size, size, 0), mode=mode)


@given(
    size=st.tuples(st.integers(17, 40), st.integers(17, 40)),
    tile=st.tuples(st.integers(9, 16), st.integers(9, 16)),
    batch=st.integers(1, 3),
)
def test_overlapping_tiles_equal_the_whole_image(size, tile, batch):
    image = np.random.default_rng(0).normal(size=(*size, 2))
    seen = []

    def function(tiles: np.ndarray) -> np.ndarray:
        seen.append(tiles.shape)
        return blur(tiles, 5)  # borders spoil two pixels

    tiled = over_tiles(function, image, tile=tile, overlap=2, batch=batch)
    np.testing.assert_allclose(tiled, blur(image[None], 5)[0], atol=1e-12)
    assert set(seen) == {(batch, *tile, 2)}


def test_an_image_of_the_size_of_a_tile_is_one_tile():
    image = np.random.default_rng(0).normal(size=(12, 9, 1))
    tiled = over_tiles(lambda x: blur(x, 5, "constant"), image, tile=(12, 9), overlap=2)
    np.testing.assert_allclose(tiled, blur(image[None], 5, "constant")[0], atol=1e-12)


@given(size=st.tuples(st.integers(4, 40), st.integers(4, 40)), batch=st.integers(1, 4))
def test_a_function_without_padding_needs_no_overlap(size, batch):
    image = np.random.default_rng(0).normal(size=(*size, 1))

    def valid(tiles: np.ndarray) -> np.ndarray:
        return blur(tiles, 7, "constant")[:, 3:-3, 3:-3]

    tiled = over_tiles(valid, image, tile=(14, 16), result=(8, 10), batch=batch)
    np.testing.assert_allclose(tiled, blur(image[None], 7)[0], atol=1e-12)


@given(
    size=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    overlap=st.integers(0, 3),
)
def test_every_pixel_comes_back_in_its_place(size, overlap):
    image = np.arange(size[0] * size[1]).reshape(*size, 1)
    back = over_tiles(lambda x: x, image, tile=(8, 9), overlap=overlap)
    np.testing.assert_array_equal(back, image)


def test_what_cannot_be_tiled_is_refused():
    with pytest.raises(ValueError, match="no pixels"):
        over_tiles(lambda x: x, np.zeros((0, 4, 1)), tile=(8, 8))
    with pytest.raises(ValueError, match="overlap of 4"):
        over_tiles(lambda x: x, np.zeros((9, 9, 1)), tile=(8, 8), overlap=4)
