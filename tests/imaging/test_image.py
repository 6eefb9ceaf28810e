"""Image mathematics against Pillow and scipy, and closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from opsin.imaging import color, filters, tone, warp

HEIGHT, WIDTH = 48, 40


def picture(channels: int) -> np.ndarray:
    """uint8 [48, 40, channels]: noise on a ramp, within [20, 235] so that contrast can grow."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramp = 40 + 2 * y[..., None] + 2 * x[..., None] * np.arange(1, channels + 1) / channels
    noise = np.random.default_rng(0).normal(0, 12, (HEIGHT, WIDTH, channels))
    return np.clip(ramp + noise, 20, 235).astype(np.uint8)


def to_pillow(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


FACTORS = (0.1, 1.0, 1.9)
# name: ours, Pillow's, tolerance in levels of 255. Pillow truncates a blend (1 level) of a
# degenerate image that it has rounded (half a level, times |1 - factor|).
PAIRS = {
    "autocontrast": (tone.autocontrast, ImageOps.autocontrast, 1.01),
    "equalize": (tone.equalize, ImageOps.equalize, 0.01),
    **{
        f"posterize {bits}": (
            lambda image, bits=bits: tone.posterize(image, bits),
            lambda image, bits=bits: ImageOps.posterize(image, bits),
            0.01,
        )
        for bits in (1, 4, 8)
    },
    **{
        f"solarize {level}": (
            lambda image, level=level: tone.solarize(image, level / 255),
            lambda image, level=level: ImageOps.solarize(image, level),
            0.01,
        )
        for level in (0, 100, 256)
    },
    **{
        f"{ours.__name__} {factor}": (
            lambda image, ours=ours, factor=factor: ours(image, factor),
            lambda image, theirs=theirs, factor=factor: theirs(image).enhance(factor),
            1.5,
        )
        for ours, theirs in (
            (color.adjust_brightness, ImageEnhance.Brightness),
            (color.adjust_contrast, ImageEnhance.Contrast),
            (color.adjust_saturation, ImageEnhance.Color),
            (filters.adjust_sharpness, ImageEnhance.Sharpness),
        )
        for factor in FACTORS
    },
}


@pytest.fixture(scope="module")
def computed() -> dict[int, dict[str, np.ndarray]]:
    """Every operation on a grey and on an RGB picture, in two programs."""
    run = jax.jit(lambda image: {name: ours(image) for name, (ours, _, _) in PAIRS.items()})
    return {c: jax.device_get(run(picture(c) / np.float32(255))) for c in (1, 3)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_colour_and_tone_follow_pillow(computed, name, channels):
    _, theirs, tolerance = PAIRS[name]
    expected = np.asarray(theirs(to_pillow(picture(channels))), np.float32).reshape(
        HEIGHT, WIDTH, -1
    )
    np.testing.assert_allclose(computed[channels][name] * 255, expected, atol=tolerance)


def test_neutral_factors_change_nothing(computed):
    for channels in (1, 3):
        for name in PAIRS:
            if name.endswith(" 1.0") or name in ("posterize 8", "solarize 256"):
                np.testing.assert_allclose(
                    computed[channels][name], picture(channels) / np.float32(255), atol=1e-7
                )


def test_a_flat_channel_keeps_its_value_and_gives_no_nan():
    flat = np.full((20, 20, 3), 0.3, np.float32)
    for operation in (tone.autocontrast, tone.equalize):
        np.testing.assert_array_equal(jax.jit(operation)(flat), flat)


def test_hue_turned_by_a_third_permutes_the_channels():
    image = np.random.default_rng(0).random((5, 4, 3), np.float32)
    turned = jax.jit(color.adjust_hue)(image, 1 / 3)
    np.testing.assert_allclose(turned, np.roll(image, 1, -1), atol=1e-5)


def test_one_channel_has_no_colour_and_four_have_no_luma():
    gray = np.random.default_rng(0).random((4, 4, 1), np.float32)
    np.testing.assert_array_equal(jax.jit(color.adjust_hue)(gray, 0.2), gray)
    np.testing.assert_array_equal(jax.jit(color.adjust_saturation)(gray, 0.2), gray)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        color.grayscale(np.zeros((4, 4, 4), np.float32))


MATRICES = {
    "identity": [[1, 0, 0], [0, 1, 0]],
    "shift": [[1, 0, 3], [0, 1, -2]],
    "rotation": [[0.9, -0.4, 4], [0.4, 0.9, -3]],
    "shear and zoom": [[1.2, 0.3, 0.7], [0, 0.8, 0.3]],
}


@pytest.fixture(scope="module")
def warped() -> np.ndarray:
    """[matrix, order, height, width, channel]"""

    def both_orders(matrix):
        image = picture(3) / np.float32(255)
        return jnp.stack([warp.affine_warp(image, matrix, order=o, fill=0.5) for o in (0, 1)])

    return np.asarray(
        jax.jit(jax.vmap(both_orders))(jnp.array(list(MATRICES.values()), jnp.float32))
    )


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("index", range(len(MATRICES)), ids=MATRICES)
def test_affine_warp_follows_scipy(warped, index, order):
    matrix = np.array(list(MATRICES.values())[index], float)
    grid = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    source = np.tensordot(matrix[:, :2], grid, 1) + matrix[:, 2, None, None] - 0.5
    for channel in range(3):
        expected = ndimage.map_coordinates(
            picture(3)[..., channel] / 255, source, order=order, mode="grid-constant", cval=0.5
        )
        np.testing.assert_allclose(warped[index, order, ..., channel], expected, atol=1e-5)


def test_affine_warp_moves_by_whole_pixels_exactly(warped):
    pixels = picture(3) / np.float32(255)
    shifted = np.full_like(pixels, 0.5)
    shifted[:-3, 2:] = pixels[3:, :-2]
    for order in (0, 1):
        np.testing.assert_array_equal(warped[0, order], pixels)
        np.testing.assert_array_equal(warped[1, order], shifted)


BOXES = [(0, 0, HEIGHT, WIDTH), (2.5, 3.25, 12.5, 9), (0, 4, 24, 6), (10, 0, 3, 20)]


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (7, 90)])
def test_resized_crop_follows_pillow(size):
    resize = jax.jit(
        jax.vmap(lambda image, box: warp.resized_crop(image, box, size=size), (None, 0))
    )
    pixels = picture(1) / np.float32(255)
    crops = resize(pixels, jnp.array(BOXES, jnp.float32))
    for crop, (top, left, height, width) in zip(crops, BOXES, strict=True):
        expected = Image.fromarray(pixels[..., 0]).resize(
            size[::-1], Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
        )
        np.testing.assert_allclose(crop[..., 0], np.asarray(expected), atol=1e-5)


compiled_rectangle = jax.jit(partial(warp.rectangle, 8, 9, size=(5, 6)))


@pytest.mark.parametrize("corner", [(2, 1), (-2, 3), (5, -4), (4, 6), (0, 20)])
def test_rectangle_is_clipped_at_the_border(corner):
    expected = np.zeros((8, 9), bool)
    top, left = corner
    expected[max(top, 0) : max(top + 5, 0), max(left, 0) : max(left + 6, 0)] = True
    mask = compiled_rectangle(corner=np.array(corner))
    np.testing.assert_array_equal(mask, expected)
