"""The convolution of every model: native on accelerators, by the fastest known form on a CPU.

A convolution is one trilinear form in image, kernel and result: the sum over all places where the
kernel touches the image of ``image · kernel · result``. Its three derivatives are the convolution
itself, the gradient of the image and the gradient of the kernel, and each of the three is bilinear
in the other two. They are one JAX primitive here, closed under differentiation: forward mode,
reverse mode and derivatives of any order need only the table ``OPERANDS``.

Which program computes a contraction is decided when it is lowered: XLA's own convolution for GPU
and TPU; for a CPU, in single precision, what is fastest for the shape (`python -m
benchmarks.convolutions` measures it):

- *tiles*, where the kernel's places do not overlap (1×1, patch embedding, kernel = image): one
  matrix product.
- *Winograd's* F(2×2, 3×3), for 3×3 kernels between 128 channels or more: 2.25 times fewer products.
- *columns*, for images of a few channels: XLA's convolution leaves the vector units half empty.
- XLA's convolution otherwise, laid out as it likes best, on operands that were written to memory
  first. Without that barrier XLA fuses normalisation and activation into the transposition that a
  kernel's gradient needs, and computes them again in an order that no cache likes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Part = Literal["image", "kernel", "result"]
OPERANDS: dict[Part, tuple[Part, Part]] = {
    "result": ("image", "kernel"),
    "image": ("result", "kernel"),
    "kernel": ("image", "result"),
}
"""What each of the three is computed from, in this order."""

NHWC = ("NHWC", "HWIO", "NHWC")

# Measured on a Zen 5 (2 cores, float32): below, transforming tiles costs more than it saves.
WINOGRAD_CHANNELS = 128
# Below a full vector of 16 floats.
FEW_CHANNELS = 16

# Winograd's minimal filtering F(2, 3) (Lavin and Gray, 2015, arXiv:1509.09308, section 4.1): rows
# of Bᵀ for four values of the image, of G for the kernel's three, of Aᵀ for the two of the result.
WINOGRAD: dict[Part, tuple[tuple[float, ...], ...]] = {
    "image": ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    "kernel": ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    "result": ((1, 1, 1, 0), (0, 1, -1, -1)),
}


@dataclass(frozen=True)
class Geometry:
    """The shapes that a convolution ties together.

    Attributes:
        image: [batch, height, width, channels].
        kernel: [height, width, channels / groups, features].
        strides: of the result's places in the image.
        padding: rows above and below, columns before and after; may be negative.
        dilation: of the kernel's taps in the image.
        groups: of channels that see only their own share of the features.
        precision: as ``lax.conv_general_dilated`` takes it.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    precision: Any

    @property
    def result(self) -> tuple[int, ...]:
        """[batch, height, width, features]."""
        sides = (
            (self.image[1 + a] + sum(self.padding[a]) - self.reach(a)) // self.strides[a] + 1
            for a in (0, 1)
        )
        return (self.image[0], *(max(side, 0) for side in sides), self.kernel[3])

    def reach(self, axis: int) -> int:
        """From the kernel's first tap to its last, in pixels."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1


def convolve(
    image: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """A convolution with the arguments, errors and result of ``jax.lax.conv_general_dilated``.

    Images of two spatial axes in channels-last order, as linen's ``nn.Conv`` passes them, take the
    path that the module describes. All else is ``lax.conv_general_dilated`` itself. Under
    ``jax.vmap`` it is too, whatever the platform.
    """
    numbers = lax.conv_dimension_numbers(image.shape, kernel.shape, dimension_numbers)
    ordinary = (
        image.ndim == 4
        and numbers == lax.conv_dimension_numbers(image.shape, kernel.shape, NHWC)
        and batch_group_count == 1
        and preferred_element_type is None
        and all(n == 1 for n in lhs_dilation or ())
        and image.dtype == kernel.dtype
        and jnp.issubdtype(image.dtype, jnp.floating)
        and image.shape[3] == kernel.shape[2] * feature_group_count
        and kernel.shape[3] % feature_group_count == 0
    )
    if not ordinary:
        return lax.conv_general_dilated(
            image,
            kernel,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    strides, dilation = tuple(window_strides), tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        reach = [(n - 1) * step + 1 for n, step in zip(kernel.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(image.shape[1:3], reach, strides, padding)
    padding = tuple((low, high) for low, high in padding)
    geometry = Geometry(
        image.shape, kernel.shape, strides, padding, dilation, feature_group_count, precision
    )
    return _contract(image, kernel, wanted="result", geometry=geometry)


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
            image = jax.ShapeDtypeStruct(geometry.image, first.dtype)
            return jax.linear_transpose(lambda x: forward(x, second), image)(first)[0]
        case "kernel":
            kernel = jax.ShapeDtypeStruct(geometry.kernel, first.dtype)
            return jax.linear_transpose(lambda w: forward(first, w), kernel)(second)[0]


def fast_on_cpu(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The same contraction by the form that is fastest on a CPU."""
    operands = lax.optimization_barrier((first, second))
    compute = form(wanted, geometry) if first.dtype == jnp.float32 else native
    return lax.optimization_barrier(compute(*operands, wanted=wanted, geometry=geometry))


