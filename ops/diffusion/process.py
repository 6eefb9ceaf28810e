"""Gaussian diffusion: q(x_t|x_0), the posterior of a step, and what a network predicts.

All processes have one form, x_t = α_t x_0 + σ_t ε with ε ~ N(0, I), and run from data at time 0
to noise. Where α² + σ² = 1 they are variance-preserving, and α² is the ᾱ of DDPM. A model is a
function ``(x [batch, ...], t [batch]) -> prediction [batch, ...]``; of what, its ``Target`` says.
The processes are in ``ops.diffusion.schedules`` and ``ops.diffusion.sde``.

What is known before compilation (grids of times, the coefficients of steps) is NumPy, float64;
what is traced is JAX, float32. Functions of times and levels take either.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from opsin.ranges import Positive

# What a network predicts: the noise, the data, v = α ε − σ x_0, or ∇ log p(x_t) = −ε / σ.
Target = Literal["epsilon", "x0", "v", "score"]

# How a network learns how much noise there is: by the time, up to 1000, or by its deviation.
Conditioning = Literal["time", "sigma"]

Model = Callable[[Float[Array, "batch ..."], Num[Array, "batch"]], Float[Array, "batch ..."]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Levels:
    """Signal and noise at some times: x_t = alpha x_0 + sigma ε."""

    alpha: Any
    sigma: Any

    @property
    def snr(self) -> Any:
        """The signal-to-noise ratio α² / σ²."""
        return (self.alpha / self.sigma) ** 2


@runtime_checkable
class Process(Protocol):
    """From data to noise."""

    @property
    def prior_std(self) -> float:
        """Deviation of the noise that generation starts from."""
        ...

    def levels(self, t: Any) -> Levels:
        """α and σ at times of any shape, as arrays of the library that ``t`` comes from."""
        ...

    def conditioning(self, t: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """The time as a network receives it: a number that says how much noise there is."""
        ...

    def times(self, steps: int) -> Num[np.ndarray, "{steps}+1"]:
        """A grid, even in time, from noise to data.

        Raises:
            ValueError: a number of steps that the process cannot have.
        """
        ...

    def karras_times(
        self, steps: int, rho: float = 7.0, high: float = 80.0
    ) -> Num[np.ndarray, "{steps}+1"]:
        """A grid that is even in (σ/α)^(1/ρ), then time 0: Karras et al., 2022, eq. 5.

        It starts where σ/α is ``high`` times the deviation of the prior, theirs, or at the end of a
        process of less noise. A variance-preserving one may go far beyond, to where x is all noise
        to six digits, and a step from there would be as long as all others together.

        Raises:
            ValueError: a number of steps that the process cannot have.
        """
        ...

    def time_of(self, ratio: Float[np.ndarray, "*shape"]) -> Num[np.ndarray, "*shape"]:
        """The times at which σ/α is this; the nearest, if time is discrete."""
        ...

    def draw_times(self, keys: Key[Array, "batch"]) -> Num[Array, "batch"]:
        """A time of training for each key, uniform."""
        ...


# q(x_t|x_0), and steps between two times.


def diffuse(
    x0: Float[Array, "batch *d"], noise: Float[Array, "batch *d"], levels: Levels
) -> Float[Array, "batch *d"]:
    """x_t = α x_0 + σ ε, a draw of q(x_t|x_0): Ho et al., 2020, eq. 4. Levels are [batch] or []."""
    return over(levels.alpha, x0) * x0 + over(levels.sigma, x0) * noise


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x · x_t + x0 · x_0, variance I), by its three coefficients."""

    x: Any
    x0: Any
    variance: Any


def transition_variance(before: Levels, now: Levels) -> Any:
    """Of q(x_t|x_s) = N(α_t/α_s x_s, variance I) for a time s before t: β_t, if they are adjacent.

    σ_t² − (α_t/α_s)² σ_s², which holds for every linear stochastic differential equation.
    """
    return now.sigma**2 - (now.alpha / before.alpha * before.sigma) ** 2


def posterior(before: Levels, now: Levels) -> Posterior:
    """q(x_s | x_t, x_0) for a time s before t: Ho et al., 2020, eq. 7, between any two times."""
    scale = now.alpha / before.alpha
    share = transition_variance(before, now) / now.sigma**2
    return Posterior(
        x=scale * before.sigma**2 / now.sigma**2,
        x0=before.alpha * share,
        variance=share * before.sigma**2,
    )


