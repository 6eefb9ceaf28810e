"""Variational bounds of log p(x) in nats, their gradients, and the losses of vector quantisation.

Bounds are to be maximised: the loss is minus a bound. All are unreduced: sum over the latent
dimensions, and average over the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, PyTree

from opsin.losses.regression import squared_error_loss
from opsin.ranges import NonNegative


def elbo(
    log_likelihood: Float[Array, "*batch"],
    kl: Float[Array, "*batch"],
    *,
    beta: NonNegative | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch"]:
    """log p(x|z) − β KL(q(z|x) || p(z)), a bound of log p(x) for β ≥ 1.

    Kingma & Welling, 2014, arXiv:1312.6114, eq. 3; β of Higgins et al., 2017, "beta-VAE", eq. 4.

    Args:
        log_likelihood: log p(x|z) of one draw z, summed over the pixels.
        kl: summed over the latent dimensions, or one draw of log q(z|x) − log p(z).
        beta: β, a number or what ``linear_warmup`` gives.

    Raises:
        ValueError: shapes that differ.
    """
    if log_likelihood.shape != kl.shape:
        raise ValueError(f"kl {kl.shape} must have the shape of {log_likelihood.shape} likelihoods")
    return log_likelihood - beta * kl


def linear_warmup(step: int | Int[Array, ""], steps: int) -> Float[Array, ""]:
    """β from 0 at step 0 to 1 at ``steps``, where it stays; 1 throughout if ``steps`` is 0.

    The warm-up of Sønderby et al., 2016, arXiv:1602.02282.

    Raises:
        ValueError: ``steps`` below 0.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, not {steps}")
    return jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0) if steps else jnp.ones(())


def free_bits(
    kl: Float[Array, "batch groups"], *, nats: NonNegative
) -> Float[Array, "batch groups"]:
    """The divergences, but the constant λ for all examples in groups whose mean is below it.

    Its mean over the batch, then, is max(λ, mean KL) of each group, as is the gradient: Kingma et
    al., 2016, arXiv:1606.04934, eq. 15. Which groups are free depends on the whole batch: an
    example's entry depends on the others, and microbatches do not add up to the batch. Sum over
    the groups for ``elbo``, which is then no bound for each single example.

    Args:
        kl: of each example and latent dimension, or of each group of them, summed.
        nats: λ ≥ 0, per group.

    Raises:
        ValueError: a negative λ, or divergences that are not [batch, groups].
    """
    if nats < 0.0 or kl.ndim != 2:
        raise ValueError(f"free bits take λ ≥ 0 and kl [batch, groups], not {nats} and {kl.shape}")
    return jnp.where(jnp.mean(kl, axis=0) > nats, kl, nats)


def importance_bound(log_weights: Float[Array, "*draws"], axis: int = 0) -> Float[Array, "*batch"]:
    """log 1/k Σ_i w_i over the k draws of an axis, w = p(x, z) / q(z|x): the bound of the IWAE.

    Burda et al., 2016, arXiv:1509.00519, eq. 8. With k = 1 it is one draw
    of the ELBO; it rises with k towards log p(x), which it estimates when k is large. A draw with
    log w = −inf weighs nothing; if all are −inf, so is the bound, with gradient 0.
    """
    log_weights = log_weights.astype(jnp.float32)
    impossible = jnp.all(jnp.isneginf(log_weights), axis=axis, keepdims=True)
    # What goes in is masked too: the slope of a logarithm at 0, times zero, is NaN.
    bound = jax.nn.logmeanexp(jnp.where(impossible, 0.0, log_weights), axis=axis)
    return jnp.where(jnp.squeeze(impossible, axis), -jnp.inf, bound)


