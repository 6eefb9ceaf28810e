"""Convolutions of a few channels by banded kernels; see `convolution.py`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ops.convolution_geometry import NHWC, Geometry, Part, over_places, padded, turned

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
    columns, features = geometry.result[2:]
    most = max(2, WIDTH[wanted] // features)
    count = max(n for n in range(1, most + 1) if columns % n == 0)
    gather, band = (partial(f, geometry=geometry, count=count) for f in (_gathered, _band))
    match wanted:
        case "result":
            return (gather(first) @ band(second)).reshape(geometry.result)
        case "kernel":
            products = over_places(gather(first), second.reshape(-1, count * features))
            kernel = jax.typeof(first).update(shape=geometry.kernel)
            return jax.linear_transpose(band, kernel)(products)[0]
        case "image":
            gathered = first.reshape(-1, count * features) @ band(second).T
            image = jax.typeof(first).update(shape=geometry.image)
            return jax.linear_transpose(gather, image)(lax.optimization_barrier(gathered))[0]


def _gathered(image: Array, *, geometry: Geometry, count: int) -> Array:
    """What a block of columns sees: [places / count, rows · columns seen · channels]."""
    image, out = padded(image, geometry.padding), geometry.result
    down, across = geometry.strides
    seen = (count - 1) * across + geometry.reach(1)
    starts = range(0, out[2] * across, count * across)
    blocks = [
        image[:, :, start : start + seen].reshape(*image.shape[:2], 1, -1) for start in starts
    ]
    blocks = lax.optimization_barrier(jnp.concatenate(blocks, axis=2))
    stop = (out[1] - 1) * down + 1
    taps = range(0, geometry.reach(0), geometry.dilation[0])
    rows = jnp.concatenate([blocks[:, tap : tap + stop : down] for tap in taps], axis=3)
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
    if wanted == "image":
        geometry = geometry.mirror or geometry
    _, _, columns, features = geometry.result
    few = geometry.image[3] <= SIDE_BY_SIDE[0] and features <= SIDE_BY_SIDE[1] and geometry.mirror
    counts = [4, 2] if features <= 8 else [2]
    return next((n for n in counts if few and columns % n == 0), 1)


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
