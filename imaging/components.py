"""Connected components of binary images."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def components(region: Bool[Array, "batch height width"]) -> Int[Array, "batch pixels"]:
    """The 4-connected components of each image, as one label a pixel, in row-major order.

    A pixel gets the index of the first pixel of its component, one outside the region its own.
    """
    batch, height, width = region.shape
    beyond = height * width
    along = jax.vmap(lambda values, indices: values[indices])

    def connect(state: tuple[Array, Array]) -> tuple[Array, Array]:
        labels = state[0]
        lowest = grid = jnp.where(region, labels.reshape(region.shape), beyond)
        for axis in (1, 2):
            for offset in (0, 2):
                sides = [(1, 1) if i == axis else (0, 0) for i in range(3)]
                padded = jnp.pad(grid, sides, constant_values=beyond)
                shifted = jax.lax.slice_in_dim(
                    padded, offset, offset + region.shape[axis], axis=axis
                )
                lowest = jnp.minimum(lowest, shifted)
        lowest = jnp.where(region, lowest, beyond).reshape(batch, beyond)
        lowest = jnp.minimum(lowest, labels)
        # Hook the tree that a pixel belongs to onto its lowest neighbour's, then flatten the trees.
        hooked = jax.vmap(lambda tree, low: tree.at[tree].min(low))(labels, lowest)
        hooked = jnp.minimum(hooked, lowest)
        hooked = along(hooked, hooked)
        return hooked, jnp.any(hooked != labels)

    own = jnp.broadcast_to(jnp.arange(beyond, dtype=jnp.int32), (batch, beyond))
    return jax.lax.while_loop(lambda state: state[1], connect, (own, jnp.array(True)))[0]
