"""Vectors as directions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_length(x: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
    """Vectors divided by their Euclidean length, float32, however long or short they are.

    The zero vector has no direction: it stays zero, with gradient 0. Near it gradients grow as one
    over the length.
    """
    x = x.astype(jnp.float32)
    # The direction is that of x times any constant; this one keeps squares from over- and
    # underflow.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    known = largest != 0.0  # a NaN is not zero, and stays
    x = x / jnp.where(known, largest, 1.0)
    squares = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return jnp.where(known, x * jax.lax.rsqrt(jnp.where(known, squares, 1.0)), 0.0)
