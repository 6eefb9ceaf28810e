"""How gradients become updates: a method and a schedule, with decay and learning rates by path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

import optax
from jaxtyping import PyTree

from opsin.ranges import Count, NonNegative, Positive, Probability
from opsin.train.durations import check_ends, in_steps
from opsin.train.methods import Lookahead, Method, adamw, hold_by_path, scale_by_path
from opsin.train.paths import flatten, unflatten
from opsin.train.schedules import MakesSchedule, Schedule, cosine


@dataclass(frozen=True)
class Optimizer:
    """How gradients become updates.

    Attributes:
        method: ``(learning_rate, weight_decay, mask) -> optax.GradientTransformation``.
        learning_rate: the peak of the schedule.
        reference_batch: the batch that ``learning_rate`` is for; the rate is scaled linearly for
            others (Goyal et al., 2017, arXiv:1706.02677, section 2.1). None scales nothing.
        schedule: ``(peak, steps, warmup) -> step -> learning rate``.
        warmup: a duration, e.g. ``"5 epochs"``, of linear warm-up from zero; at most the run's.
        weight_decay: strength of the decay.
        no_decay: paths (regular expressions) that are not decayed. Only kernels are at all: not
            biases, scales of norms, positions or tokens, whatever their number of axes.
        clip_norm: largest global norm of the gradient, or None.
        freeze: paths that are not trained: no gradient is computed for them.
        unfreeze: ``(pattern, share)`` pairs: the first pattern found in a path holds it for this
            share of the steps (Howard & Ruder, 2018, arXiv:1801.06146), but no statistics of norms.
        lr_scale: ``(pattern, factor)`` pairs; the first pattern found in a path scales its updates.
            A tuple of factors scales along the leading axis, for layers stacked by ``nn.scan``.
        lookahead: slow weights that every few steps take the place of the fast ones, or None.
    """

    method: Method = adamw
    learning_rate: NonNegative = 1e-3
    reference_batch: Count | None = None
    schedule: MakesSchedule = cosine
    warmup: str = "0 steps"
    weight_decay: NonNegative = 0.0
    no_decay: tuple[str, ...] = ()
    clip_norm: Positive | None = None
    freeze: tuple[str, ...] = ()
    unfreeze: tuple[tuple[str, Probability], ...] = ()
    lr_scale: tuple[tuple[str, NonNegative | tuple[NonNegative, ...]], ...] = ()
    lookahead: Lookahead | None = None

    def build(
        self, steps: int, steps_per_epoch: Fraction, batch: int
    ) -> tuple[optax.GradientTransformation, Schedule]:
        """The transformation of gradients and its schedule, for ``steps`` steps of such batches.

        Raises:
            DurationError: the warm-up is longer than the run.
        """
        warmup = in_steps(self.warmup, steps_per_epoch)
        check_ends("optimizer.warmup", self.warmup, warmup, steps, "the learning rate")
        scale = batch / self.reference_batch if self.reference_batch else 1
        schedule = self.schedule(self.learning_rate * scale, steps, warmup)
        parts = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        parts.append(self.method(schedule, self.weight_decay, self.decay_mask))
        parts += [scale_by_path(self.lr_scale)] if self.lr_scale else []
        parts += [hold_by_path(self.unfreeze, steps)] if self.unfreeze else []
        transform = optax.chain(*parts)
        return self.lookahead.around(transform, steps) if self.lookahead else transform, schedule

    def decay_mask(self, params: PyTree) -> PyTree:
        """True where weight decay acts: by name, for a scan gives biases two axes."""
        mask = {
            path: path.endswith("kernel") and not any(re.search(p, path) for p in self.no_decay)
            for path in flatten(params)
        }
        return unflatten(mask)
