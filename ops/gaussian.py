"""Normal distributions with independent dimensions: densities, draws and divergences, in nats.

Everything is computed in float32, whatever type comes in.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normal:
    """N(mean, diag(exp(2 log_std))) over the last axis; the axes before it are free."""

    mean: Float[Array, "*#batch #d"]
    log_std: Float[Array, "*#batch #d"]


def standard_normal(shape: tuple[int, ...]) -> Normal:
    """N(0, I) for values of this shape."""
    return Normal(mean=jnp.zeros(shape), log_std=jnp.zeros(shape))


def normal_log_prob(x: Float[Array, "*#batch d"], normal: Normal) -> Float[Array, "*batch"]:
    """log p(x), summed over the last axis; the leading axes broadcast."""
    return jnp.sum(_log_densities(x, normal), axis=-1)


def normal_log_ratio(
    x: Float[Array, "*#batch d"], q: Normal, p: Normal
) -> Float[Array, "*batch d"]:
    """log q(x) − log p(x) of each dimension: for x from q, a draw of ``normal_kl``."""
    return _log_densities(x, q) - _log_densities(x, p)


def _log_densities(x: Array, normal: Normal) -> Array:
    mean, log_std = normal.mean.astype(jnp.float32), normal.log_std.astype(jnp.float32)
    standardised = (x.astype(jnp.float32) - mean) * jnp.exp(-log_std)
    return norm.logpdf(standardised) - log_std


def normal_sample(
    key: Key[Array, ""], normal: Normal, *, shape: tuple[int, ...] | None = None
) -> Float[Array, "*shape"]:
    """mean + std ε with ε ~ N(0, I), which is differentiable in the mean and the deviation.

    Kingma & Welling, 2014, arXiv:1312.6114, section 2.4.

    Args:
        key: of the draw.
        normal: what is drawn from.
        shape: of the result, to which mean and deviation broadcast; their own if None.
    """
    mean, log_std = normal.mean.astype(jnp.float32), normal.log_std.astype(jnp.float32)
    if shape is None:
        shape = jnp.broadcast_shapes(mean.shape, log_std.shape)
    return mean + jnp.exp(log_std) * jax.random.normal(key, shape)


def normal_kl(q: Normal, p: Normal) -> Float[Array, "*batch d"]:
    """KL(q || p) of each dimension; sum over the last axis for that of the vectors.

    ½ (σ_q² / σ_p² − 1) − log(σ_q / σ_p) + ½ (μ_q − μ_p)² / σ_p², of shapes that broadcast.
    With p = N(0, I) it is Kingma & Welling, 2014, arXiv:1312.6114, appendix B.
    """
    log_ratio = q.log_std.astype(jnp.float32) - p.log_std.astype(jnp.float32)
    distance = q.mean.astype(jnp.float32) - p.mean.astype(jnp.float32)
    shift = distance * jnp.exp(-p.log_std.astype(jnp.float32))
    # expm1 and not exp: near 0 the divergence is of second order, which exp loses to rounding.
    return 0.5 * jnp.expm1(2.0 * log_ratio) - log_ratio + 0.5 * jnp.square(shift)
