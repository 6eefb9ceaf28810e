"""MobileNetV2: inverted residual blocks with linear bottlenecks.

Sandler et al., 2018, "MobileNetV2: inverted residuals and linear bottlenecks", arXiv:1801.04381.
Details follow torchvision, so that its weights fit: symmetric padding, batch norm with momentum 0.9
and epsilon 1e-5, and dropout of 0.2 before the head.
"""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from opsin.models.inverted import InvertedOptions, Stage, round_channels, scaled_stage
from opsin.models.layers import pooled_logits, shared_fields
from opsin.ranges import BelowOne, Count, Positive

# Table 2 of the paper: expansion, kernel, stride, channels, blocks.
MOBILENET_V2: tuple[Stage, ...] = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 3, 2, 32, 3),
    (6, 3, 2, 64, 4),
    (6, 3, 1, 96, 3),
    (6, 3, 2, 160, 3),
    (6, 3, 1, 320, 1),
)


class MobileNetV2Options(InvertedOptions, kw_only=True):
    """The fields that a backbone and its classifier share; others as ``InvertedOptions``.

    Attributes:
        width: factor of all channels, which are then rounded (``round_channels``); of the 1,280
            behind the last block only if it is above 1 (section 4, "width multiplier").
        stages: rows of the table.
    """

    width: Positive = 1.0
    stages: Sequence[Stage] = MOBILENET_V2


class MobileNetV2Backbone(MobileNetV2Options):
    """Stem, blocks and the last 1×1 convolution. For the fields see ``MobileNetV2Options``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of the last stage at each stride, finest first; sizes are rounded up.

        {2, 4, 8, 16} are blocks' results of 16, 24, 32 and 96 channels, 32 is the last convolution
        of 1,280, all times the width.

        Raises:
            ValueError: if ``x`` is not a batch of images, or ``padding`` is unknown.
        """
        stages = [scaled_stage(stage, width=self.width) for stage in self.stages]
        stem, top = round_channels(32 * self.width), round_channels(1280 * max(1, self.width))
        return self.by_stride(x, stages, stem=stem, top=top, train=train)


class MobileNetV2(MobileNetV2Options):
    """Backbone, global average pooling, dropout and a linear head.

    For the other fields see ``MobileNetV2Options``. Parameters are ``{"backbone": those of
    MobileNetV2Backbone, "head": …}``, and so are the statistics. At width 1: 3,504,872; at 1.4,
    0.75, 0.5 and 0.35: 6,108,776, 2,636,424, 1,968,680 and 1,677,128.

    Attributes:
        dropout: probability before the head, in training only.
    """

    num_classes: Count = 1000
    dropout: BelowOne = 0.2

    @nn.nowrap
    def without_head(self, name: str | None = None) -> MobileNetV2Backbone:
        """The backbone of this classifier, for other tasks: ``MobileNetV2().without_head()``."""
        return MobileNetV2Backbone(**shared_fields(self, MobileNetV2Backbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Any image size; raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        return pooled_logits(
            x, self.num_classes, self.param_dtype, dropout=self.dropout, train=train
        )
