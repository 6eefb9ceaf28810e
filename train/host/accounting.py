"""FLOPs of a step and peak FLOP/s of the devices: utilization is their ratio."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.typing import DTypeLike

from opsin.ops.convolution.forms import native


@dataclass(frozen=True)
class Work:
    """What one training step is, and the most that its devices could do in a second.

    Attributes:
        images: the global batch.
        flops: operations of the whole step, over all devices; see ``model_flops``.
        peak: measured FLOP/s of matrix products, over all devices; see ``matmul_peak``.
    """

    images: int
    flops: int
    peak: float

    def rates(self, steps: int, seconds: float) -> dict[str, float]:
        """Speed of so many steps in so many seconds; utilization is a share of the peak."""
        steps_per_second = steps / max(seconds, 1e-9)
        return {
            "images_per_second": steps_per_second * self.images,
            "model_flops_per_second": steps_per_second * self.flops,
            "utilization": steps_per_second * self.flops / self.peak,
        }


def median_rates(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each of ``Work.rates`` over the lines of a log, of all processes of a run."""
    names = Work(images=1, flops=1, peak=1.0).rates(1, 1.0)
    found = {name: [x[f"train/{name}"] for x in lines if f"train/{name}" in x] for name in names}
    return {name: statistics.median(values) for name, values in found.items() if values}


def measured_work(images: int, flops: Counter[str], devices: int) -> Work:
    """The work of a step of so many FLOPs by data type, with the peak measured here and now.

    The peak is that of the data type in which most of the work is done. Devices of a CPU share its
    cores, and one of them can use them all: however many there are, they are one.
    """
    dtype = max(flops, key=lambda name: flops[name], default="float32")
    machines = jax.process_count() if jax.default_backend() == "cpu" else devices
    return Work(images, flops.total(), machines * matmul_peak(dtype))


def matmul_peak(
    dtype: DTypeLike = jnp.float32, *, size: int | None = None, runs: int | None = None
) -> float:
    """FLOP/s of a square matrix product on one default device: the best of some runs.

    Args:
        dtype: of both factors and of the product.
        size: rows of the square; None takes 1024 on a CPU and 8192 elsewhere, which take well
            under a second.
        runs: how many are timed, after one that is not; None takes 20 on a CPU, which others may
            share, and 5 elsewhere.
    """
    usual_size, usual_runs = (1024, 20) if jax.default_backend() == "cpu" else (8192, 5)
    size, runs = size or usual_size, runs or usual_runs
    matrix = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    seconds = math.inf
    jax.block_until_ready(multiply(matrix, matrix))
    for _ in range(runs):
        began = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        seconds = min(seconds, time.perf_counter() - began)
    return 2 * size**3 / seconds


def model_flops(function: Callable[..., Any], *args: Any) -> Counter[str]:
    """Floating-point operations of the matrix products and convolutions in a function.

    By the name of the data type that goes in; ``.total()`` is their sum. The function is traced,
    not compiled or run, and ``args`` may be shapes. A multiplication and an addition are two
    operations. All else (normalisation, activations, the optimiser) is left out, as is usual.

    - A product of [m, k] and [k, n] is 2·m·n·k.
    - A convolution is 2·N·Ho·Wo·Kh·Kw·Cout·Cin/groups, where the kernel lies on padding too, and
      each of its two gradients is as much: the holes of a dilation do not count.
    - A scan counts as often as it runs. A while loop, whose length is not known before, counts
      once: several training steps in one dispatch are counted as one.
    - Where the algorithm depends on the platform (``jax.lax.platform_dependent``) the default one
      counts, whatever runs here: a faster one shows as utilization, not as less work.
    - Of the branches of other conditions, the most expensive counts.
    - What ``jax.checkpoint`` recomputes counts again.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> Counter[str]:
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        match equation.primitive.name:
            case "dot_general":
                total[str(_array(equation.invars[0]).dtype)] += _dot_general(equation)
            case "conv_general_dilated":
                total[str(_array(equation.invars[0]).dtype)] += _convolution(equation)
            case "convolution":  # ours: what it computes, not how
                native_form = partial(native, **equation.params)
                total += model_flops(native_form, *map(_array, equation.invars))
            case "cond":
                total += _chosen(equation)
            case _:
                times = _times(equation)
                for part in core.jaxprs_in_params(equation.params):
                    total += Counter({name: times * n for name, n in _flops(part).items()})
    return total


def _array(operand: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of what goes into an equation, or comes out of it."""
    return operand.aval


def _dot_general(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = _array(equation.invars[0]).shape, _array(equation.outvars[0]).shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    """Twice the products of an element of the image and one of the kernel that go into the result.

    Along an axis, ``to · stride + tap · dilation = at`` ties the places in result, kernel and image
    together, and any two fix the third. Forward, the image is the longest of the three, and there
    are kernel × result products. The gradients are convolutions of the same triples with the roles
    exchanged: the product of the two shortest is the same for all three.
    """
    numbers = equation.params["dimension_numbers"]
    image, kernel = (_array(operand).shape for operand in equation.invars)
    out = _array(equation.outvars[0]).shape
    batch, features, *axes = numbers.out_spec
    flops = 2 * out[batch] * out[features] * kernel[numbers.rhs_spec[1]]
    for at, tap, to in zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], axes, strict=True):
        flops *= math.prod(sorted((image[at], kernel[tap], out[to]))[:2])
    return flops


def _chosen(equation: core.JaxprEqn) -> Counter[str]:
    """The default among branches for platforms, the most expensive otherwise."""
    branches = [_flops(branch.jaxpr) for branch in equation.params["branches"]]
    platforms = equation.params.get("branches_platforms") or ()
    if None in platforms:
        return branches[platforms.index(None)]
    return max(branches, key=Counter.total)


def _times(equation: core.JaxprEqn) -> int:
    """How often the programs inside an equation run."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # shapes inside are those of one device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1
