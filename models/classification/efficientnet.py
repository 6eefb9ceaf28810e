"""EfficientNet, whose depth, width and image size grow together, and its Lite form for telephones.

Tan and Le, 2019, "EfficientNet: rethinking model scaling for convolutional neural networks",
arXiv:1905.11946. Details of B0 to B7 follow torchvision, so that its weights fit: symmetric
padding, gates from a quarter of a block's input channels, stochastic depth to 0.2. Lite0 to Lite2
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) follow the
authors' code: no gates, ReLU6, TensorFlow's padding, and ends that do not grow.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from opsin.models.inverted import InvertedOptions, Stage, round_channels, scaled_stage
from opsin.models.layers import batch_norm, pooled_logits, shared_fields
from opsin.ranges import BelowOne, Count, Positive

# Table 1 of the paper, rows 2 to 8: expansion, kernel, stride, channels, blocks.
EFFICIENTNET: tuple[Stage, ...] = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def compound_scaling(
    phi: float, *, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15
) -> tuple[float, float, float]:
    """Factors (alpha^phi, beta^phi, gamma^phi) of depth, width and image size; eq. 3.

    Multiplications grow by (alpha · beta² · gamma²)^phi, with the defaults of section 4 by
    1.92^phi: twice as many for phi + 1, nearly. The published B1 to B7 are these factors for phi =
    0.5, 1, 2, 3.5, 5, 6 and 7, rounded by hand, the depth of the large ones to less.
    """
    return alpha**phi, beta**phi, gamma**phi


class EfficientNetOptions(InvertedOptions, kw_only=True):
    """The fields that a backbone and its classifier share; others as ``InvertedOptions``.

    Attributes:
        width: factor of all channels, which are then rounded (``round_channels``).
        depth: factor of the blocks of each stage, rounded up.
        fixed_ends: whether stem and last convolution keep their 32 and 1,280 channels, and first
            and last stage their blocks, whatever the factors (Lite).
        stages: rows of the table.
    """

    activation: Callable[[Array], Array] = nn.silu
    squeeze: bool = True
    stochastic_depth: BelowOne = 0.2
    width: Positive = 1.0
    depth: Positive = 1.0
    fixed_ends: bool = False
    stages: Sequence[Stage] = EFFICIENTNET

    @nn.nowrap
    def scaled_stages(self) -> list[Stage]:
        """Rows of the table, with the factors."""
        ends = (0, len(self.stages) - 1) if self.fixed_ends else ()
        return [
            scaled_stage(stage, width=self.width, depth=1 if index in ends else self.depth)
            for index, stage in enumerate(self.stages)
        ]


class EfficientNetBackbone(EfficientNetOptions):
    """Stem, blocks and the last 1×1 convolution. For the fields see ``EfficientNetOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of the last stage at each stride, finest first; sizes are rounded up.

        {2, 4, 8, 16} are blocks' results of 16, 24, 40 and 112 channels in B0, 32 is the last
        convolution of 1,280.

        Raises:
            ValueError: if ``x`` is not a batch of images, or ``padding`` is unknown.
        """
        width = 1 if self.fixed_ends else self.width
        stem, top = round_channels(32 * width), round_channels(1280 * width)
        return self.by_stride(x, self.scaled_stages(), stem=stem, top=top, train=train)


class EfficientNet(EfficientNetOptions):
    """Backbone, global average pooling, dropout and a linear head.

    For the other fields see ``EfficientNetOptions``. Parameters are ``{"backbone": those of
    EfficientNetBackbone, "head": …}``, and so are the statistics.

    Attributes:
        dropout: probability before the head, in training only.
    """

    num_classes: Count = 1000
    dropout: BelowOne = 0.2

    @nn.nowrap
    def without_head(self, name: str | None = None) -> EfficientNetBackbone:
        """The backbone of this classifier, for other tasks: ``EfficientNetB0().without_head()``."""
        return EfficientNetBackbone(**shared_fields(self, EfficientNetBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Any image size; raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        return pooled_logits(
            x, self.num_classes, self.param_dtype, dropout=self.dropout, train=train
        )


# Parameters 5,288,548; 7,794,184; 9,109,994; 12,233,232; 19,341,616; 30,389,784; 43,040,704;
# 66,347,960. Sides of the images: 224, 240, 260 (torchvision evaluates at 288), 300, 380, 456, 528
# and 600. From B5 on batch norm is the authors' in torchvision too.
EfficientNetB0 = partial(EfficientNet, width=1.0, depth=1.0, dropout=0.2)
EfficientNetB1 = partial(EfficientNet, width=1.0, depth=1.1, dropout=0.2)
EfficientNetB2 = partial(EfficientNet, width=1.1, depth=1.2, dropout=0.3)
EfficientNetB3 = partial(EfficientNet, width=1.2, depth=1.4, dropout=0.3)
EfficientNetB4 = partial(EfficientNet, width=1.4, depth=1.8, dropout=0.4)
EfficientNetB5 = partial(
    EfficientNet,
    width=1.6,
    depth=2.2,
    dropout=0.4,
    norm=partial(batch_norm, epsilon=1e-3, momentum=0.99),
)
EfficientNetB6 = partial(EfficientNetB5, width=1.8, depth=2.6, dropout=0.5)
EfficientNetB7 = partial(EfficientNetB5, width=2.0, depth=3.1, dropout=0.5)

# Parameters 4,652,008; 5,416,680; 6,092,072. Sides of the images: 224, 240, 260; the authors feed
# (pixel - 127) / 128.
EfficientNetLite0 = partial(
    EfficientNet,
    activation=nn.relu6,
    squeeze=False,
    padding="same",
    fixed_ends=True,
    norm=partial(batch_norm, epsilon=1e-3, momentum=0.99),
)
EfficientNetLite1 = partial(EfficientNetLite0, width=1.0, depth=1.1, dropout=0.2)
EfficientNetLite2 = partial(EfficientNetLite0, width=1.1, depth=1.2, dropout=0.3)
