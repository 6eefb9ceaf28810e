"""Warps, crops and windows: where the pixels of a new image come from."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def affine_warp(
    image: Float[Array, "height width channels"],
    matrix: Float[Array, "2 3"],
    *,
    order: int,
    fill: float = 0.0,
) -> Float[Array, "height width channels"]:
    """Samples the image at ``matrix @ (y, x, 1)`` for each output pixel (y, x).

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
    """Samples the image at ``source`` (y, x) for each output pixel; the first pixel is at (0, 0).

    Args:
        image: the image to sample; any float range.
        source: coordinates in pixels; they may lie outside.
        order: 0 for the nearest pixel (masks), 1 for bilinear.
        mode: outside the image, "constant" is ``fill`` and "reflect" the image mirrored at the
            centres of its border pixels, as by ``jnp.pad``.
        fill: see ``mode``.
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
    """Crops ``box`` and resizes it to ``size``, bilinear, with antialiasing when it shrinks.

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
    """The middle of a batch of images or masks, ``size`` (height, width) pixels of it.

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
    size: Int[Array, "2"] | tuple[int, int],
) -> Bool[Array, "height width"]:
    """A mask, True inside the rectangle from ``corner`` (y, x) with ``size`` (height, width).

    The corner may lie outside the mask; the rectangle is clipped at the border.
    """
    offset = jnp.moveaxis(jnp.mgrid[:height, :width], 0, -1) - corner  # [H, W, 2]
    return jnp.all((offset >= 0) & (offset < jnp.asarray(size)), axis=-1)