def reverse_log_variances(
    levels: Levels,
) -> tuple[Float[np.ndarray, "steps"], Float[np.ndarray, "steps"]]:
    """log β̃ and log β of the steps of a falling grid: the two choices of Ho et al., section 3.2.

    β̃, the variance of the posterior, is the right one if the data are a point, β if they are
    N(0, I). In the step to the data, where β̃ is 0, that of the step before it stands in its place,
    after Nichol & Dhariwal.

    Args:
        levels: at falling times, [steps + 1]; only the last may have σ = 0.
    """
    now, before = between(levels)
    small = posterior(before, now).variance
    large = transition_variance(before, now)
    if small[-1] == 0:
        small[-1] = small[-2] if len(small) > 1 else large[-1]
    return np.log(small), np.log(large)


def interpolated_log_variance(
    fraction: Float[Array, "*shape"], log_small: Any, log_large: Any
) -> Float[Array, "*shape"]:
    """v log β + (1 − v) log β̃, a variance that is learned: Nichol & Dhariwal, 2021, eq. 15."""
    return log_small + fraction * (log_large - log_small)


def between(levels: Levels) -> tuple[Levels, Levels]:
    """Where the steps of a grid [steps + 1] start, and where they end."""
    return (
        Levels(levels.alpha[:-1], levels.sigma[:-1]),
        Levels(levels.alpha[1:], levels.sigma[1:]),
    )


# Predictions. Each is a linear function of each other, given x_t.


def target_value(
    x0: Float[Array, "batch *d"], noise: Float[Array, "batch *d"], levels: Levels, target: Target
) -> Float[Array, "batch *d"]:
    """What a network that predicts ``target`` is to say of x_t = α x_0 + σ ε.

    v is α ε − σ x_0: Salimans & Ho, 2022, arXiv:2202.00512.
    """
    alpha, sigma = over(levels.alpha, x0), over(levels.sigma, x0)
    match target:
        case "epsilon":
            return noise
        case "x0":
            return x0
        case "v":
            return alpha * noise - sigma * x0
        case "score":
            return -noise / sigma
        case _:
            raise ValueError(f'a target is "epsilon", "x0", "v" or "score", not {target!r}')


def convert(
    prediction: Float[Array, "batch *d"],
    x_t: Float[Array, "batch *d"],
    levels: Levels,
    *,
    source: Target,
    target: Target,
) -> Float[Array, "batch *d"]:
    """A prediction of ``source``, as one of ``target``.

    "x0" of "epsilon" or "score" divides by α, "epsilon" of "x0" by σ. v is that of any process,
    not of variance-preserving ones alone.
    """
    if source == target:
        return prediction
    alpha, sigma = over(levels.alpha, x_t), over(levels.sigma, x_t)
    match source:
        case "epsilon":
            noise = prediction
            x0 = (x_t - sigma * noise) / alpha
        case "x0":
            x0 = prediction
            noise = (x_t - alpha * x0) / sigma
        case "v":
            power = alpha**2 + sigma**2
            x0 = (alpha * x_t - sigma * prediction) / power
            noise = (sigma * x_t + alpha * prediction) / power
        case "score":
            noise = -sigma * prediction
            x0 = (x_t - sigma * noise) / alpha
    return target_value(x0, noise, levels, target)


class Point(NamedTuple):
    """Times and their levels, each [] or [batch]; of a grid [steps + 1]."""

    t: Any
    levels: Levels


class Estimate(NamedTuple):
    """What a model says at a time: of the data, and, if it learned to, of the variance."""

    x0: Float[Array, "batch ..."]
    fraction: Float[Array, "batch ..."] | None


@dataclass(frozen=True)
class Denoiser:
    """A model as an estimator of the data x_0, whatever it predicts.

    Attributes:
        model: see the head of this file.
        target: what it predicts.
        clip: estimates of x_0 are held in [−clip, clip]; not if None.
        learned_variance: whether the last axis of what the model gives is twice as long as that of
            x, and its second half v of ``interpolated_log_variance``.
    """

    model: Model
    target: Target
    clip: Positive | None = None
    learned_variance: bool = False

    def __call__(self, x: Float[Array, "batch ..."], point: Point) -> Estimate:
        """The estimate of x_0, float32."""
        prediction = self.model(x, jnp.broadcast_to(point.t, x.shape[:1])).astype(jnp.float32)
        fraction = None
        if self.learned_variance:
            prediction, fraction = jnp.split(prediction, 2, axis=-1)
        x0 = convert(prediction, x, point.levels, source=self.target, target="x0")
        return Estimate(x0 if self.clip is None else jnp.clip(x0, -self.clip, self.clip), fraction)


def array_library(t: Any) -> Any:
    """``jax.numpy`` for arrays of JAX, traced or not; NumPy for the rest."""
    return jnp if isinstance(t, jax.Array) else np


def over(coefficient: Any, x: Array) -> Array:
    """Coefficients [] or [batch], in float32 and with axes of size 1 for the rest of x."""
    coefficient = jnp.asarray(coefficient, jnp.float32)
    return jnp.expand_dims(coefficient, tuple(range(coefficient.ndim, x.ndim)))
