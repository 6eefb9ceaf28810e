"""Mixtures of normal distributions: their diffusion is known in closed form."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from opsin.ops.diffusion.process import Denoiser, Process, Target, convert, over


@dataclass(frozen=True)
class Mixture:
    """Components of one deviation, and the perfect model of them: E[x_0|x_t], as its target."""

    process: Process
    weights: tuple[float, ...] = (1.0,)
    means: tuple[tuple[float, ...], ...] = ((0.5,),)
    std: float = 0.6
    target: Target = "epsilon"

    def __call__(self, x, t):
        levels = self.process.levels(t)
        alpha, sigma = (over(level, x) for level in (levels.alpha, levels.sigma))
        variance = alpha**2 * self.std**2 + sigma**2
        distances = x[:, None] - alpha[:, None] * jnp.asarray(self.means)  # [b, k, d]
        logits = jnp.log(jnp.asarray(self.weights)) - jnp.sum(distances**2, -1) / (2 * variance)
        estimates = jnp.asarray(self.means) + (alpha * self.std**2 / variance)[:, None] * distances
        x0 = jnp.sum(jax.nn.softmax(logits)[..., None] * estimates, axis=1)
        return convert(x0, x, levels, source="x0", target=self.target)

    @property
    def denoiser(self) -> Denoiser:
        return Denoiser(self, self.target)

    def at(self, t) -> "Mixture":
        """The marginal of a time."""
        levels = self.process.levels(np.asarray(t))
        return replace(
            self,
            means=tuple(map(tuple, levels.alpha * np.asarray(self.means))),
            std=float(np.sqrt((levels.alpha * self.std) ** 2 + levels.sigma**2)),
        )

    def log_prob(self, x):
        logs = stats.norm.logpdf(np.asarray(x)[:, None], np.asarray(self.means), self.std).sum(-1)
        return special.logsumexp(logs, axis=1, b=self.weights)

    def cdf(self, x):
        """Of the first dimension."""
        first = np.asarray(self.means)[:, 0]
        return np.dot(stats.norm.cdf(np.asarray(x)[..., None], first, self.std), self.weights)

    def mean(self):
        return np.dot(self.weights, self.means)

    def covariance(self):
        centred = np.asarray(self.means) - self.mean()
        spread = np.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return spread + self.std**2 * np.eye(len(spread))


def two_in_plane(process, target: Target = "epsilon") -> Mixture:
    return Mixture(process, (0.3, 0.7), ((-1.0, 0.4), (0.8, -0.2)), 0.25, target)
