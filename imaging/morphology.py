"""Shapes in binary images: thinning."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def thin(image: Bool[Array, "batch height width"]) -> Bool[Array, "batch height width"]:
    """Peels True pixels off until lines of one pixel are left, connected and enclosing as before.

    Guo and Hall, 1989, "Parallel thinning with two-subiteration algorithms", Communications of the
    ACM 32(3), algorithm A1. Outside the image all is False.
    """
    height, width = image.shape[1:]
    # Of the eight neighbours, from the right one and counterclockwise.
    corners = ((1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2))

    def peel(image: Array, first: int) -> Array:
        padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1)))
        ring = [padded[:, y : y + height, x : x + width] for y, x in corners]
        ring = ring[first:] + ring[:first]
        beside, after, before = ring[::2], ring[1::2], ring[7:] + ring[1:7:2]
        following = beside[1:] + beside[:1]
        arms = _count(~x & (y | z) for x, y, z in zip(beside, after, following, strict=True))
        ahead = _count(x | y for x, y in zip(beside, after, strict=True))
        behind = _count(x | y for x, y in zip(beside, before, strict=True))
        width_left = jnp.minimum(ahead, behind)
        kept_side = (ring[1] | ring[2] | ~ring[7]) & ring[0]
        removed = (arms == 1) & (width_left >= 2) & (width_left <= 3) & ~kept_side
        return image & ~removed

    def peel_both_sides(state: tuple[Array, Array]) -> tuple[Array, Array]:
        thinner = peel(peel(state[0], 0), 4)
        return thinner, jnp.any(thinner != state[0])

    start = (image, jnp.array(True))
    return jax.lax.while_loop(lambda state: state[1], peel_both_sides, start)[0]


def _count(masks: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, (mask.astype(jnp.int8) for mask in masks))
