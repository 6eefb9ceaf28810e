"""From unreduced losses to the one number that is minimised."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num


def weighted_mean(
    values: Float[Array, "*shape"],
    weights: Num[Array, "*shape"] | Bool[Array, "*shape"],
) -> Float[Array, ""]:
    """Σ w v / Σ w over all axes, in float32; 0 if no weight is left (all labels ignored).

    ``weighted_mean(loss, labels != ignore_label)`` is the mean over what counts. Under ``jit`` both
    sums run over the global batch, so it does not depend on how the counted entries are spread over
    devices.

    Args:
        values: losses; those of weight 0 take no part, not even a NaN.
        weights: numbers ≥ 0, or a mask.

    Raises:
        ValueError: shapes that differ.
    """
    if values.shape != weights.shape:
        raise ValueError(f"weights {weights.shape} must have the shape of values {values.shape}")
    weights = weights.astype(jnp.float32)
    values = jnp.where(weights == 0.0, 0.0, values.astype(jnp.float32))
    total = jnp.sum(weights)
    return jnp.sum(weights * values) / jnp.where(total == 0.0, 1.0, total)
