"""Maxout: an activation that is learned, as the largest of a few linear pieces.

Goodfellow, Warde-Farley, Mirza, Courville and Bengio, 2013, "Maxout networks", arXiv:1302.4389.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.ranges import Count


def maxout(
    x: Float[Array, "*places channels"], pieces: int
) -> Float[Array, "*places channels//{pieces}"]:
    """The largest of each ``pieces`` neighbouring channels.

    After a convolution it is the maxout of its maps (section 3). Equal ones share the gradient.

    Raises:
        ValueError: if there are no pieces, or they do not divide the channels.
    """
    channels = x.shape[-1]
    if pieces < 1 or channels % pieces:
        raise ValueError(f"{pieces} pieces do not divide {channels} channels")
    return jnp.max(x.reshape(*x.shape[:-1], channels // pieces, pieces), axis=-1)


class Maxout(nn.Module):
    """A fully connected layer, the largest of several linear maps: h_i = max_j (x·W_ij + b_ij).

    It is convex and piecewise linear in x, and with enough pieces comes near to any convex function
    (section 3). Its parameters are those of a ``nn.Dense`` of ``features * pieces`` outputs, the
    pieces of a feature side by side.

    Attributes:
        features: outputs.
        pieces: linear maps of which each output is the largest.
    """

    features: Count
    pieces: Count = 2
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*places channels"]
    ) -> Float[Array, "*places {self.features}"]:
        """The last axis becomes ``features`` long."""
        outputs = self.features * self.pieces
        x = nn.Dense(outputs, dtype=self.dtype, param_dtype=self.param_dtype, name="maps")(x)
        return maxout(x, self.pieces)
