"""A trained network as a program of StableHLO, which jax runs without Opsin.

    program = jax.export.deserialize(pathlib.Path("lenet.stablehlo").read_bytes())
    probabilities = program.call(images)  # uint8 [batch, height, width, channels]

Weights and preprocessing are inside. Other libraries that read StableHLO find the module in
``program.mlir_module()``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
"""One file serves all of them."""


def program_of(answer: Callable[[Array], Array], image: tuple[int, int, int]) -> bytes:
    """A function of images for any number of them at a time.

    Args:
        answer: from one image, uint8 [height, width, channels]. It is mapped over the batch, so
            that convolutions are XLA's own: a form of ours is chosen by the size of a batch.
        image: height, width and channels.

    Returns:
        The program, as ``jax.export.deserialize`` reads it.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image), jnp.uint8)
    exported = export.export(jax.jit(jax.vmap(answer)), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())
