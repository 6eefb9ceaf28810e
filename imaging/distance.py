"""Distances on the grid of pixels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def distance_transform(mask: Bool[Array, "height width"]) -> Float[Array, "height width"]:
    """Euclidean distance from each pixel to the nearest True one, in pixels, exact.

    It is 0 where the mask is True, and inf everywhere if it is True nowhere. ``jax.vmap`` makes it
    a batch. First along the columns, in one sweep each way; then along the rows, as the lowest of
    the parabolas that stand on them (Felzenszwalb & Huttenlocher, 2012, Distance Transforms of
    Sampled Functions, section 2.1), all compared: O(height · width²) time, O(width²) memory for a
    mask.

    Returns:
        float32 distances; all before the last square root are whole numbers.
    """
    height, width = mask.shape
    far = height + width  # more than any distance in the image
    y = jnp.arange(height)[:, None]
    above = y - jax.lax.cummax(jnp.where(mask, y, -far), axis=0)
    below = jax.lax.cummin(jnp.where(mask, y, 2 * far), axis=0, reverse=True) - y
    in_column = jnp.minimum(jnp.minimum(above, below), far) ** 2  # [H, W]
    x = jnp.arange(width)
    between = (x[:, None] - x) ** 2  # [W, W]
    # Row by row: all at once would hold [H, W, W].
    squared = jax.lax.map(lambda row: jnp.min(row[:, None] + between, axis=0), in_column)
    return jnp.where(squared < far**2, jnp.sqrt(squared.astype(jnp.float32)), jnp.inf)
