"""A trained network as a model of ONNX, for runtimes that know nothing of JAX; needs jax2onnx.

    session = onnxruntime.InferenceSession("lenet.onnx")
    (probabilities,) = session.run(None, {"images": images})

Images are uint8 [batch, height, width, channels].

Weights and preprocessing are inside; the batch has any size, as in ``interchange.stablehlo``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array

from opsin.train.settings import SettingError

SUFFIX = ".onnx"
INSTALL = "pip install --no-deps jax2onnx onnx onnx-ir onnxruntime sympy mpmath"
"""It is no extra: jax2onnx 0.17 asks for an orbax-checkpoint that is older than ours, and for a
viewer, and needs neither."""
OPSET = 21
"""The version of ONNX's operators: onnxruntime reads it since 1.18, of May 2024."""


def model_of(answer: Callable[[Array], Array], image: tuple[int, int, int]) -> bytes:
    """A function of images for any number of them at a time.

    Args:
        answer: from one image, uint8 [height, width, channels]; it is mapped over the batch.
        image: height, width and channels.

    Returns:
        The model: input ``images``, output ``probabilities``. Of one and of two images onnxruntime
        has said the same by it as the function.

    Raises:
        SettingError: without jax2onnx, or for a network that it does not know or takes for another.
    """
    try:
        import onnxruntime
        from jax2onnx import to_onnx
    except ModuleNotFoundError as error:
        raise SettingError(f"a file of {SUFFIX} needs jax2onnx: {INSTALL}") from error
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image), jnp.uint8)
    # Traced before jax2onnx replaces flax's layers by its own, which know no map over a batch.
    traced = jax.make_jaxpr(jax.vmap(answer))(images)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of shapes that it leaves open
    try:
        model = to_onnx(
            partial(_run, traced),
            inputs=[images],
            opset=OPSET,
            input_names=["images"],
            output_names=["probabilities"],
        )
    except (NotImplementedError, jax.errors.JAXTypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise SettingError(f"jax2onnx does not know a part of this network ({said})") from error
    del model.graph.value_info[:]  # shapes along the way, some of which are wrong
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content)
    mapped = jax.jit(jax.vmap(answer))
    for count in (1, 2):
        given = np.random.default_rng(count).integers(0, 256, (count, *image), np.uint8)
        wanted = mapped(given)
        try:
            found: Any = session.run(None, {"images": given})[0]
            same = np.allclose(found, wanted, rtol=1e-3, atol=1e-4)
        except Exception:  # of a type of its own for each reason
            same = False
        if not same:
            raise SettingError("jax2onnx takes this network for another: onnxruntime differs")
    return content


def _run(closed: ClosedJaxpr, *values: Any) -> Any:
    """What a traced function gives, by operations that jax2onnx takes."""
    (result,) = _results(closed.jaxpr, closed.consts, values)
    return result


def _results(jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))

    def value_of(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        found = _result(equation, [value_of(each) for each in equation.invars])
        known |= zip(equation.outvars, found, strict=True)
    return [value_of(each) for each in jaxpr.outvars]


def _result(equation: Any, values: list[Any]) -> list[Any]:
    """What one operation gives, as a list."""
    primitive: Any = equation.primitive
    params = equation.params
    if primitive.name in ("jit", "custom_jvp_call", "custom_vjp_call"):
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        return _results(inner.jaxpr, inner.consts, values)
    if primitive.name == "materialized":
        return values
    if primitive.name == "conv_general_dilated":
        return [_convolved(*values, **params)]
    if primitive.name == "pad" and all(each[2] == 0 for each in params["padding_config"]):
        x, value = values
        return [_padded(x, value, params["padding_config"])]
    found = primitive.bind(*values, **params)
    return list(found) if primitive.multiple_results else [found]


def _convolved(x: Array, kernel: Array, dimension_numbers: Any, **params: Any) -> Array:
    """With the kernel as [rows, columns, inputs, outputs], as that of a transposed one is not."""
    lhs, (outputs, inputs, *window), out = dimension_numbers
    return lax.conv_general_dilated_p.bind(
        x,
        jnp.transpose(kernel, (*window, inputs, outputs)),
        dimension_numbers=lax.ConvDimensionNumbers(lhs, (3, 2, 0, 1), out),
        **params,
    )


def _padded(x: Array, value: Array, config: Sequence[tuple[int, int, int]]) -> Array:
    """By slices that are joined: jax2onnx pads no array whose batch has any size."""
    for axis, (low, high, _) in enumerate(config):
        cut = slice(max(-low, 0), x.shape[axis] - max(-high, 0))
        x = x[(slice(None),) * axis + (cut,)] if min(low, high) < 0 else x
        first = lax.slice_in_dim(x, 0, 1, axis=axis)
        edge = jnp.clip(first, value, value)
        parts = [edge] * max(low, 0) + [x] + [edge] * max(high, 0)
        x = jnp.concatenate(parts, axis) if len(parts) > 1 else x
    return x
