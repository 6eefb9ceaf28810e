"""What a program on a CPU writes to memory once, instead of computing it wherever it is read."""

from __future__ import annotations

from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def materialized(x: Array) -> Array:
    """``x`` itself; a CPU program reads it from memory from here on, and so for its gradient.

    XLA puts what is cheap to compute into each operation that reads it. The sum that leaves a
    residual block is cheap, but it reads the sum before, and that the one before: every block of a
    stage would read all blocks before it. It takes ``train.compiler.compiler_options``: XLA drops
    barriers without. GPU and TPU programs are left as they are.
    """
    return materialized_p.bind(x)


materialized_p = Primitive("materialized")
materialized_p.def_impl(lambda x: x)
materialized_p.def_abstract_eval(lambda x: x)
ad.deflinear2(materialized_p, lambda cotangent, _: [materialized_p.bind(cotangent)])
batching.defvectorized(materialized_p)
mlir.register_lowering(materialized_p, mlir.lower_fun(lambda x: x, multiple_results=False))
mlir.register_lowering(
    materialized_p,
    mlir.lower_fun(lax.optimization_barrier, multiple_results=False),
    platform="cpu",
)
