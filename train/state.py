"""The state of training: one explicit pytree, and how it moves."""

from __future__ import annotations

import re
import zlib

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from opsin.train.paths import flatten, unflatten


@flax.struct.dataclass
class State:
    """Everything that one step passes to the next.

    Attributes:
        step: steps taken so far, int32 [].
        params: all parameters, the frozen ones included.
        mutable: the other collections of variables, e.g. ``{"batch_stats": …}``; may be empty.
        opt_state: optimiser state of the parameters that are trained.
        ema: ``{"params": …, "mutable": …}``, their exponential moving average, or None.
        key: the run's key. It never changes: step *n* draws from ``stream(key, n, name)``.
    """

    step: Array
    params: PyTree
    mutable: PyTree
    opt_state: PyTree
    ema: PyTree
    key: Key[Array, ""]


def stream(key: Key[Array, ""], step: Array | int, name: str) -> Key[Array, ""]:
    """The key of one use of randomness (``name``) at one step: the same after any restart."""
    return jax.random.fold_in(jax.random.fold_in(key, step), zlib.crc32(name.encode()))


def ema_decay_at(step: Array | int, decay: float) -> Array:
    """Decay of the moving average at a step, warmed up: min(decay, (1 + step) / (10 + step)).

    Without the warm-up the average would remember the random initial parameters for
    1/(1 − decay) steps. The form is that of tf.train.ExponentialMovingAverage(num_updates=step).
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def ema_update(ema: PyTree, value: PyTree, decay: Array | float) -> PyTree:
    """``decay · ema + (1 − decay) · value`` leaf by leaf; what is not a float is copied."""

    def update(average: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        # In its own type: what is frozen may be kept in half precision, and does not move.
        return (average + (1 - decay) * (new - average)).astype(average.dtype)

    return jax.tree.map(update, ema, value)


def split_frozen(params: PyTree, freeze: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """Splits the parameters into (trained, frozen).

    Frozen are those in whose ``/``-joined path one of the regular expressions is found.
    """
    flat = flatten(params)
    frozen = {path for path in flat if any(re.search(pattern, path) for pattern in freeze)}
    return (
        unflatten({path: leaf for path, leaf in flat.items() if path not in frozen}),
        unflatten({path: leaf for path, leaf in flat.items() if path in frozen}),
    )


def keep_frozen(old: PyTree, new: PyTree, freeze: tuple[str, ...]) -> PyTree:
    """The new variables, but the old ones under frozen paths."""
    if not freeze:
        return new
    return join_frozen(split_frozen(new, freeze)[0], split_frozen(old, freeze)[1])


def join_frozen(trained: PyTree, frozen: PyTree) -> PyTree:
    """The inverse of ``split_frozen``."""
    return unflatten(flatten(trained) | flatten(frozen))
