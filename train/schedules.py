"""Learning rates by step, each ``(peak, steps, warmup) -> step -> learning rate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import optax

from opsin.ranges import NonNegative, Probability

Schedule = Callable[[Any], Any]


class MakesSchedule(Protocol):
    """What ``Optimizer.schedule`` takes."""

    def __call__(self, peak: float, steps: int, warmup: int, /) -> Schedule:
        """The schedule of a run, whose warm-up is part of its steps."""
        ...


def constant(peak: float, steps: int, warmup: int) -> Schedule:
    """Linear warm-up over ``warmup`` steps, then ``peak``."""
    return _after_warmup(peak, warmup, optax.constant_schedule(peak))


def linear(
    peak: float, steps: int, warmup: int, *, start: Probability = 0.0, end: Probability = 0.0
) -> Schedule:
    """Linear warm-up from ``start · peak``, then linearly down to ``end · peak``."""
    down = optax.linear_schedule(peak, end * peak, max(steps - warmup, 1))
    return _after_warmup(peak, warmup, down, start)


def cosine(peak: float, steps: int, warmup: int, *, end: Probability = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine down to ``end · peak`` (Loshchilov & Hutter, 2017)."""
    return _after_warmup(
        peak, warmup, optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=end)
    )


def staircase(
    peak: float,
    steps: int,
    warmup: int,
    *,
    boundaries: tuple[Probability, ...] = (0.5, 0.75),
    factor: NonNegative = 0.1,
) -> Schedule:
    """Linear warm-up, then ``peak``, times ``factor`` at each boundary (shares of all steps)."""
    after = {round(fraction * steps) - warmup: factor for fraction in boundaries}
    return _after_warmup(peak, warmup, optax.piecewise_constant_schedule(peak, after))


def _after_warmup(peak: float, warmup: int, schedule: Schedule, start: float = 0.0) -> Schedule:
    if warmup <= 0:
        return schedule
    up = optax.linear_schedule(start * peak, peak, warmup)
    return optax.join_schedules([up, schedule], [warmup])
