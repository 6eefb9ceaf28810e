"""The transposed convolution as a layer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.ops.upsampling import transposed_convolution
from opsin.ranges import Count, CountOrZero


class ConvTranspose(nn.Module):
    """A transposed convolution with PyTorch's sizes: S(H - 1) - 2P + K rows from H.

    Its kernel is [kernel_height, kernel_width, in, out]. ``nn.ConvTranspose`` knows no such
    padding.

    Attributes:
        features: channels of the result.
        kernel_size: height and width of the kernel, K.
        strides: rows and columns of the result for one of the input, S.
        padding: rows, and columns, that are cut off on each side of the result, P.
    """

    features: Count
    kernel_size: tuple[Count, Count] = (2, 2)
    strides: tuple[Count, Count] = (2, 2)
    padding: CountOrZero | tuple[CountOrZero, CountOrZero] = 0
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height_out width_out features"]:
        """The larger image. Raises ValueError as ``transposed_convolution`` does."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias: Any = None
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = transposed_convolution(x, kernel, strides=self.strides, padding=self.padding)
        return y if bias is None else y + bias
