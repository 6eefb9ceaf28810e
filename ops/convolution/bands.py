"""Convolutions of a few channels by banded kernels; see ``dispatch.py``."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from opsin.ops.convolution.geometry import NHWC, Geometry, Part, over_places, padded, turned

# Measured on a Zen 5 (2 cores, float32): with more channels XLA's convolution is as fast, and with
# more features if the kernel's rows fill a vector of 16 floats; for the gradient of the image it
# never is. The width is that of a band, in features.
CHANNELS: dict[Part, int] = {"result": 6, "image": 6, "kernel": 3}
FEATURES = 32
WIDTH: dict[Part, int] = {"result": 32, "image": 64, "kernel": 32}
# Up to so many channels and features XLA's convolution gains by several columns at once.
SIDE_BY_SIDE = 24, 16

MIRRORED: dict[Part, Part] = {"result": "image", "image": "result", "kernel": "kernel"}
"""What a contraction is in the mirror, where image and result change places."""


def narrow(wanted: Part, geometry: Geometry) -> bool:
    """Whether the image has so few channels that bands are faster than XLA's convolution."""
    channels, features = geometry.image[3], geometry.kernel[3]
    unfilled = features <= FEATURES or channels * geometry.kernel[1] < 16 or wanted == "image"
    return channels <= CHANNELS[wanted] and unfilled


def banded(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """Products with a banded matrix, for blocks of several columns of the result.

    A block sees the same columns of the image in each of the kernel's rows, which are gathered side
    by side. The matrix has the kernel once for each column of the block, a stride further each, and
    zeros elsewhere: more products than are needed, but wide ones, and less is gathered for them.
    """
    batch, rows, columns, features = geometry.result
    most = min(max(2, WIDTH[wanted] // features), columns)
    divisors = [n for n in range(2, most + 1) if columns % n == 0]
    count = max(divisors, default=most)
    blocks = -(-columns // count)
    gather = partial(_gathered, geometry=geometry, count=count, blocks=blocks)
    band = partial(_band, geometry=geometry, count=count)
    surplus = blocks * count - columns  # of the last block

    def in_blocks(result: Array) -> Array:
        return padded(result, ((0, 0), (0, surplus))).reshape(-1, count * features)

    match wanted:
        case "result":
            result = gather(first) @ band(second)
            return result.reshape(batch, rows, blocks * count, features)[:, :, :columns]
        case "kernel":
            products = over_places(gather(first), in_blocks(second))
            kernel = jax.typeof(first).update(shape=geometry.kernel)
            return jax.linear_transpose(band, kernel)(products)[0]
        case "image":
            gathered = in_blocks(first) @ band(second).T
            image = jax.typeof(first).update(shape=geometry.image)
            return jax.linear_transpose(gather, image)(lax.optimization_barrier(gathered))[0]


def _gathered(image: Array, *, geometry: Geometry, count: int, blocks: int) -> Array:
    """What a block of columns sees: [rows · blocks, kernel's rows · columns seen · channels]."""
    (top, bottom), (left, right) = geometry.padding
    down, across = geometry.strides
    seen, step = (count - 1) * across + geometry.reach(1), count * across
    # Cut into strips of a block's step, a block begins with a strip and reaches into those behind.
    reached = -(-seen // step)
    wide = (blocks - 1 + reached) * step
    right += wide - (geometry.image[2] + left + right)
    image = padded(image, ((top, bottom), (left, right)))
    strips = image.reshape(*image.shape[:2], -1, step * image.shape[3])
    sides = [strips[:, :, i : i + blocks] for i in range(reached)]
    columns = jnp.concatenate(sides, axis=3)[..., : seen * image.shape[3]]
    columns = lax.optimization_barrier(columns)
    stop = (geometry.result[1] - 1) * down + 1
    taps = range(0, geometry.reach(0), geometry.dilation[0])
    rows = jnp.concatenate([columns[:, tap : tap + stop : down] for tap in taps], axis=3)
    return lax.optimization_barrier(rows.reshape(-1, rows.shape[3]))


def _band(kernel: Array, *, geometry: Geometry, count: int) -> Array:
    """[rows · columns seen · channels, count · features]; see ``banded``."""
    across, gaps = geometry.strides[1], geometry.dilation[1] - 1
    last, zero = (count - 1) * across, jnp.zeros((), kernel.dtype)
    shifts = range(0, last + 1, across)
    shifted = [
        lax.pad(kernel, zero, ((0, 0, 0), (shift, last - shift, gaps), (0, 0, 0), (0, 0, 0)))
        for shift in shifts
    ]
    band = jnp.stack(shifted, axis=3)
    return lax.optimization_barrier(band.reshape(-1, count * kernel.shape[3]))


def mirrored(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """Bands for few features: image and result change places, and the kernel is turned."""
    assert geometry.mirror is not None
    bands = partial(banded, wanted=MIRRORED[wanted], geometry=geometry.mirror)
    if wanted == "kernel":
        return turned(bands(second, first))
    return bands(first, turned(second))


def side_by_side(wanted: Part, geometry: Geometry) -> int:
    """How many columns of the result XLA's convolution should make at once; 1 for no more."""
    mirror = geometry.mirror
    if mirror is None:
        return 1
    if wanted == "image":
        geometry = mirror
    (_, _, _, channels), (_, _, columns, features) = geometry.image, geometry.result
    if channels > SIDE_BY_SIDE[0] or features > SIDE_BY_SIDE[1]:
        return 1
    return next((n for n in ((4, 2) if features <= 8 else (2,)) if columns % n == 0), 1)


def widened(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """XLA's convolution with a band for its kernel: columns of the result are features to it.

    Its products have as many columns as there are features, and fewer than 32 of them leave its
    registers half empty.
    """
    count = side_by_side(wanted, geometry)
    if wanted == "image":
        assert geometry.mirror is not None
        geometry, second = geometry.mirror, turned(second)
    rows, _, channels, features = geometry.kernel
    band = _band(second, geometry=geometry, count=count)
    out = lax.conv_general_dilated(
        first,
        band.reshape(rows, -1, channels, count * features),
        (1, count),
        geometry.padding,
        dimension_numbers=NHWC,
        precision=geometry.precision,
    )
    return out.reshape(geometry.result)
