"""Methods of optimisation: those of optax, with weight decay where a mask says so.

Each is ``(learning_rate, weight_decay, mask, *, …) -> optax.GradientTransformation``, as
``Optimizer.method`` takes it: the learning rate is a schedule, the mask gives a tree of booleans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from opsin.ranges import BelowOne, Count, NonNegative, Positive
from opsin.train.paths import flatten, unflatten
from opsin.train.schedules import Schedule

Mask = Callable[[PyTree], PyTree]
"""From parameters to a tree of booleans: which of them decay."""


class Method(Protocol):
    """What ``Optimizer.method`` takes."""

    def __call__(
        self, learning_rate: Schedule, weight_decay: float, mask: Mask, /
    ) -> optax.GradientTransformation:
        """The transformation of gradients to updates."""
        ...


def sgd(
    learning_rate: Schedule,
    weight_decay: float,
    mask: Mask,
    *,
    momentum: BelowOne = 0.9,
    nesterov: bool = True,
) -> optax.GradientTransformation:
    """SGD with (Nesterov) momentum; weight decay enters before the momentum, as L2 does."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov and momentum > 0),
    )


def adamw(
    learning_rate: Schedule,
    weight_decay: float,
    mask: Mask,
    *,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.999,
    eps: Positive = 1e-8,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101)."""
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def lion(
    learning_rate: Schedule,
    weight_decay: float,
    mask: Mask,
    *,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.99,
) -> optax.GradientTransformation:
    """Lion (Chen et al., 2023, arXiv:2302.06675)."""
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=mask)


def lamb(
    learning_rate: Schedule,
    weight_decay: float,
    mask: Mask,
    *,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.999,
    eps: Positive = 1e-6,
) -> optax.GradientTransformation:
    """LAMB (You et al., 2020, arXiv:1904.00962); what is not decayed has no trust ratio.

    The authors' code leaves that out as well: a bias that starts at 0 would grow by a factor of
    1 + rate in a step, and hardly move.
    """
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def lars(
    learning_rate: Schedule,
    weight_decay: float,
    mask: Mask,
    *,
    momentum: BelowOne = 0.9,
    trust_coefficient: Positive = 0.001,
) -> optax.GradientTransformation:
    """LARS as in SimCLR (Chen et al., 2020, arXiv:2002.05709); no decay, no trust ratio.

    The ratio of an array w with the gradient g is c ‖w‖ / ‖g + λw‖, of the decayed gradient. That
    of You et al., 2017, arXiv:1708.03888, eq. 6, is c ‖w‖ / (‖g‖ + λ‖w‖), which is smaller.
    """
    return optax.lars(
        learning_rate,
        weight_decay,
        weight_decay_mask=mask,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=mask,
        momentum=momentum,
    )


def scale_by_path(
    scales: tuple[tuple[str, float | tuple[float, ...]], ...],
) -> optax.GradientTransformation:
    """Multiplies each update by the factor of the first pattern found in its path, or by 1."""

    def scaled(path: str, update: jax.Array) -> jax.Array:
        scale = _first_found(scales, path, 1.0)
        if isinstance(scale, tuple):
            scale = jnp.asarray(scale, update.dtype).reshape(-1, *[1] * (update.ndim - 1))
        return update * scale

    return optax.stateless(
        lambda updates, _: unflatten(
            {path: scaled(path, x) for path, x in flatten(updates).items()}
        )
    )


def hold_by_path(shares: tuple[tuple[str, float], ...], steps: int) -> optax.GradientTransformation:
    """No updates for the share of the steps of the first pattern found in a path; others pass.

    Moments are not held: they have seen all gradients when the first update passes.
    """

    def begins(params: PyTree) -> PyTree:
        return unflatten({x: round(steps * _first_found(shares, x, 0)) for x in flatten(params)})

    def passes(first: int, step: Any) -> Any:
        return step >= first

    held: dict[Hashable, optax.GradientTransformation] = {
        first: optax.scale_by_schedule(partial(passes, first))
        for first in {round(steps * share) for _, share in (*shares, ("", 0))}
    }
    return optax.partition(held, begins)


def _first_found(values: Iterable[tuple[str, Any]], path: str, otherwise: Any) -> Any:
    return next((value for pattern, value in values if re.search(pattern, path)), otherwise)


class LookaheadState(NamedTuple):
    """Steps taken, the slow weights, and the state of what finds the fast ones."""

    taken: Array
    slow: PyTree
    fast: optax.OptState


@dataclass(frozen=True)
class Lookahead:
    """Slow weights, an average of the fast ones, from which these go on every few steps.

    Zhang et al., 2019, arXiv:1907.08610, algorithm 1, with the growing decay of Jordan, 2024,
    arXiv:2404.00498, section 3.4: every k-th of n steps, step t, slow ← d slow + (1 − d) fast with
    d = ``decay`` (t / n)^``power``, and fast ← slow. The run ends with the slow weights. What is no
    parameter, as the statistics of norms, stays that of the fast ones.

    Attributes:
        every: k, steps.
        decay: of the slow weights at the end; 1 − α of the first paper.
        power: of its growth; 0 keeps it constant.
    """

    every: Count = 5
    decay: BelowOne = 0.95**5
    power: NonNegative = 3.0

    def around(
        self, transform: optax.GradientTransformation, steps: int
    ) -> optax.GradientTransformation:
        """The transformation whose updates lead to the slow weights, in a run of ``steps``."""

        def init(params: PyTree) -> LookaheadState:
            slow = jax.tree.map(jnp.copy, params)  # donated buffers must not be shared
            return LookaheadState(jnp.zeros((), jnp.int32), slow, transform.init(params))

        def update(
            updates: PyTree, state: optax.OptState, params: PyTree = None
        ) -> tuple[PyTree, Any]:
            assert isinstance(state, LookaheadState)
            updates, fast = transform.update(updates, state.fast, params)
            count = state.taken + 1
            meets, last = count % self.every == 0, count == steps
            grown = 1 - self.decay * (count / max(steps, 1)) ** self.power
            share = jnp.where(meets, grown, 0.0)

            def averaged(slow: Array, param: Array, change: Array) -> Array:
                return slow + share.astype(slow.dtype) * (param + change - slow)

            def led(slow: Array, param: Array, change: Array) -> Array:
                return jnp.where(meets | last, slow - param, change)

            slow = jax.tree.map(averaged, state.slow, params, updates)
            return jax.tree.map(led, slow, params, updates), LookaheadState(count, slow, fast)

        return optax.GradientTransformation(init, update)
