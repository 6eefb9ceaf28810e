"""Samplers of diffusion models: how a step goes from a time to the next.

A sampler is a frozen dataclass of options, which ``ops.diffusion.sampling.sample`` runs. What its
steps multiply by is computed before anything is compiled, in float64. Image i draws from its own
key and from nothing else, so that it is the same in any batch.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from opsin.ops.diffusion.process import (
    Denoiser,
    Point,
    Process,
    between,
    interpolated_log_variance,
    posterior,
    reverse_log_variances,
    transition_variance,
)
from opsin.ranges import NonNegative, Probability, Unbounded


class State(NamedTuple):
    """x_t, and the last estimate of x_0."""

    x: Float[Array, "batch ..."]
    x0: Float[Array, "batch ..."]


@runtime_checkable
class Sampler(Protocol):
    """How a step goes from a time to the next."""

    @property
    def remembers(self) -> bool:
        """Whether a step needs the one before, so that no step can be undone and repeated."""
        ...

    def plan(self, process: Process, grid: Point) -> Any:
        """What the steps need, arrays [steps, ...] of float64.

        Raises:
            ValueError: a grid that this sampler cannot follow.
        """
        ...

    def step(
        self, denoise: Denoiser, state: State, point: Point, plan: Any, keys: Key[Array, "batch"]
    ) -> State:
        """One step, from its part of the plan and a key for each image."""
        ...


# Steps that are linear: a x + b x_0 + c (the x_0 before) + d ε.


class Coefficients(NamedTuple):
    """Of each step, [steps]; None where all are 0."""

    x: Any
    x0: Any
    before: Any = None
    noise: Any = None


class Forgetful:
    """A sampler whose steps do not depend on earlier ones."""

    @property
    def remembers(self) -> bool:
        """See ``Sampler``."""
        return False


class _Linear(Forgetful):
    def step(
        self,
        denoise: Denoiser,
        state: State,
        point: Point,
        plan: Coefficients,
        keys: Key[Array, "batch"],
    ) -> State:
        """See ``Sampler``."""
        x0 = denoise(state.x, point).x0
        x = plan.x * state.x + plan.x0 * x0
        if plan.before is not None:
            x += plan.before * state.x0
        if plan.noise is not None:
            x += plan.noise * keyed_normal(keys, x.shape)
        return State(x, x0)


class _AncestralPlan(NamedTuple):
    linear: Coefficients
    log_small: Any
    log_large: Any
    goes_on: Any


@dataclass(frozen=True)
class Ancestral(Forgetful):
    """Draws of p(x_s|x_t), the posterior with the estimate in place of x_0.

    Ho et al., 2020, arXiv:2006.11239, algorithm 2. A model that learned its variance
    (``Denoiser.learned_variance``) is taken at its word, and ``variance`` has no effect.

    Attributes:
        variance: "small" is β̃, that of the posterior; "large" is β.

    Raises:
        ValueError: another variance.
    """

    variance: Literal["small", "large"] = "small"

    def __post_init__(self):
        if self.variance not in ("small", "large"):
            raise ValueError(f'variance is "small" or "large", not {self.variance!r}')

    def plan(self, process: Process, grid: Point) -> _AncestralPlan:
        """See ``Sampler``."""
        now, before = between(grid.levels)
        q = posterior(before, now)
        large = np.where(before.sigma == 0, 0.0, transition_variance(before, now))
        variance = q.variance if self.variance == "small" else large
        logs = reverse_log_variances(grid.levels)
        return _AncestralPlan(
            Coefficients(q.x, q.x0, noise=np.sqrt(variance)), *logs, before.sigma > 0
        )

    def step(
        self,
        denoise: Denoiser,
        state: State,
        point: Point,
        plan: _AncestralPlan,
        keys: Key[Array, "batch"],
    ) -> State:
        """See ``Sampler``."""
        x0, fraction = denoise(state.x, point)
        std = plan.linear.noise
        if fraction is not None:
            log_variance = interpolated_log_variance(fraction, plan.log_small, plan.log_large)
            std = jnp.where(plan.goes_on, jnp.exp(0.5 * log_variance), 0.0)
        mean = plan.linear.x * state.x + plan.linear.x0 * x0
        return State(mean + std * keyed_normal(keys, mean.shape), x0)


@dataclass(frozen=True)
class Ddim(_Linear):
    """Song et al., 2021, arXiv:2010.02502, eqs. 12 and 16.

    Attributes:
        eta: η, from 0 (a function of x_T) to 1 (``Ancestral`` with the small variance, in law).

    Raises:
        ValueError: η outside of [0, 1].
    """

    eta: Probability = 0.0

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], not {self.eta}")

    def plan(self, process: Process, grid: Point) -> Coefficients:
        """See ``Sampler``."""
        now, before = between(grid.levels)
        variance = self.eta**2 * posterior(before, now).variance
        x = np.sqrt(np.maximum(before.sigma**2 - variance, 0.0)) / now.sigma
        noise = np.sqrt(variance) if self.eta else None
        return Coefficients(x, before.alpha - now.alpha * x, noise=noise)


@dataclass(frozen=True)
class DpmSolver2M(_Linear):
    """DPM-Solver++(2M): Lu et al., 2022, arXiv:2211.01095; of order 2, without draws.

    The first step is of order 1, as is one that ends without noise.
    """

    @property
    def remembers(self) -> bool:
        """The estimate of the step before."""
        return True

    def plan(self, process: Process, grid: Point) -> Coefficients:
        """See ``Sampler``."""
        now, before = between(grid.levels)
        with np.errstate(divide="ignore"):  # ±inf where there is no signal or no noise
            log_ratio = np.log(grid.levels.alpha / grid.levels.sigma)
        h = np.diff(log_ratio)
        second = np.zeros_like(h)  # 1 / 2r, with r = h_{i-1} / h_i
        inner = np.arange(len(h)) > 0
        inner &= np.isfinite(h)
        second[inner] = h[inner] / (2 * h[np.flatnonzero(inner) - 1])
        x0 = before.alpha - now.alpha * before.sigma / now.sigma  # -α (exp(-h) - 1)
        return Coefficients(before.sigma / now.sigma, (1 + second) * x0, before=-second * x0)


# Steps that are not.


class _HeunPlan(NamedTuple):
    churned: Point
    extra: Any
    next: Point
    corrects: Any


@dataclass(frozen=True)
class Heun(Forgetful):
    """Heun's method in x / α against σ / α: Karras et al., 2022, arXiv:2206.00364, algorithm 2.

    Of order 2, with two evaluations a step, but one in a step that ends without noise. Made for
    ``karras_times``. With a churn of 0 it is their algorithm 1 and draws nothing. In discrete time
    the noise that is added makes the nearest level that the schedule has.

    Attributes:
        churn: S_churn.
        churn_min: S_tmin, of σ / α.
        churn_max: S_tmax.
        noise_scale: S_noise.

    Raises:
        ValueError: a negative churn or scale.
    """

    churn: NonNegative = 0.0
    churn_min: NonNegative = 0.0
    churn_max: Unbounded = float("inf")
    noise_scale: NonNegative = 1.0

    def __post_init__(self):
        if not (self.churn >= 0 and self.noise_scale >= 0):
            raise ValueError(
                f"churn and noise_scale must not be negative, not {self.churn}, {self.noise_scale}"
            )

    def plan(self, process: Process, grid: Point) -> _HeunPlan:
        """See ``Sampler``."""
        now, before = between(grid.levels)
        if now.alpha[0] == 0:
            raise ValueError("Heun's method needs some signal at the first time")
        t, ratio = grid.t[:-1], now.sigma / now.alpha
        churned = Point(t, now)
        if self.churn:
            most = np.minimum(self.churn / len(t), np.sqrt(2) - 1)
            gamma = np.where((self.churn_min <= ratio) & (ratio <= self.churn_max), most, 0.0)
            # Not beyond the first time, which may be the last that the model knows.
            later = process.time_of(np.minimum(ratio * (1 + gamma), ratio[0]))
            later = np.where(gamma > 0, np.maximum(later, t), t)
            churned = Point(later, process.levels(later))
        noisy = churned.levels.sigma / churned.levels.alpha
        extra = self.noise_scale * np.sqrt(np.maximum(noisy**2 - ratio**2, 0.0))
        return _HeunPlan(churned, extra, Point(grid.t[1:], before), before.sigma > 0)

    def step(
        self,
        denoise: Denoiser,
        state: State,
        point: Point,
        plan: _HeunPlan,
        keys: Key[Array, "batch"],
    ) -> State:
        """See ``Sampler``."""
        x = state.x / point.levels.alpha
        if self.churn:
            x += plan.extra * keyed_normal(keys, x.shape)
        noisy, less = (p.levels.sigma / p.levels.alpha for p in (plan.churned, plan.next))
        x0 = denoise(plan.churned.levels.alpha * x, plan.churned).x0
        slope = (x - x0) / noisy
        euler = x + (less - noisy) * slope

        def corrected() -> Array:
            x0 = denoise(plan.next.levels.alpha * euler, plan.next).x0
            return x + (less - noisy) * 0.5 * (slope + (euler - x0) / less)

        x = lax.cond(plan.corrects, corrected, lambda: euler)
        return State(plan.next.levels.alpha * x, x0)


ANCESTRAL, DDIM, DPM_SOLVER, HEUN = Ancestral(), Ddim(), DpmSolver2M(), Heun()
"""To be named on the command line: ``task.sampling.sampler=ops.diffusion.samplers:HEUN``."""


def fold_keys(keys: Key[Array, "batch"], data: int | Int[Array, ""]) -> Key[Array, "batch"]:
    """``jax.random.fold_in`` of each key."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def keyed_normal(keys: Key[Array, "batch"], shape: tuple[int, ...]) -> Float[Array, "batch ..."]:
    """N(0, I) of shape [batch, ...], each image by its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)
