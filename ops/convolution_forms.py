"""The forms in which the three contractions of a convolution are computed; see `convolution.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ops.convolution_bands import MIRRORED, banded, mirrored, narrow, side_by_side, widened
from ops.convolution_geometry import (
    NHWC,
    Geometry,
    Part,
    over_places,
    padded,
    turned,
    varying_alike,
)

# Measured on a Zen 5 (2 cores, float32). Winograd: below so many channels, transforming tiles costs
# more than it saves, and so does transforming the kernel for few places of the result, a channel.
WINOGRAD_CHANNELS_AND_PLACES = ((128, 64), (256, 2))
# Of a kernel's gradient by rows: fewer channels make its products too narrow; with more of them, or
# fewer rows, another form is as fast. The bytes of a block are what a core's cache holds with ease.
BY_ROWS_CHANNELS = 8, 64
BY_ROWS_FEATURES = 8, 32
BY_ROWS_HEIGHT = 16
BY_ROWS_BLOCK = 1_600_000

# Winograd's minimal filtering F(2, 3) (Lavin and Gray, 2015, arXiv:1509.09308, section 4.1): rows
# of Bᵀ for four values of the image, of G for the kernel's three, of Aᵀ for the two of the result.
WINOGRAD: dict[Part, tuple[tuple[float, ...], ...]] = {
    "image": ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    "kernel": ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    "result": ((1, 1, 1, 0), (0, 1, -1, -1)),
}


def native(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """A contraction by ``lax.conv_general_dilated`` and its transposes; see ``OPERANDS``."""

    def forward(image: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            image,
            kernel,
            geometry.strides,
            geometry.padding,
            rhs_dilation=geometry.dilation,
            dimension_numbers=NHWC,
            feature_group_count=geometry.groups,
            precision=geometry.precision,
        )

    match wanted:
        case "result":
            return forward(first, second)
        case "image":
            # Not a new shape alone: under shard_map an array also says over which axes it varies.
            image = jax.typeof(first).update(shape=geometry.image)
            return jax.linear_transpose(lambda x: forward(x, second), image)(first)[0]
        case "kernel":
            kernel = jax.typeof(first).update(shape=geometry.kernel)
            return jax.linear_transpose(lambda w: forward(first, w), kernel)(second)[0]


def fast_on_cpu(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The same contraction by the form that is fastest on a CPU."""
    operands = lax.optimization_barrier((first, second))
    compute = form(wanted, geometry) if first.dtype == jnp.float32 else native
    return lax.optimization_barrier(compute(*operands, wanted=wanted, geometry=geometry))


def form(wanted: Part, geometry: Geometry) -> Callable[..., Array]:
    """What is fastest for the shape; see the module."""
    _, height, width, channels = geometry.image
    batch, rows, columns, features = geometry.result
    empty = 0 in (*geometry.image, *geometry.kernel, *geometry.result)
    if geometry.groups > 1 or empty:
        return native
    if all(_disjoint(geometry, axis) for axis in (0, 1)):
        return _tiles
    unpadded = geometry.padding == ((0, 0), (0, 0))
    if geometry.kernel[:2] == (1, 1) and unpadded and wanted == "kernel":
        return _pointwise
    if narrow(wanted, geometry):
        return banded
    mirror = geometry.mirror
    if mirror and narrow(MIRRORED[wanted], mirror):
        return mirrored
    if mirror and geometry.kernel[:2] == (3, 3):
        even = height % 2 == width % 2 == rows % 2 == columns % 2 == 0
        places = batch * rows * columns / max(channels, features)
        if even and any(
            min(channels, features) >= wide and (places >= many or wanted == "kernel")
            for wide, many in WINOGRAD_CHANNELS_AND_PLACES
        ):
            return _winograd
        few = BY_ROWS_CHANNELS[0] <= channels <= BY_ROWS_CHANNELS[1]
        few &= BY_ROWS_FEATURES[0] <= features <= BY_ROWS_FEATURES[1]
        if wanted == "kernel" and few and rows >= BY_ROWS_HEIGHT:
            return _by_rows
    if wanted == "kernel":
        return _exchanged
    return widened if side_by_side(wanted, geometry) > 1 else native


def _disjoint(geometry: Geometry, axis: int) -> bool:
    """Whether the kernel's places along an axis touch different pixels, side by side."""
    size, kernel = geometry.image[1 + axis], geometry.kernel[axis]
    alone = kernel == size or (geometry.strides[axis] == kernel and size % kernel == 0)
    return alone and geometry.padding[axis] == (0, 0) and geometry.dilation[axis] == 1


