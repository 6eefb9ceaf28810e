"""No network at all: a linear classifier of the pixels, which all others have to beat."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.ranges import Count


class Linear(nn.Module):
    """Logistic regression on the pixels: height · width · channels · classes weights, and biases.

    Attributes:
        num_classes: number of logits.
    """

    num_classes: Count = 10
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Raises ValueError if ``x`` is not a batch of images."""
        if x.ndim != 4:
            raise ValueError(f"Linear takes [batch, height, width, channels]; got {x.shape}")
        x = x.reshape(len(x), -1).astype(jnp.float32)
        return nn.Dense(self.num_classes, param_dtype=self.param_dtype, name="head")(x)
