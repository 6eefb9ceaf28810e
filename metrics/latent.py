"""Metrics of latent variables: how many of them a model uses."""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import entr

from opsin.metrics.state import Metric, Sum, check_countable, valid_or_all

ACTIVE = 0.01
"""Variance over the examples above which a latent dimension counts as active."""


@flax.struct.dataclass
class ActiveUnits(Metric):
    """Sums of the posterior means of each latent dimension, and of their squares."""

    total: Sum  # [d], float32
    squares: Sum  # [d], float32
    count: Sum  # [], int32

    def activity(self) -> Float[np.ndarray, " d"]:
        """A_u = Var_x(E_q(u|x)[u]) of each dimension; NaN without examples."""
        count = int(self.count) or np.nan
        mean = np.asarray(self.total, np.float64) / count
        # The sums of a batch are rounded to float32: a variance may fall below 0 by that much.
        return np.maximum(np.asarray(self.squares, np.float64) / count - mean**2, 0.0)

    def compute(self) -> dict[str, float]:
        """How many dimensions have an activity above ``ACTIVE``; NaN without examples."""
        activity = self.activity()
        return {"": float(np.sum(np.where(np.isnan(activity), np.nan, activity > ACTIVE)))}


def active_units(
    means: Float[Array, "batch d"], valid: Bool[Array, "batch"] | None = None
) -> ActiveUnits:
    """The active units of Burda et al., 2016, arXiv:1509.00519, section 5.2.

    A dimension u is active if A_u = Cov_x(E_q(u|x)[u]), the variance of its posterior mean over the
    examples, is above 0.01. Variances are exact to about 1e-6 of the squared means.

    Args:
        means: of the posteriors q(z|x).
        valid: examples that count.

    Raises:
        ValueError: shapes that do not fit.
    """
    valid = valid_or_all(valid, means.shape[:1])
    means = jnp.where(valid[:, None], means.astype(jnp.float32), 0.0)
    return ActiveUnits(
        total=jnp.sum(means, axis=0),
        squares=jnp.sum(jnp.square(means), axis=0),
        count=jnp.sum(valid, dtype=jnp.int32),
    )


@flax.struct.dataclass
class CodeUsage(Metric):
    """How often each code of a codebook was chosen."""

    counts: Sum  # [codes], int32

    def compute(self) -> dict[str, float]:
        """``perplexity``, in [1, codes], and ``used_codes``; NaN without choices.

        The perplexity is exp(H) of the entropy H of the shares: codes as if used evenly.
        """
        counts = np.asarray(self.counts, np.float64)
        total = counts.sum() or np.nan
        return {
            "perplexity": float(np.exp(entr(counts / total).sum())),
            "used_codes": float(np.count_nonzero(counts)) if counts.any() else np.nan,
        }


@flax.struct.dataclass
class ClassUsage(CodeUsage):
    """How often a classifier saw each class in generated images."""

    def compute(self) -> dict[str, float]:
        """``class_perplexity``, in [1, classes], and ``classes_made``, as ``CodeUsage``."""
        found = super().compute()
        return {
            "class_perplexity": found["perplexity"],
            "classes_made": found["used_codes"],
        }


def code_usage(
    indices: Int[Array, "batch *places"], codes: int, valid: Bool[Array, "batch"] | None = None
) -> CodeUsage:
    """Counts the codes that were chosen.

    Args:
        indices: of the chosen codes; those outside the codebook are not counted.
        codes: how many there are.
        valid: examples that count, with all their places.

    Raises:
        ValueError: a mask that is not [batch], or more places than int32 can count.
    """
    check_countable(indices.shape)
    valid = valid_or_all(valid, indices.shape[:1])
    places = jnp.zeros(codes, jnp.int32).at[indices]
    weights = valid.reshape(-1, *[1] * (indices.ndim - 1)).astype(jnp.int32)
    weights = jnp.broadcast_to(weights, indices.shape)
    return CodeUsage(places.add(weights, mode="drop", wrap_negative_indices=False))
