"""DeepLab: atrous spatial pyramid pooling over a dilated backbone.

Version 3 is Chen, Papandreou, Schroff and Adam, 2017, "Rethinking atrous convolution for semantic
image segmentation", arXiv:1706.05587; version 3+ is Chen et al., 2018, "Encoder-decoder with atrous
separable convolution for semantic image segmentation", arXiv:1802.02611. Details follow
torchvision, and version 3+ has its plain convolutions too, in place of separable ones, and one 3×3
convolution in the decoder, where the paper has two (Table 2).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from opsin.models.classification.resnet import ResNet50
from opsin.models.layers import Conv, Norm, batch_norm
from opsin.models.segmentation.fcn import FCNHead, Segmenter
from opsin.ops.upsampling import upsample_bilinear
from opsin.ranges import BelowOne, Count


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., 2017, Fig. 5).

    One 1×1 convolution, a dilated 3×3 one for each rate, and the mean of the image, side by side;
    then a 1×1 convolution of them all. Each convolution has its norm and ReLU.

    The mean of the image has one pixel. In training, batch norm needs several images to normalise
    it by: of a batch of one it makes zero, whatever the image (PyTorch refuses). Use ``group_norm``
    or frozen statistics then.

    Attributes:
        rates: dilation of each 3×3 convolution. One as large as the features sees its centre alone.
        width: channels of each branch, and of the result.
        dropout: rate after the last ReLU.
        conv: makes convolutions without bias.
        norm: called with ``train`` and a name.
    """

    rates: Sequence[Count]
    width: Count
    dropout: BelowOne
    conv: Callable[..., Callable[[Array], Array]]
    norm: Norm

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch height width out"]:
        """Features of the same size, of ``width`` channels."""

        def layer(name: str, x: Array, taps: int = 1, rate: int = 1) -> Array:
            padding = rate * (taps // 2)
            conv = self.conv(
                self.width,
                (taps, taps),
                padding=padding,
                kernel_dilation=rate,
                name=f"{name}_conv",
            )
            return nn.relu(self.norm(train=train, name=f"{name}_norm")(conv(x)))

        branches = [layer("point", x)]
        for index, rate in enumerate(self.rates, start=1):
            branches.append(layer(f"atrous{index}", x, taps=3, rate=rate))
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        branches.append(jnp.broadcast_to(layer("image", mean), branches[0].shape))
        y = layer("project", jnp.concatenate(branches, axis=-1))
        return nn.Dropout(self.dropout, deterministic=not train)(y)


class DeepLabv3(Segmenter):
    """Backbone, pyramid, a 3×3 convolution and a linear classifier of each pixel.

    With ``low_level`` it is version 3+: finer features join the pyramid before the 3×3 convolution.
    For the other fields see ``Segmenter``.

    Attributes:
        rates: of the pyramid: the paper's for features 16 times smaller than the image, to be
            doubled for 8 times.
        width: channels of the pyramid and of the 3×3 convolution.
        dropout: rate after the pyramid, in training only.
        low_level: the level of the finer features, whose size the pyramid takes (Chen et al., 2018,
            Fig. 2).
        low_level_width: channels that they are reduced to (Chen et al., 2018, Table 1).
        auxiliary: in training, an ``FCNHead`` on the features one level finer than the last is run
            too. Its logits, of the same shape, are sown as "logits" into the collection
            "auxiliary".
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them, outside the backbone; for
            batches of one image see ``ASPP``.
    """

    rates: Sequence[Count] = (6, 12, 18)
    width: Count = 256
    dropout: BelowOne = 0.5
    low_level: Count | None = None
    low_level_width: Count = 48
    auxiliary: bool = False
    norm: Norm = batch_norm

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch height width {self.num_classes}"]:
        """Logits, float32.

        Raises:
            ValueError: if the backbone has no level ``low_level``, or as the backbone does.
        """
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        he_normal = nn.initializers.he_normal()
        conv = partial(Conv, use_bias=False, padding=0, kernel_init=he_normal, **types)
        norm = partial(self.norm, **types)
        size = (x.shape[1], x.shape[2])

        features = self.backbone(x, train=train)
        *_, finer, last = features.values()
        pyramid = ASPP(self.rates, self.width, self.dropout, conv, norm, name="aspp")
        y = pyramid(last, train=train)
        if self.low_level is not None:
            if self.low_level not in features:
                levels = list(features)
                raise ValueError(f"low_level is None or one of {levels}; got {self.low_level}")
            low = conv(self.low_level_width, (1, 1), name="low_level_conv")(
                features[self.low_level]
            )
            low = nn.relu(norm(train=train, name="low_level_norm")(low))
            y = jnp.concatenate([upsample_bilinear(y, (low.shape[1], low.shape[2])), low], axis=-1)
        y = conv(self.width, (3, 3), padding=1, name="conv")(y)
        y = nn.relu(norm(train=train, name="norm")(y))
        types["dtype"] = jnp.float32
        logits = upsample_bilinear(Conv(self.num_classes, (1, 1), **types, name="score")(y), size)
        if self.auxiliary and (train or self.is_initializing()):
            head = FCNHead(
                self.num_classes,
                norm=self.norm,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name="auxiliary_head",
            )
            self.sow_auxiliary(head(finer, train=train), size)
        return logits


DeepLabv3Plus = partial(DeepLabv3, low_level=4)

# Parameters with 21 classes: 42,004,074 (39,638,869 without the auxiliary head); 39,761,845.
DeepLabv3ResNet50 = partial(
    DeepLabv3,
    backbone=ResNet50(output_stride=8).without_head(),
    rates=(12, 24, 36),
    auxiliary=True,
)
DeepLabv3PlusResNet50 = partial(DeepLabv3Plus, backbone=ResNet50(output_stride=16).without_head())
