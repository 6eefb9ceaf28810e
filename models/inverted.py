"""Depthwise separable layers, inverted residual blocks, and the networks that are made of them.

Howard et al., 2017, "MobileNets", arXiv:1704.04861, section 3.1; Sandler et al., 2018,
"MobileNetV2", arXiv:1801.04381, section 3. With squeeze and excitation the block is the MBConv of
Tan et al., 2018, arXiv:1807.11626 (MnasNet), and of EfficientNet.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.layers import (
    Conv,
    Norm,
    SqueezeExcite,
    StochasticDepth,
    batch_norm,
    shared_fields,
)
from opsin.ops.pooling import blur_pool
from opsin.ranges import BelowOne, Count, CountOrZero, Depth

Stage = tuple[Count, Count, Count, Count, Depth]
"""A row of a paper's table: expansion, side of the kernel, stride, channels, blocks."""


def round_channels(channels: float) -> int:
    """A number of channels as a multiple of 8: the nearest, but not less than 90 % of it, nor 0.

    The rule of the authors' code, of MobileNetV2 and of EfficientNet; half-way goes up.
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def scaled_stage(stage: Stage, *, width: float, depth: float = 1.0) -> Stage:
    """A stage with its factors: channels by ``round_channels``, blocks rounded up."""
    expansion, side, stride, channels, blocks = stage
    return expansion, side, stride, round_channels(channels * width), math.ceil(blocks * depth)


class _Layers(nn.Module):
    """Convolutions, each with its norm.

    Attributes:
        activation: after each layer but the last of a block.
        padding: "symmetric" pads all sides alike, as PyTorch does; "same" is TensorFlow's, which
            pads an even side at stride 2 less at the top and at the left.
        norm: after each convolution, which has a bias where there is none.
        blur_taps: length of the filter of ``ops.pooling.blur_pool``, which takes every second pixel
            after norm and activation, in place of the stride of a depthwise convolution (Zhang,
            2019, arXiv:1904.11486); 0 is the stride. The parameters are the same.
    """

    activation: Callable[[Array], Array] = nn.relu6
    padding: Literal["symmetric", "same"] = "symmetric"
    norm: Norm | None = batch_norm
    blur_taps: CountOrZero = 0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def layer(
        self,
        x: Array,
        channels: int,
        name: str,
        *,
        train: bool,
        side: int = 1,
        stride: int = 1,
        groups: int = 1,
    ) -> Array:
        """The layers ``name_conv`` and ``name_norm``, without an activation."""
        if self.padding not in ("symmetric", "same"):
            raise ValueError(f'padding is "symmetric" or "same"; got {self.padding!r}')
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = Conv(
            channels,
            (side, side),
            strides=stride,
            padding="SAME" if self.padding == "same" else (side - 1) // 2,
            feature_group_count=groups,
            use_bias=self.norm is None,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            name=f"{name}_conv",
            **types,
        )
        if self.norm is None:
            return conv(x)
        return self.norm(train=train, name=f"{name}_norm", **types)(conv(x))


class DepthwiseSeparable(_Layers, kw_only=True):
    """A convolution of each channel by itself, and a 1×1 convolution of what it gives.

    K²C + CF weights for K²CF, and biases for C + F where there is no norm. With K = 3, 64 to 128
    channels and biases these are 8,960 parameters for 73,856.

    Attributes:
        features: channels of the result, which no activation follows.
        kernel_size: side of the depthwise kernel, K.
        reduced: width of a ``SqueezeExcite`` between both convolutions; 0 leaves it out.
    """

    features: Count
    kernel_size: Count = 3
    stride: Count = 1
    reduced: CountOrZero = 0

    @nn.nowrap
    def separable(self, x: Array, *, train: bool) -> Array:
        """The layers "depthwise" and "project", and what lies between."""
        channels = x.shape[-1]
        blurred = self.blur_taps > 0 and self.stride > 1
        x = self.layer(
            x,
            channels,
            "depthwise",
            train=train,
            side=self.kernel_size,
            stride=1 if blurred else self.stride,
            groups=channels,
        )
        x = self.activation(x)
        if blurred:
            x = blur_pool(x, taps=self.blur_taps, stride=self.stride)
        if self.reduced:
            x = SqueezeExcite(
                self.reduced,
                activation=self.activation,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name="squeeze_excite",
            )(x)
        return self.layer(x, self.features, "project", train=train)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Features, ``stride`` times smaller, rounded up. Raises ValueError: unknown padding."""
        return self.separable(x, train=train)


class InvertedResidual(DepthwiseSeparable, kw_only=True):
    """A depthwise separable layer of more channels, beside a shortcut (MobileNetV2, Fig. 3b).

    Where stride or channels differ there is no shortcut.

    Attributes:
        expansion: channels of the depthwise convolution for one of the input, by the layer
            "expand"; 1 leaves it out.
        drop: probability with which stochastic depth leaves out the branch, in training only.
    """

    expansion: Count = 6
    drop: BelowOne = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Features, ``stride`` times smaller, rounded up. Raises ValueError: unknown padding."""
        y, channels = x, x.shape[-1]
        if self.expansion > 1:
            y = self.activation(self.layer(x, self.expansion * channels, "expand", train=train))
        y = self.separable(y, train=train)
        if self.stride > 1 or self.features != channels:
            return y
        return x + StochasticDepth(self.drop)(y, train=train)


class InvertedOptions(_Layers, kw_only=True):
    """Fields and layers of a network of inverted residual blocks.

    Attributes:
        squeeze: whether blocks have a ``SqueezeExcite``, of a quarter of their input's channels.
        stochastic_depth: probability with which a block behind the last one would be left out;
            that of block i of n is i / n of it, counted from 0.
    """

    squeeze: bool = False
    stochastic_depth: BelowOne = 0.0

    @nn.nowrap
    def by_stride(
        self, x: Array, stages: Sequence[Stage], *, stem: int, top: int, train: bool
    ) -> dict[int, Array]:
        """Output of the last block of each stride; of the last stride that of the layer "top".

        Args:
            x: the images.
            stages: rows of the table, scaled.
            stem: channels of the 3×3 convolution before them, at stride 2.
            top: channels of the 1×1 convolution after them.
            train: as in any model.
        """
        if x.ndim != 4:
            raise ValueError(
                f"{type(self).__name__} takes [batch, height, width, channels]; got {x.shape}"
            )
        x = self.activation(self.layer(x, stem, "stem", train=train, side=3, stride=2))
        level, features, before = 2, {}, 0
        total = sum(blocks for *_, blocks in stages)
        for number, (expansion, side, stride, channels, blocks) in enumerate(stages, start=1):
            for index in range(blocks):
                block = InvertedResidual(
                    **shared_fields(self, InvertedResidual),
                    features=channels,
                    kernel_size=side,
                    stride=stride if index == 0 else 1,
                    reduced=max(1, x.shape[-1] // 4) if self.squeeze else 0,
                    expansion=expansion,
                    drop=self.stochastic_depth * before / total,
                    name=f"stage{number}_block{index + 1}",
                )
                x = block(x, train=train)
                before += 1
            level *= stride
            features[level] = x
        features[level] = self.activation(self.layer(x, top, "top", train=train))
        return features
