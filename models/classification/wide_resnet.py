"""Wide residual networks: fewer and wider blocks, whose norm and ReLU come before the convolution.

Zagoruyko and Komodakis, 2016, "Wide residual networks", arXiv:1605.07146. The blocks are those of
He et al., 2016, "Identity mappings in deep residual networks", arXiv:1603.05027. Details follow the
authors' code (https://github.com/szagoruyko/wide-residual-networks), so that its weights fit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.layers import Conv, Norm, batch_norm, pooled_logits, shared_fields
from opsin.ops.convolution.materialized import materialized
from opsin.ranges import BelowOne, Count, Depth


class PreActivationBlock(nn.Module):
    """Norm, ReLU and 3×3 convolution, twice, and a shortcut without either (Table 1, "B(3,3)").

    Where the shape changes, the shortcut is a 1×1 convolution of what the first one sees.

    Attributes:
        conv: makes the convolutions.
        dropout: probability before the second one, in training only (section 2.4).
    """

    channels: Count
    stride: Count
    conv: Callable[..., Callable[[Array], Array]]
    norm: Norm
    dropout: BelowOne = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch height_out width_out {self.channels}"]:
        """Features ``stride`` times smaller, rounded up."""
        conv = partial(self.conv, self.channels)
        active = nn.relu(self.norm(train=train, name="norm1")(x))
        y = conv((3, 3), strides=self.stride, padding=1, name="conv1")(active)
        y = nn.relu(self.norm(train=train, name="norm2")(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = conv((3, 3), padding=1, name="conv2")(y)
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = conv((1, 1), strides=self.stride, padding=0, name="shortcut_conv")(active)
        return materialized(x + y)


class WideResNetOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        stage_sizes: blocks in each stage; stage i has ``width * widening * 2**i`` channels, and
            every stage but the first starts with stride 2.
        widening: how many times wider than a ResNet the stages are (k of the paper).
        width: channels of the stem.
        dropout: of the blocks.
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them.
    """

    stage_sizes: Sequence[Depth]
    widening: Count
    width: Count = 16
    dropout: BelowOne = 0.0
    norm: Norm = batch_norm
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class WideResNetBackbone(WideResNetOptions):
    """The stem, the stages and a last norm. For the fields see ``WideResNetOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of each stage by its stride, finest first: {1: …, 2: …, 4: …}.

        The last one is normalised and has passed a ReLU; the others are sums of residuals, as the
        next stage sees them. Sizes that a stride does not divide are rounded up.

        Raises:
            ValueError: if ``x`` is not a batch of images.
        """
        if x.ndim != 4:
            raise ValueError(f"WideResNet takes [batch, height, width, channels]; got {x.shape}")
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(Conv, use_bias=False, kernel_init=fan_out, **types)
        norm = partial(self.norm, **types)

        x = conv(self.width, (3, 3), padding=1, name="stem_conv")(x)
        features = {}
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                block = PreActivationBlock(
                    channels=self.width * self.widening * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    dropout=self.dropout,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
                x = block(x, train=train)
            features[2**stage] = x
        return features | {max(features): nn.relu(norm(train=train, name="norm")(x))}


class WideResNet(WideResNetOptions):
    """Backbone, global average pooling and a linear head; other fields: ``WideResNetOptions``.

    Parameters are ``{"backbone": those of WideResNetBackbone, "head": …}``, and so are the
    statistics.
    """

    num_classes: Count = 10

    @nn.nowrap
    def without_head(self, name: str | None = None) -> WideResNetBackbone:
        """The backbone of this classifier, for other tasks: ``WRN16x4().without_head()``."""
        return WideResNetBackbone(**shared_fields(self, WideResNetBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Any image size; raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        return pooled_logits(x, self.num_classes, self.param_dtype)


def wide_resnet(depth: int, widening: Count, **options: Any) -> WideResNet:
    """WRN-depth-widening of section 2.3: 6n + 4 convolutions, three stages of n blocks.

    ``options`` are other fields of ``WideResNet``; the paper's dropout is 0.3 for CIFAR.

    Raises:
        ValueError: if ``depth`` is not 6n + 4 with n of at least one.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"a wide ResNet has 6n + 4 layers (10, 16, 22, …); got {depth}")
    fields: dict[str, Any] = {"stage_sizes": (blocks, blocks, blocks), "widening": widening}
    return WideResNet(**(fields | options))


# Parameters for ten classes: 2,748,890; 10,961,370; 1,467,610; 36,479,194; 8,949,210.
WRN16x4 = partial(wide_resnet, depth=16, widening=4)
WRN16x8 = partial(wide_resnet, depth=16, widening=8)
WRN28x2 = partial(wide_resnet, depth=28, widening=2)
WRN28x10 = partial(wide_resnet, depth=28, widening=10)
WRN40x4 = partial(wide_resnet, depth=40, widening=4)
