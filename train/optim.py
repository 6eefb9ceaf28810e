"""Optimisers: optax, with weight decay by path, schedules in steps, and learning rates by layer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from opsin.train.durations import DurationError, in_steps
from opsin.train.paths import flatten, unflatten

Schedule = Callable[[Any], Any]
Method = Callable[..., optax.GradientTransformation]


def sgd(
    learning_rate: Schedule,
    weight_decay: float,
    mask: Callable[[PyTree], PyTree],
    *,
    momentum: float = 0.9,
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
    mask: Callable[[PyTree], PyTree],
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101)."""
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def lion(
    learning_rate: Schedule,
    weight_decay: float,
    mask: Callable[[PyTree], PyTree],
    *,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """Lion (Chen et al., 2023, arXiv:2302.06675)."""
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=mask)


def lamb(
    learning_rate: Schedule,
    weight_decay: float,
    mask: Callable[[PyTree], PyTree],
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """LAMB (You et al., 2020, arXiv:1904.00962)."""
    return optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def lars(
    learning_rate: Schedule,
    weight_decay: float,
    mask: Callable[[PyTree], PyTree],
    *,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
) -> optax.GradientTransformation:
    """LARS (You et al., 2017, arXiv:1708.03888); what is not decayed has no trust ratio."""
    return optax.lars(
        learning_rate,
        weight_decay,
        weight_decay_mask=mask,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=mask,
        momentum=momentum,
    )


def constant(peak: float, steps: int, warmup: int) -> Schedule:
    """Linear warm-up over ``warmup`` steps, then ``peak``."""
    return _after_warmup(peak, warmup, optax.constant_schedule(peak))


def cosine(peak: float, steps: int, warmup: int, *, end: float = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine down to ``end · peak`` (Loshchilov & Hutter, 2017)."""
    return _after_warmup(
        peak, warmup, optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=end)
    )


def staircase(
    peak: float,
    steps: int,
    warmup: int,
    *,
    boundaries: tuple[float, ...] = (0.5, 0.75),
    factor: float = 0.1,
) -> Schedule:
    """Linear warm-up, then ``peak``, times ``factor`` at each boundary (shares of all steps)."""
    after = {round(fraction * steps) - warmup: factor for fraction in boundaries}
    return _after_warmup(peak, warmup, optax.piecewise_constant_schedule(peak, after))


def _after_warmup(peak: float, warmup: int, schedule: Schedule) -> Schedule:
    if warmup <= 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


@dataclass(frozen=True)
class Optimizer:
    """What turns gradients into updates.

    Attributes:
        method: ``(learning_rate, weight_decay, mask) -> optax.GradientTransformation``.
        learning_rate: the peak of the schedule.
        reference_batch: the batch that ``learning_rate`` is for: another one trains with as much
            more as it is larger (Goyal et al., 2017, arXiv:1706.02677, section 2.1). None: the rate
            is that of any batch.
        schedule: ``(peak, steps, warmup) -> step -> learning rate``.
        warmup: a duration, e.g. ``"5 epochs"``, of linear warm-up from zero; at most the run's.
        weight_decay: strength of the decay.
        no_decay: paths (regular expressions) that are not decayed. Only kernels are at all: not
            biases, scales of norms, positions or tokens, whatever their number of axes.
        clip_norm: largest global norm of the gradient, or None.
        freeze: paths that are not trained: no gradient is computed for them.
        lr_scale: ``(pattern, factor)`` pairs; the first pattern found in a path scales its updates.
            A tuple of factors scales along the leading axis, for layers stacked by ``nn.scan``.
    """

    method: Method = adamw
    learning_rate: float = 1e-3
    reference_batch: int | None = None
    schedule: Callable[..., Schedule] = cosine
    warmup: str = "0 steps"
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = ()
    clip_norm: float | None = None
    freeze: tuple[str, ...] = ()
    lr_scale: tuple[tuple[str, float | tuple[float, ...]], ...] = ()

    def build(
        self, steps: int, steps_per_epoch: Fraction, batch: int
    ) -> tuple[optax.GradientTransformation, Schedule]:
        """The transformation of gradients and its schedule, for ``steps`` steps of such batches.

        Raises:
            DurationError: the warm-up is longer than the run.
        """
        warmup = in_steps(self.warmup, steps_per_epoch)
        if warmup > steps > 0:
            raise DurationError(
                f"optimizer.warmup={self.warmup!r} is {warmup} steps, and the run has {steps}, in "
                "which the rate would not reach its value: make the warm-up shorter, such as "
                'optimizer.warmup="0 steps", or the run longer'
            )
        peak = self.learning_rate * (batch / self.reference_batch if self.reference_batch else 1)
        schedule = self.schedule(peak, steps, warmup)
        parts = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        parts.append(self.method(schedule, self.weight_decay, self.decay_mask))
        if self.lr_scale:
            parts.append(scale_by_path(self.lr_scale))
        return optax.chain(*parts), schedule

    def decay_mask(self, params: PyTree) -> PyTree:
        """True where weight decay acts: by name, since a scan gives biases two axes."""
        mask = {
            path: path.endswith("kernel") and not any(re.search(p, path) for p in self.no_decay)
            for path in flatten(params)
        }
        return unflatten(mask)


def scale_by_path(
    scales: tuple[tuple[str, float | tuple[float, ...]], ...],
) -> optax.GradientTransformation:
    """Multiplies each update by the factor of the first pattern found in its path, or by 1."""

    def factor(path: str, update: jax.Array) -> jax.Array | float:
        for pattern, scale in scales:
            if re.search(pattern, path):
                if isinstance(scale, tuple):
                    return jnp.asarray(scale, update.dtype).reshape(-1, *[1] * (update.ndim - 1))
                return scale
        return 1.0

    def update(updates: PyTree, state: optax.OptState, params: PyTree = None) -> tuple[PyTree, Any]:
        scaled = {path: leaf * factor(path, leaf) for path, leaf in flatten(updates).items()}
        return unflatten(scaled), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
