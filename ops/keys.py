"""Random keys of the rows of a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def keys_at(key: Key[Array, ""], places: Int[Array, " rows"]) -> Key[Array, " rows"]:
    """One key for each place, whatever the others are: ``fold_in(key, place)``."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, places)


def row_keys(
    key: Key[Array, ""], rows: int, *, first: Int[Array, ""] | int = 0
) -> Key[Array, " rows"]:
    """One key for each row of a batch, whatever their number: ``fold_in(key, first + row)``."""
    return keys_at(key, first + jnp.arange(rows))
