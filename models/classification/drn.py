"""Dilated residual networks: no stride beyond 8, and levels that smooth away dilation's grid.

Yu, Koltun and Funkhouser, 2017, "Dilated residual networks", arXiv:1705.09914. Type A is a ResNet
with its last two strides dilated, type C adds convolutions around it without pooling (section 4),
and type D has plain convolutions for those (the authors' later simplification,
https://github.com/fyu/drn). C and D follow their code, so that its weights fit.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.classification.resnet import (
    BasicBlock,
    Block,
    BottleneckBlock,
    ResNet18,
    ResNet34,
    ResNet50,
)
from opsin.models.layers import Conv, Norm, batch_norm, pooled_logits, shared_fields
from opsin.ranges import Count, Depth


class DRNOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        level_sizes: blocks, or plain convolutions, in each of the eight levels; 0 leaves out one of
            the last three.
        block: ``BasicBlock`` or ``BottleneckBlock``, in levels 3 to 6.
        ends: what levels 1, 2, 7 and 8 are made of: "residual" is ``BasicBlock``s, in levels 7 and
            8 without shortcuts (type C), "plain" is 3×3 convolutions (type D).
        width: channels of level 1. Levels 2 to 8 have 2, 4, 8, 16, 32, 32 and 32 times as many
            (times four out of a bottleneck).
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them.
    """

    level_sizes: Sequence[Depth]
    block: type[Block]
    ends: Literal["residual", "plain"]
    width: Count = 16
    norm: Norm = batch_norm
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class DRNBackbone(DRNOptions):
    """The stem and eight levels. For the fields see ``DRNOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of levels 1 to 5 and of the last one: {1, 2, 4, 8, 16, 32}, finest first.

        The keys name the levels as those of a ResNet without dilation: 16 and 32 are eight times
        smaller than the image, as 8 is. Sizes that a stride does not divide are rounded up.

        Raises:
            ValueError: if ``x`` is not a batch of images, or a field holds what it cannot.
        """
        if x.ndim != 4:
            raise ValueError(f"DRN takes [batch, height, width, channels]; got {x.shape}")
        if self.ends not in ("residual", "plain"):
            raise ValueError(f'ends is "residual" or "plain"; got {self.ends!r}')
        if len(self.level_sizes) != 8:
            raise ValueError(f"DRN has eight levels; got level_sizes {tuple(self.level_sizes)}")
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(Conv, use_bias=False, padding=0, kernel_init=fan_out, **types)
        norm = partial(self.norm, **types)

        x = conv(self.width, (7, 7), padding=3, name="stem_conv")(x)
        x = nn.relu(norm(train=train, name="stem_norm")(x))
        features = {}
        for level, layers in enumerate(self.level_sizes, start=1):
            channels = self.width * min(2 ** (level - 1), 32)
            dilation = {5: 2, 6: 4, 7: 2}.get(level, 1)
            end = level not in range(3, 7)
            for index in range(layers):
                stride = 2 if level in (2, 3, 4) and index == 0 else 1
                name = f"level{level}_{{}}{index + 1}"
                if end and self.ends == "plain":
                    x = conv(
                        channels,
                        (3, 3),
                        strides=stride,
                        padding=dilation,
                        kernel_dilation=dilation,
                        name=name.format("conv"),
                    )(x)
                    x = nn.relu(norm(train=train, name=name.format("norm"))(x))
                else:
                    block = (BasicBlock if end else self.block)(
                        channels=channels,
                        stride=stride,
                        # Unlike in a dilated ResNet, the same in the first block of a level.
                        dilation=(dilation, dilation),
                        conv=conv,
                        spatial_conv=conv,
                        norm=norm,
                        residual=level < 7,
                        name=name.format("block"),
                    )
                    x = block(x, train=train)
            features[2 ** min(level - 1, 5)] = x
        return features


class DRN(DRNOptions):
    """Backbone, global average pooling and a linear head. For the other fields see ``DRNOptions``.

    Parameters are ``{"backbone": those of DRNBackbone, "head": …}``, and so are the statistics.
    """

    num_classes: Count = 1000

    @nn.nowrap
    def without_head(self, name: str | None = None) -> DRNBackbone:
        """The backbone of this classifier, for other tasks: ``DRND22().without_head()``."""
        return DRNBackbone(**shared_fields(self, DRNBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Any image size; raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        return pooled_logits(x, self.num_classes, self.param_dtype)


# Section 2 of the paper; parameters are those of the ResNets.
DRNA18 = partial(ResNet18, output_stride=8)
DRNA34 = partial(ResNet34, output_stride=8)
DRNA50 = partial(ResNet50, output_stride=8)

# Parameters 21,126,584; 31,234,744; 40,542,008. The authors count 1,049,600 more in the last one
# (41.6 M): a projection at the start of level 7 that their code makes and never applies.
DRNC26 = partial(DRN, level_sizes=(1, 1, 2, 2, 2, 2, 1, 1), block=BasicBlock, ends="residual")
DRNC42 = partial(DRN, level_sizes=(1, 1, 3, 4, 6, 3, 1, 1), block=BasicBlock, ends="residual")
DRNC58 = partial(DRN, level_sizes=(1, 1, 3, 4, 6, 3, 1, 1), block=BottleneckBlock, ends="residual")

# Parameters 16,393,752; 26,501,912; 35,809,176; 54,801,304.
DRND22 = partial(DRN, level_sizes=(1, 1, 2, 2, 2, 2, 1, 1), block=BasicBlock, ends="plain")
DRND38 = partial(DRN, level_sizes=(1, 1, 3, 4, 6, 3, 1, 1), block=BasicBlock, ends="plain")
DRND54 = partial(DRN, level_sizes=(1, 1, 3, 4, 6, 3, 1, 1), block=BottleneckBlock, ends="plain")
DRND105 = partial(DRN, level_sizes=(1, 1, 3, 4, 23, 3, 1, 1), block=BottleneckBlock, ends="plain")