def _tiles(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The image cut into tiles of the kernel's size: every contraction is one matrix product."""
    batch, rows, columns, features = geometry.result
    height, width, channels, _ = geometry.kernel

    def cut(image: Array) -> Array:  # [places, pixels of the kernel]
        tiles = image.reshape(batch, rows, height, columns, width, channels).swapaxes(2, 3)
        return tiles.reshape(batch * rows * columns, height * width * channels)

    match wanted:
        case "result":
            return (cut(first) @ second.reshape(-1, features)).reshape(geometry.result)
        case "kernel":
            return over_places(cut(first), second).reshape(geometry.kernel)
        case "image":
            pixels = first.reshape(-1, features) @ second.reshape(-1, features).T
            tiles = pixels.reshape(batch, rows, columns, height, width, channels)
            return tiles.swapaxes(2, 3).reshape(geometry.image)


def _pointwise(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The gradient of a 1×1 kernel: one product over the pixels that a strided kernel touches."""
    del wanted
    touched = first[:, :: geometry.strides[0], :: geometry.strides[1]]
    return over_places(touched, second).reshape(geometry.kernel)


def _winograd(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """Sixteen matrix products over transformed 4×4 tiles (Lavin and Gray, 2015, algorithm 1).

    The gradient of the image is the convolution of the result's gradient with the turned kernel;
    that of the kernel runs the transforms the other way round.
    """
    if wanted == "image":
        assert geometry.mirror is not None
        return _winograd_result(padded(first, geometry.mirror.padding), turned(second))
    if wanted == "result":
        return _winograd_result(padded(first, geometry.padding), second)
    image = _winograd_tiles(padded(first, geometry.padding))
    result = _twice(
        _transposed(WINOGRAD["result"]), [[second[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)]
    )
    products = [
        [over_places(x, y) for x, y in zip(*rows, strict=True)]
        for rows in zip(image, result, strict=True)
    ]
    kernel = _twice(_transposed(WINOGRAD["kernel"]), products)
    return jnp.stack([jnp.stack(row) for row in kernel])


def _winograd_result(image: Array, kernel: Array) -> Array:
    """The 3×3 convolution of an image that is padded already, of even height and width."""
    tiles = _winograd_tiles(image)
    filters = _twice(WINOGRAD["kernel"], [list(row) for row in kernel])
    products = [
        [x @ w for x, w in zip(*rows, strict=True)] for rows in zip(tiles, filters, strict=True)
    ]
    quarters = _twice(WINOGRAD["result"], products)
    out = jnp.stack([jnp.stack(row, axis=3) for row in quarters], axis=2)
    return out.reshape(image.shape[0], image.shape[1] - 2, image.shape[2] - 2, kernel.shape[3])


def _winograd_tiles(image: Array) -> list[list[Array]]:
    """Transformed 4×4 tiles, two pixels apart: [4][4] of [batch, height, width, channels]."""
    height, width = image.shape[1] - 3, image.shape[2] - 3
    places = [[image[:, i : i + height : 2, j : j + width : 2] for j in range(4)] for i in range(4)]
    return _twice(WINOGRAD["image"], places)


def _twice(
    matrix: Sequence[Sequence[float]], parts: Sequence[Sequence[Array]]
) -> list[list[Array]]:
    """matrix · parts · matrixᵀ, where the elements of ``parts`` are arrays."""
    rows = [_combined(matrix, column) for column in zip(*parts, strict=True)]
    return [_combined(matrix, row) for row in zip(*rows, strict=True)]


def _combined(matrix: Sequence[Sequence[float]], parts: Sequence[Array]) -> list[Array]:
    """matrix · parts, without the products with zero."""
    return [
        reduce(jnp.add, [c * x for c, x in zip(row, parts, strict=True) if c]) for row in matrix
    ]


def _transposed(matrix: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    return list(zip(*matrix, strict=True))


def _exchanged(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The kernel's gradient: XLA's convolution of image and result, batch and channels exchanged.

    ``lax`` says the same by dimension numbers. Within a loop, as of several steps in one program,
    XLA then finds no routine for it and is forty times slower; arrays that lie so it knows.
    """
    del wanted
    padding = []
    for axis, (low, _) in enumerate(geometry.padding):
        step, dilation, taps = (
            geometry.strides[axis],
            geometry.dilation[axis],
            geometry.kernel[axis],
        )
        covered = (geometry.result[1 + axis] - 1) * step + 1 + (taps - 1) * dilation
        padding.append((low, covered - geometry.image[1 + axis] - low))
    images, filters = lax.optimization_barrier(
        (first.transpose(3, 1, 2, 0), second.transpose(1, 2, 0, 3))
    )
    out = lax.conv_general_dilated(
        images,
        filters,
        geometry.dilation,
        padding,
        rhs_dilation=geometry.strides,
        dimension_numbers=NHWC,
        precision=geometry.precision,
    )
    return out.transpose(1, 2, 0, 3)


def _by_rows(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The kernel's gradient: a product for each of its columns, all of its rows side by side.

    A few images at a time, so that what is gathered of them is still in the cache when it is read.
    """
    del wanted
    height, width, channels, features = geometry.kernel
    batch, rows, columns, _ = geometry.image
    (top, _), (left, _) = geometry.padding

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        # The barrier keeps blocks one behind the other where XLA could begin all of them at once.
        image, result, total = lax.optimization_barrier((*block, total))
        shifts = [(i - top, rows - result.shape[1] - i + top) for i in range(height)]
        gathered = jnp.concatenate([padded(result, (shift, (0, 0))) for shift in shifts], axis=3)
        shifts = [(left - j, second.shape[2] - columns - left + j) for j in range(width)]
        shifted = [padded(image, ((0, 0), shift)) for shift in shifts]
        gathered, *shifted = lax.optimization_barrier((gathered, *shifted))
        return total + jnp.stack([over_places(x, gathered) for x in shifted]), None

    gathered_bytes = batch * rows * columns * height * features * first.dtype.itemsize
    blocks = next(
        n
        for n in range(1, batch + 1)
        if batch % n == 0 and (n == batch or gathered_bytes <= n * BY_ROWS_BLOCK)
    )
    images, results = (x.reshape(blocks, -1, *x.shape[1:]) for x in (first, second))
    zeros = jnp.zeros((width, channels, height * features), first.dtype)
    total = varying_alike(zeros, first, second)[0]
    total, _ = lax.scan(add, total, (images, results), unroll=min(4, blocks))
    return total.reshape(width, channels, height, features).transpose(2, 0, 1, 3)
