"""Means, sums and positions over the replicas that share a batch, for code that ``pmap`` may map.

Under ``jax.jit`` a batch is global, and whatever is computed over it is computed over all of it.
Under ``jax.pmap``, ``jax.shard_map`` or ``jax.vmap`` a function sees the part of one replica only.
Where the mapped axis is called ``REPLICAS``, the functions below act over it, so that batch norm,
codebooks and losses that compare examples use the whole batch. Elsewhere they return what they get.

JAX knows the axes that are mapped wherever it traces a function: nothing has to be passed down, and
what ``jit`` has cached outside of the axis is traced anew inside.

To use a loss or a model of this house under a mapped axis of your own, give the axis this name::

    jax.pmap(step, axis_name=REPLICAS)
    jax.shard_map(step, mesh=jax.make_mesh((8,), (REPLICAS,)), ...)
"""

import jax
from jax import lax
from jaxtyping import Array, Key, PyTree

REPLICAS = "replicas"
"""The name of a mapped axis whose members hold the parts of one batch."""


def is_mapped() -> bool:
    """Whether what is being traced runs once for each replica."""
    try:
        lax.axis_size(REPLICAS)
    except NameError:  # no axis of this name is bound
        return False
    return True


def size() -> int:
    """The number of replicas; 1 if nothing is mapped."""
    return lax.axis_size(REPLICAS) if is_mapped() else 1


def index() -> Array | int:
    """Which of the replicas this is; 0 if nothing is mapped."""
    return lax.axis_index(REPLICAS) if is_mapped() else 0


def mean(tree: PyTree) -> PyTree:
    """The mean over the replicas."""
    return lax.pmean(tree, REPLICAS) if is_mapped() else tree


def total(tree: PyTree) -> PyTree:
    """The sum over the replicas."""
    return lax.psum(tree, REPLICAS) if is_mapped() else tree


def gather(x: Array, axis: int = 0) -> Array:
    """The rows of all replicas, concatenated along an axis; gradients return to their replica."""
    return lax.all_gather(x, REPLICAS, axis=axis, tiled=True) if is_mapped() else x


def own_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """A key that no other replica has, from one that all share."""
    return jax.random.fold_in(key, lax.axis_index(REPLICAS)) if is_mapped() else key


def shared_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """The key of the first replica."""
    if not is_mapped():
        return key
    keys = lax.all_gather(jax.random.key_data(key), REPLICAS)
    return jax.random.wrap_key_data(keys[0], impl=jax.random.key_impl(key))
