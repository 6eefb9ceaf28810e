"""Image mathematics without randomness: colour, tone, warps and crops of one image.

Every function takes one image [height, width, channels], float in [0, 1]; `jax.vmap` makes it a
batch. Colour and tone follow Pillow's `ImageEnhance` and `ImageOps`, on which torchvision's
augmentations and the published numbers rest.
"""

import dm_pix
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int


def grayscale(image: Float[Array, "height width channels"]) -> Float[Array, "height width 1"]:
    """Luma of an RGB image (ITU-R BT.601, as Pillow's mode "L"); a grey image is returned as is.

    Raises:
      ValueError: the image has neither 1 nor 3 channels.
    """
    channels = image.shape[-1]
    if channels == 1:
        return image
    if channels != 3:
        raise ValueError(f"an image with 1 or 3 channels is needed, got {channels}")
    # Not a matrix product, which a TPU would compute in bfloat16.
    red, green, blue = jnp.split(image, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _blend(image: Array, degenerate: ArrayLike, factor: ArrayLike) -> Array:
    """`degenerate` at factor 0, exactly `image` at 1, its exaggeration above; clipped to [0, 1]."""
    return jnp.clip(factor * image + (1 - factor) * degenerate, 0, 1)


def adjust_brightness(
    image: Float[Array, "height width channels"], factor: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Blends with black: 0 gives black, 1 the image. Clipped to [0, 1]."""
    return _blend(image, 0.0, factor)


def adjust_contrast(
    image: Float[Array, "height width channels"], factor: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Blends with the mean luma: 0 gives plain grey, 1 the image. Clipped to [0, 1]."""
    return _blend(image, jnp.mean(grayscale(image)), factor)


def adjust_saturation(
    image: Float[Array, "height width channels"], factor: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Blends with the luma: 0 gives a grey image, 1 the image. Identity on one channel."""
    if image.shape[-1] == 1:
        return image
    return _blend(image, grayscale(image), factor)


def adjust_hue(
    image: Float[Array, "height width channels"], turn: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Turns the hue by `turn` of a full circle, in HSV. Identity on one channel."""
    if image.shape[-1] == 1:
        return image
    return jnp.asarray(dm_pix.adjust_hue(image, jnp.asarray(turn)))


def adjust_sharpness(
    image: Float[Array, "height width channels"], factor: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Blends with a smoothed image (3×3, centre 5, rest 1, over 13). The border pixels stay."""
    inner = image[1:-1, 1:-1]
    window_sum = jax.lax.reduce_window(
        image, jnp.zeros((), image.dtype), jax.lax.add, (3, 3, 1), (1, 1, 1), "VALID"
    )
    return _blend(image, image.at[1:-1, 1:-1].set((window_sum + 4 * inner) / 13), factor)


def autocontrast(
    image: Float[Array, "height width channels"],
) -> Float[Array, "height width channels"]:
    """Stretches each channel to [0, 1]; a channel of one value stays."""
    low = jnp.min(image, axis=(0, 1))
    span = jnp.max(image, axis=(0, 1)) - low
    return jnp.where(span > 0, (image - low) / jnp.where(span > 0, span, 1), image)


def equalize(image: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
    """Flattens the histogram of each channel, in 256 levels, as `PIL.ImageOps.equalize`.

    A channel with fewer than 255 pixels below its brightest level stays, as in Pillow.
    """

    def equalize_channel(channel: Array) -> Array:
        levels = _to_levels(channel)  # [H, W]
        darker = jnp.searchsorted(jnp.sort(levels.ravel()), jnp.arange(256))  # pixels below each
        step = darker[jnp.max(levels)] // 255
        table = jnp.minimum((step // 2 + darker) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[levels] / 255, channel)

    return jax.vmap(equalize_channel, in_axes=-1, out_axes=-1)(image)


def posterize(
    image: Float[Array, "height width channels"], bits: ArrayLike
) -> Float[Array, "height width channels"]:
    """Keeps the `bits` highest bits, a whole number from 0 to 8, of each of the 256 levels."""
    step = jnp.exp2(8 - jnp.asarray(bits, image.dtype)).astype(jnp.int32)
    return _to_levels(image) // step * step / 255


def _to_levels(image: Array) -> Int[Array, "..."]:
    # Rounded, not truncated: k / 255 * 255 may fall just below k.
    return jnp.round(image * 255).astype(jnp.int32)


def solarize(
    image: Float[Array, "height width channels"], threshold: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Inverts the values that are not below `threshold`."""
    return jnp.where(image < threshold, image, 1 - image)


def affine_warp(
    image: Float[Array, "height width channels"],
    matrix: Float[Array, "2 3"],
    *,
    order: int,
    fill: float = 0.0,
) -> Float[Array, "height width channels"]:
    """Samples the image at `matrix @ (y, x, 1)` for each output pixel (y, x).

    Coordinates are in pixels with the origin at the corner, so that the first pixel's centre is
    (0.5, 0.5), as in Pillow.

    Args:
      image: the image to sample; any float range.
      matrix: the pull (inverse) map, from output to input coordinates.
      order: 0 for the nearest pixel (masks), 1 for bilinear.
      fill: the value outside the image.
    """
    height, width, _ = image.shape
    y, x = jnp.mgrid[:height, :width] + 0.5
    # Not a matrix product, which a TPU would compute in bfloat16.
    source = [row[0] * y + row[1] * x + row[2] - 0.5 for row in matrix]

    def sample(channel: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(channel, source, order, "constant", fill)

    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def resized_crop(
    image: Float[Array, "height width channels"],
    box: Float[Array, "4"],
    *,
    size: tuple[int, int],
) -> Float[Array, "new_height new_width channels"]:
    """Crops `box` and resizes it to `size`, bilinear, with antialiasing when it shrinks.

    Unlike a crop followed by a resize, the filter at the edge of the box sees the image around it.

    Args:
      image: the image; any float range.
      box: top, left, height, width, in pixels; fractions are allowed.
      size: height and width of the result.
    """
    scale = jnp.array(size) / box[2:]
    return jax.image.scale_and_translate(
        image, (*size, image.shape[-1]), (0, 1), scale, -box[:2] * scale, method="linear"
    )


def rectangle(
    height: int,
    width: int,
    *,
    corner: Int[Array, "2"],
    size: Int[ArrayLike, "2"],
) -> Bool[Array, "height width"]:
    """A mask, True inside the rectangle from `corner` (y, x) with `size` (height, width).

    The corner may lie outside the mask; the rectangle is clipped at the border.
    """
    offset = jnp.moveaxis(jnp.mgrid[:height, :width], 0, -1) - corner  # [H, W, 2]
    return jnp.all((offset >= 0) & (offset < jnp.asarray(size)), axis=-1)
