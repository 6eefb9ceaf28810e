"""The forms in which the three contractions of a convolution are computed; see ``dispatch.py``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from opsin.ops.convolution.bands import MIRRORED, banded, mirrored, narrow, side_by_side, widened
from opsin.ops.convolution.geometry import (
    NHWC,
    Geometry,
    Part,
    over_blocks,
    over_places,
    padded,
    turned,
)
from opsin.ops.convolution.grouped import by_groups, depthwise, unrolls
from opsin.ops.convolution.winograd import saved, winograd

# Measured on a Zen 5 (2 cores, float32). Winograd: between fewer channels the transforms of image
# and result cost more than is saved, with fewer places of the result a channel that of the kernel
# does, which the gradient of the image turns first, and where filling the last tile leaves less to
# save all of them do.
WINOGRAD_CHANNELS = 32
WINOGRAD_PLACES: dict[Part, float] = {"result": 0.5, "image": 2, "kernel": 0.5}
WINOGRAD_SAVES = 1.5
# Bytes of images, or of gradients, that the gradient of a kernel is made of at once, if those are
# so many images: its sums go over them.
WINOGRAD_BLOCK = 3_000_000
WINOGRAD_IMAGES = 8
# Of an image's gradient of too few places for Winograd: a kernel of fewer channels is turned soon.
TURNED_CHANNELS = 128
# Of a kernel's gradient by taps: fewer channels make its products too narrow; with more of them, or
# fewer rows, another form is as fast. The bytes of a block are those of its larger operand.
BY_TAPS_CHANNELS = 8, 64
BY_TAPS_FEATURES = 8, 32
BY_TAPS_HEIGHT = 16
BY_TAPS_BLOCK = 1_600_000


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
    grouped = geometry.groups > 1 and first.dtype == jnp.float64
    compute = form(wanted, geometry) if first.dtype == jnp.float32 or grouped else native
    return lax.optimization_barrier(compute(*operands, wanted=wanted, geometry=geometry))


def form(wanted: Part, geometry: Geometry) -> Callable[..., Array]:
    """What is fastest for the shape; see the module."""
    _, height, _, channels = geometry.image
    batch, rows, columns, features = geometry.result
    empty = 0 in (*geometry.image, *geometry.kernel, *geometry.result)
    if empty or (geometry.groups > 1 and not unrolls(geometry)):
        return native
    if geometry.groups > 1:
        return depthwise if geometry.kernel[2] == 1 else _by_groups
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
        exact = lax.Precision.HIGHEST in (geometry.precision or ())
        wide = min(channels, features) >= WINOGRAD_CHANNELS and not exact
        many = batch * rows * columns >= WINOGRAD_PLACES[wanted] * max(channels, features)
        if wide and many and saved(height if wanted == "image" else rows) >= WINOGRAD_SAVES:
            return _winograd
        if wanted == "image" and min(channels, features) >= TURNED_CHANNELS:
            return _turned_before
        few = BY_TAPS_CHANNELS[0] <= channels <= BY_TAPS_CHANNELS[1]
        few &= BY_TAPS_FEATURES[0] <= features <= BY_TAPS_FEATURES[1]
        if wanted == "kernel" and few and rows >= BY_TAPS_HEIGHT:
            return _by_taps
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


def _turned_before(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The image's gradient as XLA's convolution with a kernel that was turned before.

    XLA turns the kernel slowly if it does so itself: a quarter of the time for 256 channels.
    """
    del wanted
    assert geometry.mirror is not None
    kernel = lax.optimization_barrier(turned(second))
    return native(first, kernel, wanted="result", geometry=geometry.mirror)


def _by_groups(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """Dense convolutions of the groups, each by the form that is fastest for it."""
    single = first.dtype == jnp.float32
    choose = form if single else lambda wanted, geometry: native
    return by_groups(first, second, wanted=wanted, geometry=geometry, form=choose)


def _winograd(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """Fewer rows of kernels, each by the form that is fastest for it."""
    compute = partial(winograd, wanted=wanted, geometry=geometry, form=form)
    if wanted != "kernel":
        return compute(first, second)
    size = max(first.size, second.size) * first.dtype.itemsize
    return over_blocks(
        compute,
        first,
        second,
        geometry.kernel,
        least=size / WINOGRAD_BLOCK,
        fewest=WINOGRAD_IMAGES,
    )


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


def _by_taps(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The kernel's gradient: one product of the image shifted by columns, the result by rows."""
    del wanted
    height, width, channels, features = geometry.kernel
    rows, columns = geometry.image[1:3]
    (top, _), (left, _) = geometry.padding

    def gradient(image: Array, result: Array) -> Array:
        shifts = [(i - top, rows - result.shape[1] - i + top) for i in range(height)]
        results = jnp.concatenate([padded(result, (shift, (0, 0))) for shift in shifts], axis=3)
        shifts = [(left - j, second.shape[2] - columns - left + j) for j in range(width)]
        images = jnp.concatenate([padded(image, ((0, 0), shift)) for shift in shifts], axis=3)
        return over_places(*lax.optimization_barrier((images, results)))

    taps = max(width * channels, height * features)
    gathered_bytes = math.prod(first.shape[:3]) * taps * first.dtype.itemsize
    shape = (width * channels, height * features)
    total = over_blocks(gradient, first, second, shape, least=gathered_bytes / BY_TAPS_BLOCK)
    return total.reshape(width, channels, height, features).transpose(2, 0, 1, 3)
