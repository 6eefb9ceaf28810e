"""Several training steps in one call of the device."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from opsin.train.state import State
from opsin.train.step import Fetch, Metrics, Step


def make_dispatch(step: Step, fetch: Fetch, length: int) -> Callable:
    """Up to ``length`` steps as one program: ``(state, store, items, count) -> (state, metrics)``.

    ``fetch(store, item)`` makes the batch of one step; ``items`` holds ``length`` of them along a
    leading axis, of which the first ``count`` are used: one program serves the rests too. Metrics
    come back with the same leading axis.
    """

    def take(state: State, store: PyTree, items: PyTree, index: Array | int):
        return step(state, fetch(store, jax.tree.map(lambda x: x[index], items)))

    def one(state: State, store: PyTree, items: PyTree, count: Array) -> tuple[State, Metrics]:
        state, metrics = take(state, store, items, 0)
        return state, jax.tree.map(lambda m: m[None], metrics)

    def several(state: State, store: PyTree, items: PyTree, count: Array) -> tuple[State, Metrics]:
        def body(index: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, history = carry
            state, metrics = take(state, store, items, index)
            return state, jax.tree.map(lambda h, m: h.at[index].set(m), history, metrics)

        shapes = jax.eval_shape(lambda: take(state, store, items, 0)[1])
        history = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, history))

    return one if length == 1 else several
