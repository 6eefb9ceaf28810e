"""XLA's options for the programs of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def jit_here(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit`` with the options for the platform of here, for what runs outside a program."""
    return jax.jit(function, compiler_options=compiler_options(jax.default_backend()))


def compiler_options(platform: str) -> dict[str, Any]:
    """XLA's options for a program on ``"cpu"``, ``"gpu"`` or ``"tpu"``.

    On a CPU:

    - ``ops.convolution`` writes its operands to memory behind barriers. XLA drops barriers before
      it fuses, unless that pass is left out.
    - Of the operations that XLA may hand to YNNPACK, it keeps products and sums: YNNPACK runs a
      convolution between fewer than 96 channels on one core.
    """
    if platform != "cpu":
        return {}
    return {
        "xla_disable_hlo_passes": "cse_barrier_expander",
        "xla_cpu_experimental_ynn_fusion_type": ",".join(
            f"LIBRARY_FUSION_TYPE_{operation}" for operation in ("DOT", "REDUCE")
        ),
    }


def quick_options(platform: str) -> dict[str, Any]:
    """XLA's options for a program that runs once, and is compiled for longer than it runs.

    Where most optimizations are off anyway, they stay off: this would turn some on again.
    """
    off = jax.config.read("jax_disable_most_optimizations")
    return {} if platform != "cpu" or off else {"xla_backend_optimization_level": 1}
