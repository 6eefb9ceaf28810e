"""Deformable convolution as a layer, for any model that takes convolutions as a field."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.layers import Conv
from opsin.ops.convolution.deformable import deformable_convolution
from opsin.ranges import Count, CountOrZero


class DeformableConv(nn.Module):
    """A convolution that predicts, at each place, where its taps sample.

    Dai et al., 2017, arXiv:1703.06211, section 2.1; with ``modulated`` Zhu et al., 2018,
    arXiv:1811.11168, section 3.2. A convolution of the same size, stride and dilation, called
    ``offsets``, predicts (y, x) for each tap, and when modulated also the logit of its weight. It
    starts at zero: offsets of 0 and, as in the paper, weights of sigmoid(0) = 0.5. A new layer is
    thus the plain convolution, or half of it. The other fields are those of ``Conv``, and so are
    ``kernel`` and ``bias``: trained weights of a plain convolution fit. (The papers train
    ``offsets`` at a tenth of the learning rate, which is the optimiser's affair.)

    Attributes:
        strides: one number for both axes, as are ``kernel_dilation`` and ``padding``.
        modulated: version 2, with weights; otherwise version 1.
    """

    features: Count
    kernel_size: Sequence[Count]
    strides: Count = 1
    padding: CountOrZero = 0
    kernel_dilation: Count = 1
    modulated: bool = True
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch height_out width_out features"]:
        """Features of the size that ``Conv`` with the same fields gives."""
        taps = math.prod(self.kernel_size)
        predicted = Conv(
            (3 if self.modulated else 2) * taps,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="offsets",
        )(x)
        offsets = predicted[..., : 2 * taps].reshape(*predicted.shape[:3], taps, 2)
        mask = nn.sigmoid(predicted[..., 2 * taps :]) if self.modulated else None
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = deformable_convolution(
            x,
            kernel,
            offsets,
            mask,
            strides=(self.strides,) * 2,
            padding=((self.padding, self.padding),) * 2,
            dilation=(self.kernel_dilation,) * 2,
        )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            y += bias.astype(self.dtype)
        return y
