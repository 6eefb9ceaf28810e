"""Losses of diffusion models and of scores, and the variational bound of their likelihood.

Weights multiply the error of x_0, whatever is predicted, so that equivalent predictions of
different targets have the same weighted loss.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Key, Num

from opsin.losses.regression import squared_error_loss
from opsin.losses.variational import bits_per_dim
from opsin.ops.diffusion.process import (
    Denoiser,
    Levels,
    Point,
    Process,
    Target,
    between,
    diffuse,
    interpolated_log_variance,
    over,
    posterior,
    reverse_log_variances,
    target_value,
)
from opsin.ops.diffusion.samplers import fold_keys, keyed_normal
from opsin.ops.gaussian import Normal, normal_kl
from opsin.ranges import Count, NonNegative, Positive, Steps

Weighting = Callable[[Levels], Any]


def denoising_loss(
    prediction: Float[Array, "batch *d"],
    x0: Float[Array, "batch *d"],
    noise: Float[Array, "batch *d"],
    levels: Levels,
    *,
    target: Target,
    weighting: Weighting | None = None,
) -> Float[Array, "batch"]:
    """The squared error of a prediction, a mean over all but the batch.

    Of "epsilon" without weights it is L_simple of Ho et al., 2020, arXiv:2006.11239, eq. 14.

    Args:
        prediction: from x_t = α x_0 + σ ε.
        x0: the data.
        noise: ε.
        levels: α and σ, [batch].
        target: what is predicted.
        weighting: from levels to weights of the error of x_0; if None, errors of the target itself
            have weight 1.

    Raises:
        ValueError: shapes that differ.
    """
    error = squared_error_loss(prediction, target_value(x0, noise, levels, target))
    loss = jnp.mean(error, axis=tuple(range(1, error.ndim)))
    if weighting is None:
        return loss
    return loss * weighting(levels) / target_weight(levels, target)


def target_weight(levels: Levels, target: Target) -> Any:
    """w, where the error of the target is √w times that of x_0: its square weighs w in x_0.

    For variance-preserving levels it is SNR for "epsilon" and SNR + 1 for "v" (Salimans & Ho, 2022,
    arXiv:2202.00512).
    """
    match target:
        case "epsilon":
            return _snr(levels)
        case "x0":
            return jnp.ones_like(levels.sigma)
        case "v":
            return ((levels.alpha**2 + levels.sigma**2) / levels.sigma) ** 2
        case "score":
            return _snr(levels) / levels.sigma**2


def epsilon_weight(levels: Levels) -> Any:
    """SNR, by which the errors of ε all weigh 1."""
    return _snr(levels)


def min_snr_weight(levels: Levels, *, gamma: NonNegative = 5.0) -> Any:
    """min(SNR, γ): Hang et al., 2023, arXiv:2303.09556."""
    return jnp.minimum(_snr(levels), gamma)


def p2_weight(levels: Levels, *, gamma: NonNegative = 1.0, k: NonNegative = 1.0) -> Any:
    """SNR / (k + SNR)^γ, which is 1 / (k + SNR)^γ of the errors of ε.

    Choi et al., 2022, arXiv:2204.00227.
    """
    snr = _snr(levels)
    return snr / (k + snr) ** gamma


def _snr(levels: Levels) -> Any:
    """Above 0, so that quotients of weights have their limits where there is no signal."""
    return jnp.maximum(levels.snr, 1e-30)


# The variational bound, in nats; `losses.variational.bits_per_dim` divides it.


def prior_loss(
    x0: Float[Array, "batch *d"], last: Levels, *, prior_std: Positive
) -> Float[Array, "batch"]:
    """L_T = KL(q(x_T|x_0) || N(0, prior_std² I)) in nats: what the noise at the end tells."""
    mean = over(last.alpha, x0) * x0.astype(jnp.float32)
    q = Normal(mean, jnp.log(jnp.broadcast_to(over(last.sigma, x0), x0.shape)))
    p = Normal(jnp.zeros_like(mean), jnp.full(x0.shape, np.log(prior_std), jnp.float32))
    return _sum(normal_kl(q, p))


def bound_loss(
    estimate: Float[Array, "batch *d"],
    x_t: Float[Array, "batch *d"],
    x0: Float[Array, "batch *d"],
    before: Levels,
    now: Levels,
    log_variance: Float[Array, "batch *#d"] | Float[Array, ""],
    *,
    bins: Count | None = 256,
) -> Float[Array, "batch"]:
    """A term of the variational bound in nats, of a step from t to s, summed over the dimensions.

    KL(q(x_s|x_t, x_0) || p(x_s|x_t)), or −log p(x_0|x_t) where σ_s is 0: Ho et al., eq. 5.

    Args:
        estimate: of x_0.
        x_t: α_t x_0 + σ_t ε.
        x0: the data.
        before: levels at s, [batch].
        now: levels at t, [batch].
        log_variance: of p, such as of ``ops.diffusion.schedules.Discrete.log_variances``.
        bins: values that data in [−1, 1] can have, evenly spaced: the last step has their
            probability (Ho et al., eq. 13). If None, it has a density.
    """
    q = posterior(before, now)
    mean_q, mean_p = (over(q.x, x0) * x_t + over(q.x0, x0) * x for x in (x0, estimate))
    log_std = 0.5 * over(log_variance, x0)
    last = over(before.sigma, x0) == 0
    # The branch that is not taken is finite too: its gradient times 0 would be NaN.
    log_std_q = 0.5 * jnp.log(jnp.where(last, 1.0, over(q.variance, x0)))
    kl = normal_kl(Normal(mean_q, log_std_q), Normal(mean_p, log_std))
    return _sum(jnp.where(last, -_log_prob(x0, mean_p, log_std, bins), kl))


def _log_prob(x: Array, mean: Array, log_std: Array, bins: int | None) -> Array:
    """log p(x) under a normal distribution: of its density, or of the bin that x is in."""
    rate = jnp.exp(-log_std)
    if bins is None:
        return norm.logpdf((x - mean) * rate) - log_std
    half = 1 / (bins - 1)
    centred = x - mean
    # The difference of two cumulative probabilities, taken in the lower tail, where neither is 1.
    edges = jnp.stack([half + centred, half - centred, -half - jnp.abs(centred)])
    below, above, lower = norm.logcdf(edges * rate)
    upper = jnp.minimum(below, above)
    inner = upper + jax.nn.log1mexp(upper - lower)
    return jnp.where(x < half - 1, below, jnp.where(x > 1 - half, above, inner))


def hybrid_loss(
    simple: Float[Array, "batch"],
    bound: Float[Array, "batch"],
    *,
    steps: Steps,
    dimensions: Count,
    weight: NonNegative = 0.001,
) -> Float[Array, "batch"]:
    """L_simple + λ L_vlb, which teaches the variance too.

    Nichol & Dhariwal, 2021, arXiv:2102.09672, eq. 16, with L_vlb in bits for each dimension.

    Args:
        simple: ``denoising_loss``.
        bound: ``bound_loss`` of an estimate behind ``stop_gradient``, at a time drawn of all steps.
        steps: of the schedule.
        dimensions: of x.
        weight: λ.
    """
    return simple + weight * steps * bits_per_dim(bound, dimensions)


class Bound(NamedTuple):
    """−log p(x_0) ≤ prior + Σ steps, in nats.

    Attributes:
        prior: ``prior_loss``.
        steps: ``bound_loss`` of each step, from noise to data.
    """

    prior: Float[Array, "batch"]
    steps: Float[Array, "steps batch"]

    @property
    def total(self) -> Float[Array, "batch"]:
        """The bound."""
        return self.prior + jnp.sum(self.steps, axis=0)


def variational_bound(
    denoiser: Denoiser,
    process: Process,
    x0: Float[Array, "batch *d"],
    keys: Key[Array, "batch"],
    *,
    times: Num[np.ndarray, "points"],
    variance: Literal["small", "large"] = "small",
    bins: Count | None = 256,
) -> Bound:
    """The whole bound, with one draw of x_t for each time: Ho et al., eq. 5.

    Args:
        denoiser: of the model; a variance that it learned goes before ``variance``.
        process: of the model.
        x0: the data.
        keys: one for each image.
        times: falling, to data without noise: ``process.times`` of the steps of p.
        variance: "small" is β̃, "large" is β, also in the last step, where others take β̃_2.
        bins: see ``bound_loss``.

    Raises:
        ValueError: times that end in noise, or another variance.
    """
    if variance not in ("small", "large"):
        raise ValueError(f'variance is "small" or "large", not {variance!r}')
    levels = process.levels(times)
    if levels.sigma[-1] != 0:
        raise ValueError(f"noise is left at time {times[-1]}, so this is no bound for the data")
    logs = reverse_log_variances(levels)

    def term(_: None, step: Any) -> tuple[None, Array]:
        n, t, now, before, (log_small, log_large) = step
        x_t = diffuse(x0, keyed_normal(fold_keys(keys, n), x0.shape), now)
        x0_hat, fraction = denoiser(x_t, Point(t, now))
        log_variance = jnp.asarray(log_small if variance == "small" else log_large)
        if fraction is not None:
            log_variance = interpolated_log_variance(fraction, log_small, log_large)
        return None, bound_loss(x0_hat, x_t, x0, before, now, log_variance, bins=bins)

    steps = (np.arange(len(times) - 1), times[:-1], *between(levels), logs)
    _, terms = lax.scan(term, None, jax.tree.map(jnp.asarray, steps))
    first = Levels(levels.alpha[0], levels.sigma[0])
    return Bound(prior_loss(x0, first, prior_std=process.prior_std), terms)


# Scores, s(x) ≈ ∇ log p(x).


def denoising_score_loss(
    score: Float[Array, "batch *d"],
    noise: Float[Array, "batch *d"],
    sigma: Float[Array, "batch"],
) -> Float[Array, "batch"]:
    """½ σ² ‖s(x + σ ε) + ε / σ‖²: Song & Ermon, 2019, arXiv:1907.05600, eq. 5 with λ = σ².

    Raises:
        ValueError: shapes that differ.
    """
    return 0.5 * _sum(squared_error_loss(over(sigma, score) * score, -noise))


def sliced_score_loss(
    score: Callable[[Float[Array, "batch *d"]], Float[Array, "batch *d"]],
    x: Float[Array, "batch *d"],
    projections: Float[Array, "draws batch *d"],
    *,
    exact_norm: bool = True,
) -> Float[Array, "batch"]:
    """vᵀ ∇(vᵀ s(x)) + ½ ‖s(x)‖², a mean over directions v; least where s is the score of x.

    Song et al., 2019, arXiv:1905.07088. It needs no noise, and no density but that of the data.

    Args:
        score: s, of each image by itself.
        x: the data.
        projections: v, with E[v vᵀ] = I: N(0, I) or signs.
        exact_norm: as above, with less variance; if not, ½ (vᵀ s)² is in the place of ½ ‖s‖².
    """

    def along(v: Array) -> Array:
        value, tangent = jax.jvp(score, (x,), (v,))
        norms = _sum(value**2) if exact_norm else _sum(v * value) ** 2
        return _sum(v * tangent) + 0.5 * norms

    return jnp.mean(lax.map(along, projections), axis=0)


def _sum(values: Array) -> Array:
    """Over all axes but the batch."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
