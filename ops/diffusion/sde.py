"""Diffusion as stochastic differential equations, and the ordinary ones of the same marginals.

Song et al., 2021, "Score-based generative modeling through stochastic differential equations",
arXiv:2011.13456. dx = f(t) x dt + g(t) dw, t in [0, 1], from data to noise. The steps of
``ops.diffusion.samplers`` hold for all of them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from opsin.ops.diffusion.process import Denoiser, Levels, Point, array_library, convert, over
from opsin.ops.diffusion.schedules import Continuous
from opsin.ranges import Positive


@dataclass(frozen=True)
class VarianceExploding(Continuous):
    """The limit of NCSN: f = 0, σ(t) = σ_min (σ_max / σ_min)^t, g² = dσ² / dt.

    At time 0 the noise is σ_min: what is generated are data with that much noise, which the last
    step of ``ops.diffusion.sampling.sample`` takes away.

    Attributes:
        sigma_min: of the least noise, too small to be seen.
        sigma_max: of the most, about the greatest distance between two images of the data.
        start: see ``Continuous``.
    """

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0
    start: Positive = 1e-5

    @property
    def prior_std(self) -> float:
        """σ_max."""
        return self.sigma_max

    def levels(self, t: Any) -> Levels:
        """α = 1, σ(t)."""
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        return Levels(array_library(t).ones_like(sigma), sigma)

    def conditioning(self, t: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """σ(t) itself."""
        return self.levels(t).sigma


@dataclass(frozen=True)
class VariancePreserving(Continuous):
    """The limit of DDPM with ``linear_betas``: f = −β/2, g² = β, and β(t) linear in t.

    Attributes:
        beta_min: β(0).
        beta_max: β(1).
        start: see ``Continuous``; 1e-3 is theirs for samples, 1e-5 for likelihoods.
    """

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    start: Positive = 1e-3

    def levels(self, t: Any) -> Levels:
        """α = exp(−½ ∫β), σ² = 1 − α²."""
        library, integral = array_library(t), _integral(self.beta_min, self.beta_max, t)
        return Levels(library.exp(-0.5 * integral), library.sqrt(-library.expm1(-integral)))


@dataclass(frozen=True)
class SubVariancePreserving(Continuous):
    """As ``VariancePreserving``, with less variance all the way: g² = β (1 − exp(−2 ∫β)).

    Attributes:
        beta_min: β(0).
        beta_max: β(1).
        start: see ``Continuous``.
    """

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    start: Positive = 1e-3

    def levels(self, t: Any) -> Levels:
        """α = exp(−½ ∫β), σ = 1 − α²."""
        library, integral = array_library(t), _integral(self.beta_min, self.beta_max, t)
        return Levels(library.exp(-0.5 * integral), -library.expm1(-integral))


def _integral(beta_min: float, beta_max: float, t: Any) -> Any:
    """∫β from 0 to t."""
    return beta_min * t + 0.5 * (beta_max - beta_min) * t**2


class Rates(NamedTuple):
    """f and g² of dx = f x dt + g dw, at some times."""

    drift: Float[Array, "*shape"]
    square: Float[Array, "*shape"]


def rates(process: Continuous, t: Float[Array, "*shape"]) -> Rates:
    """The equation that has these levels: f = α'/α, g² = (σ²)' − 2 f σ², for times above 0."""
    levels, slopes = jax.jvp(process.levels, (t,), (jnp.ones_like(t),))
    drift = slopes.alpha / levels.alpha
    return Rates(drift, 2 * levels.sigma * (slopes.sigma - drift * levels.sigma))


def probability_flow(
    denoiser: Denoiser,
    process: Continuous,
    x: Float[Array, "batch ..."],
    t: Float[Array, "batch"],
) -> Float[Array, "batch ..."]:
    """dx/dt = f x − ½ g² ∇log p_t(x), whose solutions have the marginals of the process: eq. 13."""
    point = Point(t, process.levels(t))
    score = convert(denoiser(x, point).x0, x, point.levels, source="x0", target="score")
    drift, square = rates(process, t)
    return over(drift, x) * x - 0.5 * over(square, x) * score
