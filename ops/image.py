"""Image mathematics without randomness: colour, tone, blur, warps and crops of one image.

Functions take one image [height, width, channels], float in [0, 1], and `jax.vmap` makes it a
batch; `centre_crop` takes a batch. Colour and tone follow Pillow's `ImageEnhance` and `ImageOps`,
on which torchvision's augmentations and the published numbers rest.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped


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
    # Imported where it is used: it takes a tenth of a second, which a mistyped command should not.
    import dm_pix

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


def gaussian_filter(
    image: Float[Array, "height width channels"], sigma: Float[ArrayLike, ""], *, radius: int
) -> Float[Array, "height width channels"]:
    """Blurs along each axis by exp(-d² / 2 sigma²), |d| <= radius, scaled to sum to 1.

    Borders are mirrored at the centres of the border pixels, as by `jnp.pad`. Any float range.

    Args:
      image: the image.
      sigma: standard deviation in pixels, greater than 0.
      radius: pixels on either side that count, at least 0.
    """
    for axis, product in ((0, "op,pwc->owc"), (1, "op,hpc->hoc")):
        side = image.shape[axis]
        padding = [(radius, radius) if n == axis else (0, 0) for n in range(3)]
        distance = np.arange(side + 2 * radius) - radius - np.arange(side)[:, None]
        weight = jnp.exp(-jnp.square(distance / jnp.asarray(sigma, image.dtype)) / 2)
        band = jnp.where(np.abs(distance) <= radius, weight, 0)  # [side, side + 2 * radius]
        # A product by a band: a convolution whose kernel differs by image is many times slower.
        image = jnp.einsum(
            product,
            band / jnp.sum(band, axis=1, keepdims=True),
            jnp.pad(image, padding, "reflect"),
            precision="highest",
        )
    return image


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
    source = jnp.stack([row[0] * y + row[1] * x + row[2] - 0.5 for row in matrix])
    return warp(image, source, order=order, fill=fill)


def warp(
    image: Float[Array, "height width channels"],
    source: Float[Array, "2 new_height new_width"],
    *,
    order: int,
    mode: Literal["constant", "reflect"] = "constant",
    fill: float = 0.0,
) -> Float[Array, "new_height new_width channels"]:
    """Samples the image at `source` (y, x) for each output pixel; the first pixel is at (0, 0).

    Args:
      image: the image to sample; any float range.
      source: coordinates in pixels; they may lie outside.
      order: 0 for the nearest pixel (masks), 1 for bilinear.
      mode: outside the image, "constant" is `fill` and "reflect" the image mirrored at the centres
        of its border pixels, as by `jnp.pad`.
      fill: see `mode`.
    """
    border = {"constant": "constant", "reflect": "mirror"}[mode]  # as scipy calls them

    def sample(channel: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(channel, list(source), order, border, fill)

    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def resized_crop(
    image: Float[Array, "height width channels"],
    box: Float[Array, "4"],
    *,
    size: tuple[int, int],
    order: int = 1,
) -> Float[Array, "new_height new_width channels"]:
    """Crops `box` and resizes it to `size`, bilinear, with antialiasing when it shrinks.

    Unlike a crop followed by a resize, the filter at the edge of the box sees the image around it.

    Args:
      image: the image; any float range.
      box: top, left, height, width, in pixels; fractions are allowed.
      size: height and width of the result.
      order: 1, or 0 to take the nearest pixel (masks).
    """
    if order == 0:
        y, x = (
            jnp.floor(box[a] + (jnp.arange(size[a]) + 0.5) * box[2 + a] / size[a]).astype(int)
            for a in (0, 1)
        )
        return image[y][:, x]
    scale = jnp.array(size) / box[2:]
    return jax.image.scale_and_translate(
        image, (*size, image.shape[-1]), (0, 1), scale, -box[:2] * scale, method="linear"
    )


def centre_crop(
    pixels: Shaped[Array, "batch height width *rest"], size: Sequence[int]
) -> Shaped[Array, "batch new_height new_width *rest"]:
    """The middle of a batch of images or masks, `size` (height, width) pixels of it.

    Raises:
      ValueError: that is more than there are.
    """
    top, left = ((old - new) // 2 for old, new in zip(pixels.shape[1:3], size, strict=True))
    if min(top, left) < 0:
        raise ValueError(f"the centre of {pixels.shape} cannot have {size[0]}x{size[1]} pixels")
    return pixels[:, top : top + size[0], left : left + size[1]]


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
