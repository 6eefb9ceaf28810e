"""ConvNeXt: a convolutional network with the proportions of a transformer.

Liu et al., 2022, "A ConvNet for the 2020s", arXiv:2201.03545. Details follow torchvision, so that
its weights fit: convolutions with bias, layer norm over channels with epsilon 1e-6, exact GELU.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.layers import Conv, StochasticDepth, shared_fields
from opsin.ranges import BelowOne, Count, Depth, NonNegative

# Truncated at ±2 in the authors' code and in torchvision, which is a hundred deviations away.
_draw = nn.initializers.normal(0.02)


def _norm(name: str, **types: Any) -> nn.LayerNorm:
    """Of the channels of each pixel, with float32 statistics.

    The variance is about the mean: of E[x²] − E[x]² nothing is left far from zero.
    """
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name, **types)


class ConvNeXtBlock(nn.Module):
    """A depthwise 7×7 convolution and an MLP of four times the width, beside a shortcut (Fig. 4).

    Attributes:
        layer_scale: what the factors of the branch's channels start at (Touvron et al., 2021,
            arXiv:2103.17239, section 2).
        drop: probability with which stochastic depth leaves out the branch, in training only.
    """

    layer_scale: NonNegative = 1e-6
    drop: BelowOne = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        """Features of the same shape."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels = x.shape[-1]
        conv = Conv(
            channels,
            (7, 7),
            padding=3,
            feature_group_count=channels,
            kernel_init=_draw,
            name="depthwise_conv",
            **types,
        )
        y = _norm("norm", **types)(conv(x))
        y = nn.Dense(4 * channels, kernel_init=_draw, name="mlp1", **types)(y)
        y = nn.gelu(y, approximate=False)
        y = nn.Dense(channels, kernel_init=_draw, name="mlp2", **types)(y)
        init = nn.initializers.constant(self.layer_scale)
        scale = self.param("layer_scale", init, (channels,), self.param_dtype)
        return x + StochasticDepth(self.drop)(y * scale.astype(self.dtype), train=train)


class ConvNeXtOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        stage_sizes: blocks in each stage; stage i has ``width * 2**i`` channels, and every stage
            but the first starts with a norm and a 2×2 convolution of stride 2.
        width: channels of the stem and of the first stage.
        stochastic_depth: probability with which the branch of the last block is left out in
            training; it grows from 0 in the first, block by block.
        layer_scale: see ``ConvNeXtBlock``.
    """

    stage_sizes: Sequence[Depth]
    width: Count = 96
    stochastic_depth: BelowOne = 0.0
    layer_scale: NonNegative = 1e-6
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class ConvNeXtBackbone(ConvNeXtOptions):
    """Stem and stages. For the fields see ``ConvNeXtOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of each stage by its stride, finest first: {4, 8, 16, 32}.

        Rows and columns that a stride does not divide are left out, as in torchvision.

        Raises:
            ValueError: if ``x`` is not a batch of images, or a stage would have no pixel.
        """
        least = 4 * 2 ** (len(self.stage_sizes) - 1)
        if x.ndim != 4 or min(x.shape[1:3]) < least:
            raise ValueError(
                f"ConvNeXt takes [batch, height, width, channels] with sides of at least {least}; "
                f"got {x.shape}"
            )
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, padding="VALID", kernel_init=_draw, **types)
        features, before, last = {}, 0, sum(self.stage_sizes) - 1
        for stage, blocks in enumerate(self.stage_sizes):
            channels = self.width * 2**stage
            if stage == 0:
                x = conv(channels, (4, 4), strides=4, name="stem_conv")(x)
                x = _norm("stem_norm", **types)(x)
            else:
                x = _norm(f"stage{stage + 1}_norm", **types)(x)
                x = conv(channels, (2, 2), strides=2, name=f"stage{stage + 1}_conv")(x)
            for index in range(blocks):
                block = ConvNeXtBlock(
                    layer_scale=self.layer_scale,
                    drop=self.stochastic_depth * before / max(last, 1),
                    name=f"stage{stage + 1}_block{index + 1}",
                    **types,
                )
                x = block(x, train=train)
                before += 1
            features[4 * 2**stage] = x
        return features


class ConvNeXt(ConvNeXtOptions):
    """Backbone, global average pooling, norm and a linear head.

    For the other fields see ``ConvNeXtOptions``. Parameters are ``{"backbone": those of
    ConvNeXtBackbone, "norm": …, "head": …}``.
    """

    num_classes: Count = 1000

    @nn.nowrap
    def without_head(self, name: str | None = None) -> ConvNeXtBackbone:
        """The backbone of this classifier, for other tasks: ``ConvNeXtTiny().without_head()``."""
        return ConvNeXtBackbone(**shared_fields(self, ConvNeXtBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        types: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": self.param_dtype}
        x = _norm("norm", **types)(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))
        return nn.Dense(self.num_classes, kernel_init=_draw, name="head", **types)(x)


# Section 3 and appendix A.1 of the paper, Table 5 for stochastic depth on ImageNet-1K. Parameters
# 28,589,128; 50,223,688; 88,591,464; 197,767,336. Sides of the images: 224.
ConvNeXtTiny = partial(ConvNeXt, stage_sizes=(3, 3, 9, 3), stochastic_depth=0.1)
ConvNeXtSmall = partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), stochastic_depth=0.4)
ConvNeXtBase = partial(ConvNeXtSmall, width=128, stochastic_depth=0.5)
ConvNeXtLarge = partial(ConvNeXtBase, width=192)
