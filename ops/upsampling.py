"""Larger images out of smaller ones: transposed convolution, unpooling and interpolation.

Images are [batch, height, width, channels]. Rows and columns may differ in every option, a pair
(rows, columns) in place of one number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from opsin.ops.convolution.dispatch import convolve

Pair = int | tuple[int, int]
"""One number for rows and columns, or (rows, columns)."""


def transposed_convolution(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    *,
    strides: Pair,
    padding: Pair = 0,
    output_padding: Pair = 0,
) -> Float[Array, "batch height_out width_out features"]:
    """The gradient of a convolution with respect to its image (PyTorch's ``conv_transpose2d``).

    Each pixel adds the kernel, times its value, to the result, ``strides`` further than its
    neighbour does: (H - 1) strides - 2 padding + K + output_padding rows from H, for K of the
    kernel.

    Args:
        x: the image.
        kernel: [rows, columns, in, out], not flipped.
        strides: between the places of two neighbours.
        padding: rows and columns cut off at each side, as the convolution whose gradient this is
            would add them.
        output_padding: more of them at the bottom and at the right; a convolution with a stride
            maps several sizes to one, and this chooses among them.

    Raises:
        ValueError: channels that differ, a stride below one, a negative padding, an output padding
            that is not below the stride, or a result without pixels.
    """
    strides, padding = _pair("strides", strides, 1), _pair("padding", padding, 0)
    output_padding = _pair("output_padding", output_padding, 0)
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            "a transposed convolution takes [batch, height, width, in] and [rows, columns, in, out]"
            f"; got {x.shape} and {kernel.shape}"
        )
    if any(more >= stride for more, stride in zip(output_padding, strides, strict=True)):
        raise ValueError(f"output_padding {output_padding} must be below the strides {strides}")
    sides = [
        (x.shape[1 + a] - 1) * strides[a] - 2 * padding[a] + kernel.shape[a] + output_padding[a]
        for a in (0, 1)
    ]
    if min(sides) < 1:
        raise ValueError(f"padding {padding} leaves nothing of {x.shape}, kernel {kernel.shape}")
    turned = kernel.swapaxes(2, 3)  # the convolution takes the features to the channels
    # Of the type of x: under jax.shard_map it varies over the same axes.
    image = jax.typeof(x).update(shape=(x.shape[0], *sides, kernel.shape[3]), weak_type=False)
    (result,) = jax.linear_transpose(
        lambda image: convolve(
            image,
            turned,
            strides,
            tuple((side, side) for side in padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        image,
    )(x)
    return result


def bilinear_kernel(
    size: Pair, channels: int
) -> Float[Array, "rows columns {channels} {channels}"]:
    """The kernel with which a transposed convolution interpolates each channel by itself.

    A tent over ``size`` pixels. With size 2f - f % 2, stride f and padding f // 2 the result is
    ``upsample_bilinear`` by f, but for the border, beyond which a convolution sees zeros. Long,
    Shelhamer and Darrell, 2015, arXiv:1411.4038, section 3.3.

    Raises:
        ValueError: a size below one.
    """
    tents = []
    for taps in _pair("size", size, 1):
        factor = (taps + 1) // 2
        tents.append(1 - abs(np.arange(taps) - (taps - 1) / 2) / factor)
    plane = np.outer(*tents)[..., None, None]
    return jnp.asarray(plane * np.eye(channels), jnp.float32)


def max_pool_with_positions(
    x: Float[Array, "batch height width channels"], window: Pair
) -> tuple[Float[Array, "batch rows columns channels"], Int[Array, "batch rows columns channels"]]:
    """The largest value of each window, and its position in it for ``max_unpool``.

    Windows lie side by side; where a side is no multiple of theirs, the last are smaller.
    Positions count the pixels of a window row by row, from 0. The first of equal values is taken,
    and receives the whole gradient; NaN is larger than all.

    Zeiler and Fergus, 2013, arXiv:1311.2901, section 2.1; Badrinarayanan, Kendall and Cipolla,
    2015, arXiv:1511.00561 (SegNet), section 3.

    Raises:
        ValueError: a window below one.
    """
    rows, columns = _pair("window", window, 1)
    # Copies of the last row and column come after what they copy: they are never the first.
    margins = [(0, 0), (0, -x.shape[1] % rows), (0, -x.shape[2] % columns), (0, 0)]
    windows = _windows(jnp.pad(x, margins, mode="edge"), rows, columns)
    positions = jnp.argmax(windows, axis=3)
    # Not a gather, whose gradient is a slow scatter.
    values = jnp.sum(jnp.where(_pixels_at(positions, rows * columns), windows, 0), axis=3)
    return values, positions


def max_unpool(
    values: Float[Array, "batch rows columns channels"],
    positions: Int[Array, "batch rows columns channels"],
    window: Pair,
    size: tuple[int, int] | None = None,
) -> Float[Array, "batch height width channels"]:
    """Each value back at its position in a window of zeros: ``max_pool_with_positions`` undone.

    Args:
        values: one for each window.
        positions: in the window, as ``max_pool_with_positions`` gives them.
        window: (rows, columns) of a window.
        size: height and width of the image that was pooled, where windows do not divide them.

    Raises:
        ValueError: positions of another shape, a window below one, or a size that does not have
            this many windows.
    """
    rows, columns = _pair("window", window, 1)
    if values.shape != positions.shape:
        raise ValueError(f"one position a value: got {values.shape} and {positions.shape}")
    chosen = _pixels_at(positions, rows * columns)
    image = _side_by_side(jnp.where(chosen, values[:, :, :, None], 0), rows, columns)
    if size is None:
        return image
    if (-(-size[0] // rows), -(-size[1] // columns)) != values.shape[1:3]:
        raise ValueError(f"size {size} is not {values.shape[1:3]} windows of {(rows, columns)}")
    return image[:, : size[0], : size[1]]


def bed_of_nails(
    x: Float[Array, "batch height width channels"], factor: Pair
) -> Float[Array, "batch height_out width_out channels"]:
    """Each pixel at the top left of a window of zeros. Raises ValueError for a factor below one."""
    between = [(0, 0, 0), *((0, step - 1, step - 1) for step in _pair("factor", factor, 1))]
    return lax.pad(x, jnp.zeros((), x.dtype), [*between, (0, 0, 0)])


def upsample_nearest(
    x: Float[Array, "batch height width channels"], factor: Pair
) -> Float[Array, "batch height_out width_out channels"]:
    """Each pixel as a window of copies. Raises ValueError for a factor below one."""
    rows, columns = _pair("factor", factor, 1)
    batch, height, width, channels = x.shape
    windows = jnp.broadcast_to(x[:, :, :, None], (batch, height, width, rows * columns, channels))
    return _side_by_side(windows, rows, columns)


def upsample_bilinear(
    x: Float[Array, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch {size[0]} {size[1]} channels"]:
    """Bilinear interpolation to a height and width, with pixels as areas ("half-pixel" centres).

    PyTorch's ``interpolate(mode="bilinear", align_corners=False)``: outside, the border repeats. A
    smaller size works too, but samples without averaging first.

    Raises:
        ValueError: a size below one, or ``x`` without pixels.
    """
    if len(size) != 2 or min(size) < 1 or 0 in x.shape:
        raise ValueError(f"an image of {x.shape} has no size {size}")
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)


def _windows(x: Array, rows: int, columns: int) -> Array:
    """The image cut into windows: [batch, height, width, rows * columns, channels]."""
    batch, height, width, channels = x.shape
    down, across = height // rows, width // columns
    x = x.reshape(batch, down, rows, across, columns, channels)
    return x.swapaxes(2, 3).reshape(batch, down, across, rows * columns, channels)


def _side_by_side(windows: Array, rows: int, columns: int) -> Array:
    """The image of these windows."""
    batch, height, width, _, channels = windows.shape
    windows = windows.reshape(batch, height, width, rows, columns, channels)
    return windows.swapaxes(2, 3).reshape(batch, height * rows, width * columns, channels)


def _pixels_at(positions: Array, count: int) -> Array:
    """Which of a window's pixels: [batch, height, width, count, channels]."""
    return positions[:, :, :, None] == jnp.arange(count)[:, None]


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """(rows, columns), both of at least ``least``."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name} is a number of at least {least} or a pair of them; got {value}")
    return pair
