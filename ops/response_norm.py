"""Local response normalisation: channels that inhibit their neighbours."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def response_norm(
    x: Float[Array, "*places channels"],
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
) -> Float[Array, "*places channels"]:
    """Each value over a power of the squares of its neighbours among the channels.

    y_i = x_i / (k + α Σ_j x_j²)^β, where j runs over the ``size`` channels around i, or over those
    of them that there are. Krizhevsky, Sutskever and Hinton, 2012, "ImageNet classification with
    deep convolutional neural networks", section 3.3, whose constants are the defaults.

    α multiplies the sum, as in the paper. Caffe and PyTorch's ``LocalResponseNorm`` divide it by
    ``size`` first, at the edges too: their α = 5e-4 of five channels is 1e-4 here. Their k is 1.

    Args:
        x: the channels are the last axis.
        size: of the neighbourhood, an odd number.
        k: added to the sum; above 0, so that a pixel of zeros has a gradient.
        alpha: factor of the sum, at least 0.
        beta: the power, at least 0.

    Returns:
        Of the type of ``x``; the sum is float32 whatever that is.

    Raises:
        ValueError: an option out of its range.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is an odd number of channels around each; got {size}")
    if not (k > 0 and alpha >= 0 and beta >= 0):
        raise ValueError(f"k is above 0, alpha and beta not below; got {k}, {alpha} and {beta}")
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    ones = (1,) * (x.ndim - 1)
    margins = [*((0, 0) for _ in ones), (size // 2, size // 2)]
    windows = (*ones, size), (*ones, 1), margins
    sums = lax.reduce_window(jnp.square(wide), wide.dtype.type(0), lax.add, *windows)
    return (wide * (k + alpha * sums) ** -beta).astype(x.dtype)
