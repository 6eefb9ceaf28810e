"""Durations as people write them: ``"20 epochs"`` or ``"500 steps"``, converted once."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

from opsin.errors import UserError


class DurationError(UserError):
    """A duration that cannot be read."""


def in_steps(duration: str, steps_per_epoch: Fraction) -> int:
    """The number of optimiser steps in a duration.

    Args:
        duration: a number and a unit, such as ``"500 steps"``, ``"1 step"`` or ``"0.5 epochs"``.
        steps_per_epoch: examples in the training set over the global batch, exact.

    Raises:
        DurationError: if the text is anything else.
    """
    match = re.fullmatch(r"([0-9]{1,10}(?:\.[0-9]{1,10})?) (step|epoch)s?", duration)
    if match is None:
        raise DurationError(f"duration {duration!r}: write '20 epochs' or '500 steps'")
    amount, unit = Fraction(match[1]), match[2]
    if unit == "epoch":
        # A started step counts: two epochs never show an example less than twice.
        return math.ceil(amount * steps_per_epoch)
    if amount.denominator != 1:
        raise DurationError(f"duration {duration!r}: steps are whole")
    return int(amount)


def check_ends(field: str, written: object, duration: int, steps: int, value: str) -> None:
    """Raises DurationError for what rises over a duration that does not end within the run.

    Args:
        field: that holds the duration, as it is overridden.
        written: what it holds.
        duration: the same in steps.
        steps: of the run; one of none trains nothing.
        value: what would not come to its own.
    """
    if duration > steps > 0:
        raise DurationError(
            f"{field}={written!r} is {duration} steps, and the run has {steps}, in which {value} "
            f"would not reach its value: make {field} shorter, or the run longer"
        )


class Every:
    """Every so many steps, and at the last one."""

    def __init__(self, name: str, interval: int, last: int):
        if interval < 1:
            raise DurationError(f"{name} is less than one step")
        self.interval, self.last = interval, last

    def __call__(self, step: int) -> bool:
        """Whether it is due after this step."""
        return step % self.interval == 0 or step == self.last

    def within(self, step: int, count: int) -> bool:
        """Whether one of the last ``count`` steps was due."""
        return step // self.interval > (step - count) // self.interval or step == self.last

    def next(self, step: int) -> int:
        """The next step after this one that is due."""
        return min((step // self.interval + 1) * self.interval, self.last)


class Cadence(NamedTuple):
    """After which steps a run logs, evaluates and saves."""

    log: Every
    evaluate: Every
    save: Every
