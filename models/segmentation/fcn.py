"""Fully convolutional networks: FCN-32s, -16s and -8s, and their plain successor on any backbone.

Long, Shelhamer and Darrell, 2015, "Fully convolutional networks for semantic segmentation",
arXiv:1411.4038. Both keep the size of any image: the paper pads it by 100 pixels and crops the
result, here convolutions are padded and what lies beyond the image is cropped.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.classification.resnet import ResNet50
from opsin.models.classification.vgg import VGG16, FullyConnected
from opsin.models.layers import Conv, Norm, batch_norm, shared_fields, sow_auxiliary
from opsin.models.upsampling import ConvTranspose
from opsin.ops.upsampling import bilinear_kernel, upsample_bilinear
from opsin.ranges import BelowOne, Count, CountOrZero


class Segmenter(nn.Module):
    """The fields of a network that labels every pixel from the features of a backbone.

    Attributes:
        backbone: a module that returns features by stride, finest first.
        num_classes: outputs of each pixel.
    """

    backbone: nn.Module
    num_classes: Count = 21
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def sow_auxiliary(self, logits: Array, size: tuple[int, int]) -> None:
        """Sows the logits of an auxiliary head, enlarged."""
        sow_auxiliary(self, upsample_bilinear(logits, size))


class SkipFCN(Segmenter):
    """FCN-32s, -16s and -8s: class scores of several strides, added from coarse to fine (Fig. 3).

    The coarsest features pass fc6 and fc7 first. Scores start at zero and transposed convolutions
    as bilinear interpolation (sections 4.2 and 4.3). For the other fields see ``Segmenter``.

    Attributes:
        skips: strides of the finer features that are scored too, descending.
        hidden: channels of fc6 and fc7.
        kernel_size: side of fc6's kernel, an odd number.
        dropout: probability after fc6 and fc7, in training only.
        learned_output: the last upsampling is a transposed convolution too; otherwise it is
            bilinear interpolation and nothing else (section 4.3, "dense prediction").
    """

    skips: Sequence[CountOrZero] = ()
    hidden: Count = 4096
    kernel_size: Count = 7
    dropout: BelowOne = 0.5
    learned_output: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch height width {self.num_classes}"]:
        """Logits, float32.

        Raises:
            ValueError: if the kernel's side is even, or the backbone has no features of a skip's
                stride, or of another size than their stride says (as with dilation: use ``FCN``).
        """
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd to keep the size; got {self.kernel_size}")
        features = self.backbone(x, train=train)
        stride, *_ = strides = (max(features), *self.skips)
        if not set(strides) <= set(features) or list(strides) != sorted(set(strides))[::-1]:
            raise ValueError(f"skips descend among {sorted(features)[-2::-1]}; got {self.skips}")
        for s in strides:
            if features[s].shape[1:3] != tuple(-(-side // s) for side in x.shape[1:3]):
                raise ValueError(
                    f"features of stride {s} are {features[s].shape} for images {x.shape}; "
                    "SkipFCN takes a backbone without dilation"
                )

        types: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": self.param_dtype}
        zeros = nn.initializers.zeros
        score = partial(Conv, self.num_classes, (1, 1), kernel_init=zeros, **types)
        fc = FullyConnected(
            self.hidden,
            self.kernel_size,
            padding=self.kernel_size // 2,
            dropout=self.dropout,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="fc",
        )
        scores = score(name=f"score{stride}")(fc(features[stride], train=train))

        def enlarged(scores: Array, stride: int, finer: int, size: tuple[int, ...]) -> Array:
            factor = stride // finer
            if finer > 1 or self.learned_output:
                side = 2 * factor - factor % 2
                scores = ConvTranspose(
                    self.num_classes,
                    (side, side),
                    (factor, factor),
                    padding=factor // 2,
                    use_bias=False,
                    kernel_init=bilinear,
                    **types,
                    name=f"upsample{stride}",
                )(scores)
            else:
                height, width = scores.shape[1:3]
                scores = upsample_bilinear(scores, (height * factor, width * factor))
            return scores[:, : size[0], : size[1]]

        for finer in self.skips:
            skip = features[finer]
            scores = enlarged(scores, stride, finer, skip.shape[1:3])
            scores = scores + score(name=f"score{finer}")(skip)
            stride = finer
        return enlarged(scores, stride, 1, x.shape[1:3])


def bilinear(
    key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[Array, "rows columns channels channels"]:
    """An initialiser: ``bilinear_kernel``, whatever the key."""
    del key
    rows, columns, channels, _ = shape
    return bilinear_kernel((rows, columns), channels).astype(dtype)


# Parameters with 21 classes: 134,346,581; 134,364,410; 134,376,863. With `learned_output`, the
# first has 136,152,917 and the last 134,489,759.
FCN32s = partial(SkipFCN, backbone=VGG16().without_head(), skips=())
FCN16s = partial(SkipFCN, backbone=VGG16().without_head(), skips=(16,))
FCN8s = partial(SkipFCN, backbone=VGG16().without_head(), skips=(16, 8))


class FCNHead(nn.Module):
    """torchvision's head: 3×3 convolution to ``width``, norm, ReLU, dropout, linear map.

    Attributes:
        num_classes: outputs of each pixel.
        width: channels within; None is a quarter of the input's.
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them.
        dropout: probability, in training only.
    """

    num_classes: Count
    width: Count | None = None
    norm: Norm = batch_norm
    dropout: BelowOne = 0.1
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch height width {self.num_classes}"]:
        """Logits of each feature, float32."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = x.shape[-1] // 4 if self.width is None else self.width
        he_normal = nn.initializers.he_normal()
        conv = Conv(width, (3, 3), use_bias=False, kernel_init=he_normal, **types, name="conv")
        norm = self.norm(train=train, **types, name="norm")
        x = nn.relu(norm(conv(x)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        types["dtype"] = jnp.float32
        return Conv(self.num_classes, (1, 1), **types, name="score")(x)


class FCN(Segmenter):
    """A head on the coarsest features and bilinear interpolation.

    It is torchvision's ``fcn_resnet50``, made for backbones with dilation. For the other fields see
    ``Segmenter``.

    Attributes:
        auxiliary: in training, a second head on the features one level finer is run too (Zhao et
            al., 2017, arXiv:1612.01105, section 3.3). Its logits, of the same shape, are sown as
            "logits" into the collection "auxiliary".
        width: channels within the heads; None is a quarter of their input's.
        norm: of the heads.
        dropout: of the heads.
    """

    auxiliary: bool = False
    width: Count | None = None
    norm: Norm = batch_norm
    dropout: BelowOne = 0.1

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch height width {self.num_classes}"]:
        """Logits, float32."""
        features = list(self.backbone(x, train=train).values())
        _, height, width, _ = x.shape
        make_head = partial(FCNHead, **shared_fields(self, FCNHead))
        if self.auxiliary and (train or self.is_initializing()):
            head = make_head(name="auxiliary_head")
            self.sow_auxiliary(head(features[-2], train=train), (height, width))
        logits = make_head(name="head")(features[-1], train=train)
        return upsample_bilinear(logits, (height, width))


# Parameters with 21 classes: 35,322,218; 32,957,013 without the auxiliary head.
FCNResNet50 = partial(FCN, backbone=ResNet50(output_stride=8).without_head(), auxiliary=True)
