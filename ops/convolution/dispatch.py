"""The convolution of every model: native on accelerators, by the fastest known form on a CPU.

A convolution is one trilinear form in image, kernel and result: the sum over all places where the
kernel touches the image of ``image · kernel · result``. Its three derivatives are the convolution
itself, the gradient of the image and the gradient of the kernel, and each of the three is bilinear
in the other two. They are one JAX primitive here, closed under differentiation: forward mode,
reverse mode and derivatives of any order need only the table ``OPERANDS``.

Which program computes a contraction is decided when it is lowered: XLA's own convolution for GPU
and TPU; for a CPU, in single precision, what is fastest for the shape (``python -m
opsin.benchmarks.convolutions`` measures it):

- *tiles*, where the kernel's places do not overlap (1×1, patch embedding, kernel = image): one
  matrix product.
- *bands*, for images or results of a few channels, where XLA's convolution leaves the vector units
  half empty: a product for several columns of the result at once. For up to 16 features of up to 24
  channels XLA's convolution is given several columns at once.
- *Winograd's* F(4, 3) along the height, for 3×3 kernels between 32 channels or more: up to half the
  products. Its root mean square error is up to three times that of XLA's convolution, relative to
  the largest value of four rows; what is not finite reaches all four. Precision ``HIGHEST`` keeps
  it out.
- *taps*, for the gradient of a 3×3 kernel between fewer channels of a large image: one product, in
  which the image is shifted by the kernel's columns and the result by its rows.
- *shifts*, where each channel has a kernel of its own: one loop that multiplies and adds shifted
  images. Other groups become dense convolutions side by side, small ones several together. Both
  are taken in double precision too, where the others are not. What is not finite reaches the
  groups of one dense convolution.
- XLA's convolution otherwise, laid out as it likes best, on operands that were written to memory
  first: of the kernel's gradient batch and channels are exchanged, of the image's with many
  channels the kernel is turned before. Without that barrier XLA fuses normalisation and activation
  into the transposition that a kernel's gradient needs, and computes them again in an order that no
  cache likes.

With ``OPSIN_NATIVE_CONV=1`` in the environment, XLA's own convolution is taken on a CPU too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from opsin.ops.convolution.forms import fast_on_cpu, native
from opsin.ops.convolution.geometry import NHWC, OPERANDS, Geometry, Part, padded, varying_alike


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
    operation = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    shapes = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (image, kernel))
    # Raises what lax raises, and has padding and precision resolved. By jit, for many layers of a
    # network are alike, and jax remembers what it traced, by shapes, options and defaults.
    options = tuple((name, _hashable(value)) for name, value in operation.keywords.items())
    traced = _laxs_own.trace(*shapes, options=options)
    params = traced.jaxpr.eqns[-1].params
    ordinary = (
        image.ndim == 4
        and jnp.issubdtype(image.dtype, jnp.floating)
        and params["dimension_numbers"]
        == lax.conv_dimension_numbers(image.shape, kernel.shape, NHWC)
        and params["lhs_dilation"] == (1, 1)
        and params["batch_group_count"] == 1
        and params["preferred_element_type"] is None
    )
    if not ordinary:
        return operation(image, kernel)
    # Negative padding is cropped away: with it, XLA's kernel gradient on a CPU is wrong (jax 0.10).
    image = padded(image, [(min(low, 0), min(high, 0)) for low, high in params["padding"]])
    geometry = Geometry(
        image=image.shape,
        kernel=kernel.shape,
        strides=params["window_strides"],
        padding=tuple((max(low, 0), max(high, 0)) for low, high in params["padding"]),
        dilation=params["rhs_dilation"],
        groups=params["feature_group_count"],
        precision=params["precision"],
    )
    image, kernel = varying_alike(image, kernel)
    return _contract(image, kernel, wanted="result", geometry=geometry)


@partial(jax.jit, static_argnames="options")
def _laxs_own(image: Array, kernel: Array, *, options: tuple[tuple[str, Any], ...]) -> Array:
    return lax.conv_general_dilated(image, kernel, **dict(options))


def _hashable(option: Any) -> Any:
    """An option with its lists as tuples."""
    return tuple(map(_hashable, option)) if type(option) in (list, tuple) else option


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


_compiled = jax.jit(contraction_p.bind, static_argnames=("wanted", "geometry"))


def _run(first: Array, second: Array, **params: Any) -> Array:
    """Outside a program: one that is compiled once for each geometry, as lax's operations are."""
    with jax.disable_jit(False):
        return _compiled(first, second, **params)


contraction_p.def_impl(_run)
contraction_p.def_abstract_eval(_shape)
ad.defbilinear(contraction_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[contraction_p] = _batch
mlir.register_lowering(contraction_p, mlir.lower_fun(native, multiple_results=False))
if os.environ.get("OPSIN_NATIVE_CONV") != "1":
    mlir.register_lowering(
        contraction_p, mlir.lower_fun(fast_on_cpu, multiple_results=False), platform="cpu"
    )
