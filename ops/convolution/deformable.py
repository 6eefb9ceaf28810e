"""Deformable convolution: each tap of the kernel samples the image at a place of its own.

Dai et al., 2017, "Deformable convolutional networks", arXiv:1703.06211, and with a weight for each
sample Zhu et al., 2018, "Deformable ConvNets v2", arXiv:1811.11168.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def sample_bilinear(
    x: Float[Array, "batch height width channels"],
    positions: Float[Array, "batch *places 2"],
) -> Float[Array, "batch *places channels"]:
    """The images between their pixels: Dai et al., 2017, eq. 3 and 4.

    ``positions`` are (y, x) in pixels, the first pixel's centre at (0, 0). The image is surrounded
    by zeros, and fades to them within one pixel. The derivative by a position is that of the linear
    piece to its right; it is zero where no pixel is near.
    """
    height, width = x.shape[1:3]
    sides = jnp.array([height, width])
    framed = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Coordinates must be float32 even if the features are not: bfloat16 has no half at 128.
    places = jnp.clip(positions.astype(jnp.float32), -1, sides) + 1
    corner = jnp.minimum(jnp.floor(places), sides)
    # [batch, *places, 1]: the share of the lower and of the right pixels
    down, right = jnp.split((places - corner).astype(x.dtype), 2, axis=-1)
    row, column = jnp.moveaxis(corner.astype(jnp.int32), -1, 0)

    def pixels(row: Array, column: Array) -> Array:
        return jax.vmap(lambda image, i, j: image[i, j])(framed, row, column)

    above = (1 - right) * pixels(row, column) + right * pixels(row, column + 1)
    below = (1 - right) * pixels(row + 1, column) + right * pixels(row + 1, column + 1)
    return (1 - down) * above + down * below


def deformable_convolution(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "rows columns in_of_group out"],
    offsets: Float[Array, "batch height_out width_out taps 2"],
    mask: Float[Array, "batch height_out width_out taps"] | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Float[Array, "batch height_out width_out out"]:
    """A convolution whose taps are moved, and weighted, by place.

    Dai et al., 2017, eq. 2; with ``mask`` Zhu et al., 2018, eq. 1. Zero offsets, and a mask of
    ones, give the ordinary convolution.

    Args:
        x: images or features.
        kernel: weights; with ``groups``, ``in_of_group`` is the input channels over the groups.
        offsets: (y, x) in pixels, added to each tap's place; taps row by row, as the kernel has
            them.
        mask: weight of each sample, in [0, 1] in the paper.
        strides: step between outputs, for each spatial axis.
        padding: pixels of zeros before and after, for each spatial axis.
        dilation: step between taps, for each spatial axis.
        groups: parts that channels are split into, each convolved by itself.

    Raises:
        ValueError: if ``offsets`` or ``mask`` does not have the size of the result and one entry a
            tap.
    """
    taps = kernel.shape[:2]
    centres = []  # of each tap for each output, along one axis: [out, taps]
    for axis in range(2):
        low, high = padding[axis]
        last = x.shape[1 + axis] + low + high - (taps[axis] - 1) * dilation[axis]
        starts = jnp.arange(0, last, strides[axis]) - low
        centres.append(starts[:, None] + dilation[axis] * jnp.arange(taps[axis]))
    (rows, _), (columns, _) = (places.shape for places in centres)
    entries = (len(x), rows, columns, taps[0] * taps[1])
    if offsets.shape != (*entries, 2) or (mask is not None and mask.shape != entries):
        found = [offsets.shape, *([] if mask is None else [mask.shape])]
        raise ValueError(f"offsets are {(*entries, 2)} here, and a mask {entries}; got {found}")
    grid = jnp.broadcast_arrays(centres[0][:, None, :, None], centres[1][:, None, :])
    regular = jnp.stack(grid, axis=-1).reshape(*entries[1:], 2)
    samples = sample_bilinear(x, regular + offsets.astype(jnp.float32))
    if mask is not None:
        samples *= mask[..., None]
    samples = samples.reshape(*entries, groups, -1)
    kernel = kernel.reshape(entries[3], -1, groups, kernel.shape[3] // groups)
    result = jnp.einsum("bhwtgc,tcgf->bhwgf", samples, kernel)
    return result.reshape(*entries[:3], -1)
