"""Methods of optimisation: those of optax, with weight decay where a mask says so.

Each is ``(learning_rate, weight_decay, mask, *, …) -> optax.GradientTransformation``, as
``Optimizer.method`` takes it: the learning rate is a schedule, the mask gives a tree of booleans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import optax
from jaxtyping import PyTree

from opsin.ranges import BelowOne, Positive
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
