"""Convolutions with kernels of three rows by half as many products; see ``dispatch.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from opsin.ops.convolution.geometry import Geometry, Part, padded

# The tile is how many rows of the result one set of products makes; each sees so many of the image.
TAPS, TILE = 3, 4
SEEN = TILE + TAPS - 1
# Where polynomials are sampled, beside 0 and infinity, with their squares: ±c and ±1/c, the form of
# Alam et al. (2022, doi:10.1145/3524069). They round half as coarsely as Lavin and Gray's do.
ROOT = math.sqrt(2.0)
POINTS = ((ROOT / 2, 0.5), (-ROOT / 2, 0.5), (ROOT, 2.0), (-ROOT, 2.0))


def minimal_filtering() -> dict[Part, np.ndarray]:
    """The matrices of F(4, 3): four results of a filter of three taps by six products.

    Result = R · ((K · kernel) ∘ (I · image)), for six values of the image that follow each other
    (Winograd; Lavin and Gray, 2015, arXiv:1509.09308, section 4, with other points). It is Toom and
    Cook's product of two polynomials, transposed: K and Rᵀ take their coefficients to values at the
    points, Iᵀ takes the products of those values to the coefficients of the product.

    The polynomial of all points is M = x (x² − ½) (x² − 2) = x⁵ − 5/2 x³ + x. A row of I holds the
    coefficients of M / (x − p), and K is divided by M'(p) = 5p⁴ − 15/2 p² + 1. They are written
    out: a library multiplies polynomials with rounding, and by the host's own instructions. A zero
    must be one exactly and on every host, for it is left out of the program.

    Returns:
        ``"image"`` [6, 6], ``"kernel"`` [6, 3] and ``"result"`` [4, 6].
    """
    image: list[list[float]] = [[1, 0, -2.5, 0, 1, 0]]
    kernel: list[list[float]] = [[1, 0, 0]]
    result: list[list[float]] = [[1, 0, 0, 0]]
    for point, square in POINTS:
        slope = 5 * square * square - 7.5 * square + 1
        image.append([0, -point / square, -1 / square, point, 1, 0])
        kernel.append([1 / slope, point / slope, square / slope])
        result.append([1, point, square, point * square])
    # At infinity: the highest coefficients.
    image.append([0, 1, 0, -2.5, 0, 1])
    kernel.append([0, 0, 1])
    result.append([0, 0, 0, 1])
    return {"image": np.array(image), "kernel": np.array(kernel), "result": np.array(result).T}


def saved(rows: int) -> float:
    """How many times fewer products it takes to make so many rows."""
    return TAPS * rows / (SEEN * -(-rows // TILE))


def winograd(
    first: Array,
    second: Array,
    *,
    wanted: Part,
    geometry: Geometry,
    form: Callable[[Part, Geometry], Callable[..., Array]],
) -> Array:
    """Winograd's minimal filtering along the height (algorithm 1 of Lavin and Gray, in one axis).

    Tiles in one axis grow by half where those in two would by 125 %, which a CPU has to write and
    read again. Left are six convolutions with kernels of one row, each by its ``form``.

    The gradient of the image is the convolution of the result's gradient with the turned kernel;
    that of the kernel runs the transforms the other way round.
    """
    if wanted == "image":
        assert geometry.mirror is not None
        second, wanted, geometry = _turned(second), "result", geometry.mirror
    batch, (_, _, width, channels) = len(first), geometry.image
    _, rows, columns, features = geometry.result
    tiles = -(-rows // TILE)
    matrices = minimal_filtering()
    line = replace(
        geometry,
        image=(batch, tiles, width, channels),
        kernel=(1, *geometry.kernel[1:]),
        padding=((0, 0), geometry.padding[1]),
    )
    compute = partial(form(wanted, line), wanted=wanted, geometry=line)
    top = geometry.padding[0][0]
    images = _combined(matrices["image"], [_rows(first, i - top, tiles) for i in range(SEEN)])
    if wanted == "result":
        kernels = _combined(matrices["kernel"], list(second))
        pairs = lax.optimization_barrier(list(zip(images, kernels, strict=True)))
        products = lax.optimization_barrier([compute(x, kernel[None]) for x, kernel in pairs])
        # As one sum it is written once; four rows stacked would be written, and then put in place.
        out = reduce(
            jnp.add,
            [
                jnp.asarray(column, x.dtype)[:, None, None] * x[:, :, None]
                for column, x in zip(matrices["result"].T, products, strict=True)
            ],
        )
        return out.reshape(batch, TILE * tiles, columns, features)[:, :rows]
    results = _combined(matrices["result"].T, [_rows(second, i, tiles) for i in range(TILE)])
    pairs = lax.optimization_barrier(list(zip(images, results, strict=True)))
    products = [compute(x, y)[0] for x, y in pairs]
    return jnp.stack(_combined(matrices["kernel"].T, products))


def _turned(kernel: Array) -> Array:
    """``turned``, in the order of its axes, which the six transforms read.

    Of a transposition of the whole XLA makes a layout, even behind a barrier, and what reads it
    reads across: three times as slow for 512 channels. Of each tap for itself it does not.
    """
    height, width, channels, features = kernel.shape
    taps = kernel[::-1, ::-1].reshape(-1, channels, features)
    taps = lax.optimization_barrier(jnp.stack([tap.T for tap in taps]))
    return taps.reshape(height, width, features, channels)


def _rows(image: Array, first: int, count: int) -> Array:
    """Every fourth row from the ``first`` on; zeros where there is no such row."""
    rows = range(first, first + TILE * count, TILE)
    inside = [row for row in rows if 0 <= row < image.shape[1]]
    if not inside:
        return jnp.zeros_like(image, shape=(len(image), count, *image.shape[2:]))
    above = rows.index(inside[0])
    margins = (above, count - above - len(inside))
    return padded(image[:, inside[0] : inside[-1] + 1 : TILE], (margins, (0, 0)))


def _combined(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """matrix · parts, without the products with zero."""
    return [
        reduce(jnp.add, [float(c) * x for c, x in zip(row, parts, strict=True) if c])
        for row in matrix
    ]
