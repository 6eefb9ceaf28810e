"""Samplers that correct x at each noise by Langevin dynamics."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Key

from opsin.ops.diffusion.process import Denoiser, Point, Process, between, convert
from opsin.ops.diffusion.samplers import (
    Ancestral,
    Forgetful,
    Sampler,
    State,
    fold_keys,
    keyed_normal,
)
from opsin.ranges import DepthOrZero, NonNegative, Positive


class _LangevinPlan(NamedTuple):
    size: Any
    predictor: Any


@dataclass(frozen=True)
class AnnealedLangevin(Forgetful):
    """Langevin dynamics at each noise, one after the other: Song & Ermon, 2019, algorithm 1.

    arXiv:1907.05600. x ← x + a/2 ∇log p(x) + √a ε with a = step_size σ². For processes that add
    noise and do not scale the data, such as ``ops.diffusion.sde.VarianceExploding``: from one noise
    level to the next nothing moves. The model is evaluated ``corrections`` times at each time, and
    once at the end.

    Attributes:
        step_size: ε / σ_L² of the paper, where it is 0.2 (2e-5 / 0.01²). From σ to the next, x must
            have time to follow: steps contract by about 1 − step_size / 2.
        corrections: T of the paper, steps at each noise.

    Raises:
        ValueError: a step size that is not positive, or fewer than one correction.
    """

    step_size: Positive = 0.2
    corrections: DepthOrZero = 100

    def __post_init__(self):
        if not self.step_size > 0 or self.corrections < 1:
            raise ValueError(
                "step_size must be positive and corrections at least 1, not "
                f"{self.step_size} and {self.corrections}"
            )

    def plan(self, process: Process, grid: Point) -> _LangevinPlan:
        """See ``Sampler``."""
        now, before = between(grid.levels)
        if not np.allclose(now.alpha, 1):
            raise ValueError(
                "annealed Langevin dynamics need a process that does not scale the data, such as "
                "VarianceExploding: choose another sampler"
            )
        return _LangevinPlan(0.5 * self.step_size * now.sigma**2, before.sigma == 0)

    def step(
        self,
        denoise: Denoiser,
        state: State,
        point: Point,
        plan: _LangevinPlan,
        keys: Key[Array, "batch"],
    ) -> State:
        """See ``Sampler``."""
        x = _langevin(denoise, state.x, point, plan.size, self.corrections, keys)

        def denoised() -> State:
            x0 = denoise(x, point).x0
            return State(x0, x0)

        return lax.cond(plan.predictor, denoised, lambda: State(x, state.x0))


@dataclass(frozen=True)
class PredictorCorrector:
    """Steps of a sampler, each after Langevin steps at its noise: Song et al., 2021.

    arXiv:2011.13456. x ← x + e ∇log p(x) + √2e ε with e = 2 (r σ)². In theirs the ratio of the
    norms of ε and ∇log p(x) stands for σ, which it is for images of many pixels: in few dimensions
    a score near 0 would make a step of any length, and means over a batch would have an image
    depend on the others. Each step evaluates the model ``corrections`` times beside the predictor.

    Attributes:
        predictor: any sampler.
        corrections: Langevin steps at each time.
        snr: r.

    Raises:
        ValueError: negative numbers.
    """

    predictor: Sampler = field(default_factory=Ancestral)
    corrections: DepthOrZero = 1
    snr: NonNegative = 0.16

    def __post_init__(self):
        if not (self.corrections >= 0 and self.snr >= 0):
            raise ValueError(
                f"corrections and snr must not be negative, not {self.corrections}, {self.snr}"
            )

    @property
    def remembers(self) -> bool:
        """As the predictor."""
        return self.predictor.remembers

    def plan(self, process: Process, grid: Point) -> _LangevinPlan:
        """See ``Sampler``."""
        size = 2 * (self.snr * grid.levels.sigma[:-1]) ** 2
        return _LangevinPlan(size, self.predictor.plan(process, grid))

    def step(
        self,
        denoise: Denoiser,
        state: State,
        point: Point,
        plan: _LangevinPlan,
        keys: Key[Array, "batch"],
    ) -> State:
        """See ``Sampler``."""
        x = _langevin(denoise, state.x, point, plan.size, self.corrections, keys)
        return self.predictor.step(denoise, State(x, state.x0), point, plan.predictor, keys)


LANGEVIN, PREDICTOR_CORRECTOR = AnnealedLangevin(), PredictorCorrector()
"""To be named on the command line, as those of ``ops.diffusion.samplers``."""


def _langevin(
    denoise: Denoiser,
    x: Array,
    point: Point,
    size: Array,
    corrections: int,
    keys: Key[Array, "batch"],
) -> Array:
    """x ← x + e ∇log p(x) + √2e ε, e being the size."""

    def correct(i: Array, x: Array) -> Array:
        x0 = denoise(x, point).x0
        score = convert(x0, x, point.levels, source="x0", target="score")
        return x + size * score + jnp.sqrt(2 * size) * keyed_normal(fold_keys(keys, i + 1), x.shape)

    return lax.fori_loop(0, corrections, correct, x)