def form(wanted: Part, geometry: Geometry) -> Callable[..., Array]:
    """What is fastest for the shape; see the module."""
    _, height, width, channels = geometry.image
    _, rows, columns, features = geometry.result
    if geometry.groups > 1 or 0 in geometry.result:
        return native
    if all(_disjoint(geometry, axis) for axis in (0, 1)):
        return _tiles
    simple = geometry.strides == geometry.dilation == (1, 1)
    within = all(0 <= n <= 2 for side in geometry.padding for n in side)
    if simple and within and geometry.kernel[:2] == (3, 3):
        even = height % 2 == width % 2 == rows % 2 == columns % 2 == 0
        if even and min(channels, features) >= WINOGRAD_CHANNELS:
            return _winograd
    if simple and channels < FEW_CHANNELS and wanted == "image":
        return _columns_to_image
    if channels * geometry.kernel[1] < FEW_CHANNELS and wanted == "result":
        return _image_to_columns
    return _exchanged if wanted == "kernel" else native


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
            return _over_places(cut(first), second).reshape(geometry.kernel)
        case "image":
            pixels = first.reshape(-1, features) @ second.reshape(-1, features).T
            tiles = pixels.reshape(batch, rows, columns, height, width, channels)
            return tiles.swapaxes(2, 3).reshape(geometry.image)


def _over_places(image: Array, result: Array) -> Array:
    """[channels, features]: the sum over batch, rows and columns of every product of two."""
    # On matrices, XLA's product reads both as they lie; with more axes it transposes them first.
    image, result = (x.reshape(-1, x.shape[-1]) for x in (image, result))
    return lax.dot_general(image, result, (((0,), (0,)), ((), ())))


def _winograd(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """Sixteen matrix products over transformed 4×4 tiles (Lavin and Gray, 2015, algorithm 1).

    The gradient of the image is the convolution of the result's gradient with the turned kernel;
    that of the kernel runs the transforms the other way round.
    """
    if wanted == "image":
        turned = second[::-1, ::-1].swapaxes(2, 3)
        (top, bottom), (left, right) = geometry.padding
        first = _padded(first, ((2 - top, 2 - bottom), (2 - left, 2 - right)))
        return _winograd_result(first, turned)
    if wanted == "result":
        return _winograd_result(_padded(first, geometry.padding), second)
    image = _winograd_tiles(_padded(first, geometry.padding))
    result = _twice(
        _transposed(WINOGRAD["result"]), [[second[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)]
    )
    products = [
        [_over_places(x, y) for x, y in zip(*rows, strict=True)]
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


def _image_to_columns(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The result as one product of all patches with the kernel, gathered an axis at a time."""
    del wanted
    image, out = _padded(first, geometry.padding), geometry.result
    for axis in (2, 1):  # the second gathering copies whole runs of the first
        step, dilation = geometry.strides[axis - 1], geometry.dilation[axis - 1]
        taps = range(0, geometry.reach(axis - 1), dilation)
        stop = (out[axis] - 1) * step + 1
        places = [lax.slice_in_dim(image, t, t + stop, step, axis) for t in taps]
        image = lax.optimization_barrier(jnp.concatenate(places, axis=3))
    return (image.reshape(-1, image.shape[3]) @ second.reshape(-1, out[3])).reshape(out)


def _columns_to_image(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    """The image's gradient: a product over the kernel's columns, then a sum over its rows."""
    del wanted
    batch, height, width, channels = geometry.image
    rows, columns, _, features = geometry.kernel
    (top, _), (left, right) = geometry.padding
    out = _padded(first, ((0, 0), (columns - 1 - left, columns - 1 - right)))
    places = [out[:, :, columns - 1 - j :][:, :, :width] for j in range(columns)]
    across = lax.optimization_barrier(jnp.concatenate(places, axis=3))
    turned = second.transpose(1, 3, 0, 2).reshape(columns * features, rows * channels)
    down = lax.optimization_barrier(across.reshape(-1, columns * features) @ turned)
    down = down.reshape(batch, -1, width, rows, channels)
    shifts = [(i - top, height - first.shape[1] - i + top) for i in range(rows)]
    return reduce(
        jnp.add, [_padded(down[:, :, :, i], (shift, (0, 0))) for i, shift in enumerate(shifts)]
    )


def _padded(x: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """Zeros around height and width; negative padding crops."""
    sides = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return x if not any(map(any, padding)) else lax.pad(x, jnp.zeros((), x.dtype), sides)


contraction_p = Primitive("convolution")
"""A contraction: ``bind(first, second, wanted=, geometry=)``; see ``OPERANDS``."""


def _contract(first: Array, second: Array, *, wanted: Part, geometry: Geometry) -> Array:
    return contraction_p.bind(first, second, wanted=wanted, geometry=geometry)


def _shape(first: Any, second: Any, *, wanted: Part, geometry: Geometry) -> Any:
    shapes = {"image": geometry.image, "kernel": geometry.kernel, "result": geometry.result}
    return first.update(shape=shapes[wanted], weak_type=False)


def _transpose(
    unknown: int, cotangent: Array, *operands: Any, wanted: Part, geometry: Geometry
) -> Array:
    """Of an operand, which is the contraction of the other one with the cotangent."""
    names = OPERANDS[wanted]
    values = {wanted: cotangent, names[1 - unknown]: operands[1 - unknown]}
    first, second = (values[name] for name in OPERANDS[names[unknown]])
    return _contract(first, second, wanted=names[unknown], geometry=geometry)


def _batch(
    operands: Sequence[Array], axes: Sequence[int | None], **params: Any
) -> tuple[Array, int]:
    return jax.vmap(partial(native, **params), in_axes=tuple(axes))(*operands), 0


# Outside a program, run one that is compiled once for each geometry.
contraction_p.def_impl(jax.jit(contraction_p.bind, static_argnames=("wanted", "geometry")))
contraction_p.def_abstract_eval(_shape)
ad.defbilinear(contraction_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[contraction_p] = _batch
mlir.register_lowering(contraction_p, mlir.lower_fun(native, multiple_results=False))
mlir.register_lowering(
    contraction_p, mlir.lower_fun(fast_on_cpu, multiple_results=False), platform="cpu"
)
