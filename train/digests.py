"""A digest of each array, the same however it lies on devices, to tell one that was damaged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

BLOCK = 2**14
"""Places of an axis at a time, whose odd numbers stay in the caches of a core."""


def digests(tree: PyTree) -> dict[str, str]:
    """Path → digest of every array, 16 hexadecimal digits; all processes call it alike.

    It is the sum of the words of the array, each times an odd number that its place gives, modulo
    2⁶⁴. So it is the sum of those of its slices, in any order; a change of bits in one word always
    changes it, and any other change does but for 1 in 2³² cases or fewer. Read on the host, while
    the loop waits: at 3 GB a second or so, and an array of one long axis at a sixth of that. It is
    copied from its device as it is when it is saved.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    mine = np.array([_of_array(leaf) for _, leaf in leaves], np.uint64)
    if jax.process_count() > 1:  # in halves: jax has no 64 bits
        halves = np.asarray(multihost_utils.process_allgather(mine.view(np.uint32)))
        mine = halves.view(np.uint64).reshape(-1, len(leaves)).sum(axis=0, dtype=np.uint64)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {path: f"{value:016x}" for path, value in zip(paths, mine.tolist(), strict=True)}


def _of_array(array: jax.Array) -> int:
    """The part of an array's digest that is of slices of this process, each counted once in all."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    total = 0
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            places = [
                part.indices(size)[:2] for part, size in zip(shard.index, array.shape, strict=True)
            ]
            total += _of_slice(np.asarray(shard.data), places)
    return total % 2**64


def _of_slice(values: np.ndarray, places: list[tuple[int, int]]) -> int:
    words = values.view(f"u{values.dtype.itemsize}")
    for axis, (first, end) in reversed([*enumerate(places)]):
        blocks = [
            np.einsum(
                "...i,i->...",
                words[..., at : at + BLOCK],
                _odd_numbers(axis, first + at, min(first + at + BLOCK, end)),
            )
            for at in range(0, max(end - first, 1), BLOCK)
        ]
        words = np.asarray(np.sum(blocks, axis=0, dtype=np.uint64))
    return int(words)


def _odd_numbers(axis: int, first: int, end: int) -> np.ndarray:
    """Those of the places of an axis: SplitMix64 (Steele et al., 2014, OOPSLA), made odd."""
    x = np.arange(first, end, dtype=np.uint64) + np.uint64((axis + 1) << 48)
    for shift, factor in (
        (0, 0x9E3779B97F4A7C15),
        (30, 0xBF58476D1CE4E5B9),
        (27, 0x94D049BB133111EB),
    ):
        x = (x ^ (x >> np.uint64(shift)) if shift else x) * np.uint64(factor)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)
