"""The largest singular value of a kernel, followed by power iteration from step to step.

Miyato et al., 2018, "Spectral normalization for generative adversarial networks", arXiv:1802.05957.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from opsin.ranges import Depth


def spectral_norm(
    kernel: Float[Array, "*inputs outputs"], u: Float[Array, " outputs"], *, iterations: Depth = 1
) -> tuple[Float[Array, ""], Float[Array, " outputs"]]:
    """σ = vᵀ W u and the new u, after so many rounds v ← W u / ‖W u‖, u ← Wᵀ v / ‖Wᵀ v‖.

    W is the kernel as a matrix [inputs, outputs]: a convolution's, [height, width, inputs,
    outputs], has a row for each number in a window. Its norm is not that of the convolution, which
    is at most √(height · width) times as large.

    σ comes near the largest singular value from below; kept from one training step to the next, u
    follows it with one round a step (appendix A). The gradient of σ is v uᵀ, with u and v held
    constant. The new u has none. A kernel of zeros has σ = 0, which is not to be divided by, and
    leaves u as it is, so that a later kernel starts from it.

    Args:
        kernel: of a dense layer or a convolution, outputs last.
        u: from the last call; at first, a draw from a normal distribution. Its length is free,
            unless it is 0: then all that follows is.
        iterations: rounds, at least 1.

    Returns:
        σ and a u of length 1, float32.

    Raises:
        ValueError: a kernel of fewer than two axes, u of another size, or fewer than one round.
    """
    if kernel.ndim < 2 or u.shape != kernel.shape[-1:]:
        raise ValueError(
            f"u {u.shape} is not one number for each output of a kernel {kernel.shape}"
        )
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")
    matrix = kernel.astype(jnp.float32).reshape(-1, kernel.shape[-1])
    constant = lax.stop_gradient(matrix)

    u, v = lax.stop_gradient(u.astype(jnp.float32)), jnp.zeros(len(matrix))
    for _ in range(iterations):
        v = _unit(_product(constant, u), v)
        u = _unit(_product(v, constant), u)
    return _product(v, _product(matrix, u)), u


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _unit(vector: Array, otherwise: Array) -> Array:
    """The vector at length 1; another one if it has no direction."""
    length = jnp.linalg.norm(vector)
    return jnp.where(length > 0.0, vector / length, otherwise)