def doubly_reparameterized_bound(
    latents: PyTree[Float[Array, "k batch ..."]],
    log_weights: Callable[[PyTree[Float[Array, "k batch ..."]]], Float[Array, "k batch"]],
) -> Float[Array, "batch"]:
    """``importance_bound`` with the doubly reparameterised gradient of the encoder.

    With w̃ = w / Σ w, the gradient is Σ w̃² ∂log w/∂z ∂z/∂φ for the encoder's parameters φ, and
    Σ w̃ ∂log w/∂θ for all others: Tucker et al., 2018, arXiv:1810.04152, IWAE-DReG. Both have the
    expectation of the plain gradient. The first varies less, does not drown in noise as k grows,
    and vanishes where q(z|x) is the exact posterior; with k = 1 it is that of Roeder et al., 2017,
    arXiv:1703.09194. It takes two passes through the decoder, which the compiler merges.

    Args:
        latents: draws z = T(ε, φ) through which gradients flow to the encoder.
        log_weights: from the draws to log p(x, z) − log q(z|x), called twice: it must not draw at
            random. q's parameters must be behind ``stop_gradient``, so that φ acts through the
            draws alone. Where they depend on other draws (several stochastic layers), they must be
            computed inside from those that come in, with φ stopped: stopping the parameters
            themselves would lose a part of ∂log w/∂z.
    """
    values = log_weights(latents).astype(jnp.float32)
    shares = jnp.where(jnp.isneginf(values), 0.0, jax.nn.softmax(values, axis=0))
    shares = jax.lax.stop_gradient(shares)

    def weigh(draws: Array) -> Array:
        axes = tuple(range(shares.ndim, draws.ndim))
        return _scale_gradient(draws, jnp.expand_dims(shares, axes).astype(draws.dtype))

    return importance_bound(log_weights(jax.tree.map(weigh, latents)))


@jax.custom_vjp
def _scale_gradient(x: Array, factor: Array) -> Array:
    """x, whose gradient is multiplied by the factor; the compiler sees nothing new forwards."""
    del factor
    return x


_scale_gradient.defvjp(
    lambda x, factor: (x, factor),
    lambda factor, gradient: (factor * gradient, jnp.zeros_like(factor)),
)


def bits_per_dim(nats: Float[Array, "*shape"], dimensions: int) -> Float[Array, "*shape"]:
    """A negative log-likelihood in bits for each of ``dimensions`` = height · width · channels.

    Of a probability of bytes. A density of images in [0, 1] that were dequantised from bytes bounds
    that probability with 8 bits more: its unit is 256 values wide.

    Raises:
        ValueError: ``dimensions`` below 1.
    """
    if dimensions < 1:
        raise ValueError(f"dimensions must be at least 1, not {dimensions}")
    return nats / (dimensions * np.log(2.0))


def full_normal_kl(
    mean_q: Float[Array, "d"],
    cov_q: Float[Array, "d d"],
    mean_p: Float[Array, "d"],
    cov_p: Float[Array, "d d"],
) -> Float[Array, ""]:
    """KL(N(mean_q, cov_q) || N(mean_p, cov_p)); NaN if a covariance is not positive definite.

    ½ (tr(C_p⁻¹ C_q) + (μ_p − μ_q)ᵀ C_p⁻¹ (μ_p − μ_q) − d + log |C_p| / |C_q|). ``jax.vmap`` makes
    it a batch; of independent dimensions it is the sum of ``ops.gaussian.normal_kl``.
    """
    root_q, root_p = jnp.linalg.cholesky(cov_q), jnp.linalg.cholesky(cov_p)
    spread = solve_triangular(root_p, root_q, lower=True)
    shift = solve_triangular(root_p, mean_p - mean_q, lower=True)
    log_ratio = jnp.sum(jnp.log(jnp.diagonal(root_p)) - jnp.log(jnp.diagonal(root_q)))
    squares = jnp.sum(jnp.square(spread)) + jnp.sum(jnp.square(shift))
    return 0.5 * (squares - len(mean_q)) + log_ratio


def codebook_loss(
    z: Float[Array, "*batch d"], codes: Float[Array, "*batch d"]
) -> Float[Array, "*batch"]:
    """(sg(z) − e)², which moves the codes to the vectors that chose them; mean over d.

    van den Oord et al., 2017, arXiv:1711.00937, second term of eq. 3. There it is the sum over d;
    the mean does not grow with d.

    Args:
        z: what the encoder gives; no gradient flows to it.
        codes: the nearest codes e, as they are in the codebook.

    Raises:
        ValueError: shapes that differ.
    """
    return jnp.mean(squared_error_loss(codes, jax.lax.stop_gradient(z)), axis=-1)


def commitment_loss(
    z: Float[Array, "*batch d"], codes: Float[Array, "*batch d"]
) -> Float[Array, "*batch"]:
    """(z − sg(e))², which keeps the encoder near the codes; mean over d.

    van den Oord et al., 2017, arXiv:1711.00937, third term of eq. 3, without its factor β = 0.25;
    mean and arguments as for ``codebook_loss``, but the gradient flows to ``z`` alone.

    Raises:
        ValueError: shapes that differ.
    """
    return jnp.mean(squared_error_loss(z, jax.lax.stop_gradient(codes)), axis=-1)
