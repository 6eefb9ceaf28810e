"""Convolutions whose channels see only their own share of the features; see ``dispatch.py``.

XLA has one loop for all of them on a CPU, and its gradients are tens to hundreds of times slower
than they need be.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from opsin.ops.convolution.geometry import Geometry, Part, over_blocks, padded

# Measured on an EPYC (2 cores, float32). The terms of a sum that one loop adds up: with fewer, sums
# go through memory more often. Bytes of images, or of gradients, whose products are taken at once.
TERMS = 8
BLOCK = 1_600_000
# Programs grow with the taps of a channel's kernel, and with dense convolutions side by side.
MOST_TAPS = 121
MOST_BLOCKS = 64
# Groups of fewer channels or features are taken together as one dense convolution of so many.
DENSE = 32


def depthwise(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """A kernel of its own for each channel: shifted images, multiplied and added.

    One loop runs over the result and reads each tap beside the last, with channels in the vector
    units. Several features of a channel are features of as many copies of it.
    """
    channels, features = geometry.image[3], geometry.kernel[3]
    copies = features // channels
    if copies > 1:
        alike = replace(geometry, image=(*geometry.image[:3], features), groups=features)
        if wanted == "image":
            image = depthwise(first, second, wanted=wanted, geometry=alike)
            return image.reshape(*geometry.image, copies).sum(-1)
        copied = lax.optimization_barrier(jnp.repeat(first, copies, axis=3))
        return depthwise(copied, second, wanted=wanted, geometry=alike)
    match wanted:
        case "result":
            return _result(first, second, geometry)
        case "kernel":
            return _kernel(first, second, geometry)
        case "image" if geometry.mirror:
            return _result(first, second[::-1, ::-1], geometry.mirror)
        case "image":
            return _image(first, second, geometry)


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, terms)


def _phases(image: Array, geometry: Geometry) -> Array:
    """The padded image's pixels by their place in a stride, so that taps lie side by side.

    Returns:
        [place, image, row, column, channel].
    """
    (down, across), (tall, wide) = geometry.strides, _sides(geometry)
    (top, _), (left, _) = geometry.padding
    _, height, width, channels = geometry.image
    below, behind = tall * down - top - height, wide * across - left - width
    image = padded(image, ((top, below), (left, behind)))
    phases = image.reshape(-1, tall, down, wide, across, channels).transpose(2, 4, 0, 1, 3, 5)
    return lax.optimization_barrier(phases.reshape(-1, *phases.shape[2:]))


def _sides(geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of a phase: those of the padded image, divided by the strides."""
    sizes = [size + sum(p) for size, p in zip(geometry.image[1:3], geometry.padding, strict=True)]
    tall, wide = (-(-size // s) for size, s in zip(sizes, geometry.strides, strict=True))
    return tall, wide


def _taps(geometry: Geometry) -> Iterator[tuple[int, int]]:
    return itertools.product(range(geometry.kernel[0]), range(geometry.kernel[1]))


def _first(geometry: Geometry, tap: tuple[int, ...]) -> tuple[int, int, int]:
    """Of the pixels that a tap touches: the phase, and the first row and column in it."""
    offsets = [t * d for t, d in zip(tap, geometry.dilation, strict=True)]
    (top, y), (left, x) = (divmod(o, s) for o, s in zip(offsets, geometry.strides, strict=True))
    return y * geometry.strides[1] + x, top, left


def _result(image: Array, kernel: Array, geometry: Geometry) -> Array:
    phases = _phases(image, geometry)
    _, rows, columns, _ = geometry.result

    def touched(tap: tuple[int, int]) -> Array:
        phase, top, left = _first(geometry, tap)
        return phases[phase, :, top : top + rows, left : left + columns]

    return _sum(touched(tap) * kernel[*tap, 0] for tap in _taps(geometry))


def _image(result: Array, kernel: Array, geometry: Geometry) -> Array:
    """Each phase of the image from the taps that touch it."""
    (down, across), (tall, wide) = geometry.strides, _sides(geometry)
    _, rows, columns, _ = geometry.result
    (top, _), (left, _) = geometry.padding
    touching: dict[int, list[Array]] = {}
    for tap in _taps(geometry):
        phase, y, x = _first(geometry, tap)
        moved = padded(result, ((y, tall - y - rows), (x, wide - x - columns)))
        touching.setdefault(phase, []).append(moved * kernel[*tap, 0])
    nothing = jnp.zeros((len(result), tall, wide, result.shape[3]), result.dtype)
    phases = [_sum(touching.get(phase, [nothing])) for phase in range(down * across)]
    together = jnp.stack(lax.optimization_barrier(phases), axis=3)
    together = together.reshape(*nothing.shape[:3], down, across, -1).swapaxes(2, 3)
    image = together.reshape(len(result), tall * down, wide * across, -1)
    return image[:, top : top + geometry.image[1], left : left + geometry.image[2]]


def _kernel(image: Array, result: Array, geometry: Geometry) -> Array:
    """Sums over a few rows in one loop, those over all places as a product with ones.

    Taps come one after the other in one loop: a program with a part for each of 49 is ten times
    slower to compile, and is two to four times slower.
    """
    _, rows, columns, features = geometry.result
    taps = jnp.array([_first(geometry, tap) for tap in _taps(geometry)], jnp.int32)

    def gradient(images: Array, results: Array) -> Array:
        phases = _phases(images, geometry)
        height = next(n for n in range(1, rows + 1) if rows % n == 0 and rows <= n * TERMS)
        ones = jnp.ones((len(images) * height * columns,), result.dtype)

        def of_tap(first: Array) -> Array:
            phase, top, left = first

            def touched(row: int) -> Array:
                starts, sizes = (phase, 0, top + row, left, 0), (1, len(images), height, columns)
                return lax.dynamic_slice(phases, starts, (*sizes, features))[0]

            places = _sum(
                touched(row) * results[:, row : row + height] for row in range(0, rows, height)
            )
            return ones @ lax.optimization_barrier(places).reshape(-1, features)

        return lax.map(of_tap, taps)

    size = max(image.size, result.size) * image.dtype.itemsize
    total = over_blocks(
        gradient,
        image,
        result,
        (math.prod(geometry.kernel[:2]), features),
        least=size / BLOCK,
        unroll=1,
    )
    return total.reshape(geometry.kernel)


def unrolls(geometry: Geometry) -> bool:
    """Whether a program of these forms is not too long."""
    if geometry.kernel[2] == 1:
        return math.prod(geometry.kernel[:2]) <= MOST_TAPS
    return geometry.groups // together(geometry) <= MOST_BLOCKS


def together(geometry: Geometry) -> int:
    """How many groups are taken as one dense convolution."""
    channels, features = geometry.kernel[2], geometry.kernel[3] // geometry.groups
    divisors = [n for n in range(1, geometry.groups + 1) if geometry.groups % n == 0]
    return next((n for n in divisors if n * min(channels, features) >= DENSE), geometry.groups)


def by_groups(
    first: Array,
    second: Array,
    *,
    wanted: Part,
    geometry: Geometry,
    form: Callable[[Part, Geometry], Callable[..., Array]],
) -> Array:
    """Dense convolutions side by side, each of a group, or of several with zeros between them.

    Args:
        first: as ``OPERANDS`` has it.
        second: likewise.
        wanted: the contraction.
        geometry: of the whole.
        form: what is fastest for a dense one.
    """
    many = together(geometry)
    blocks = geometry.groups // many
    height, width, channels, _ = geometry.kernel
    features = geometry.kernel[3] // geometry.groups
    part = replace(
        geometry,
        image=(*geometry.image[:3], many * channels),
        kernel=(height, width, many * channels, many * features),
        groups=1,
    )
    compute = functools.partial(form(wanted, part), wanted=wanted, geometry=part)

    def spread(kernel: Array) -> Array:
        """[height, width, many · channels, many · features], with zeros off the diagonal."""
        kernel = kernel.reshape(height, width, 1, channels, many, features)
        diagonal = jnp.eye(many, dtype=bool)[:, None, :, None]
        return jnp.where(diagonal, kernel, 0).reshape(part.kernel)

    def gathered(kernel: Array) -> Array:
        kernel = kernel.reshape(height, width, many, channels, many, features)
        return jnp.concatenate([kernel[:, :, n, :, n] for n in range(many)], axis=3)

    firsts = jnp.split(first, blocks, axis=3)
    seconds = jnp.split(second, blocks, axis=3)
    if wanted != "kernel":
        seconds = lax.optimization_barrier([spread(kernel) for kernel in seconds])
    parts = [compute(*pair) for pair in zip(firsts, seconds, strict=True)]
    if wanted == "kernel":
        parts = [gathered(part) for part in parts]
    return jnp.concatenate(parts, axis=3)
