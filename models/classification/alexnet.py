"""AlexNet and ZFNet: five convolutions and two hidden layers.

Krizhevsky, Sutskever and Hinton, 2012, "ImageNet classification with deep convolutional neural
networks" (NIPS); Krizhevsky, 2014, "One weird trick for parallelizing convolutional neural
networks", arXiv:1404.5997, in the form of torchvision, whose weights fit; Zeiler and Fergus, 2013,
"Visualizing and understanding convolutional networks", arXiv:1311.2901. Weights are drawn as He et
al., 2015, arXiv:1502.01852, section 2.2, instead of with a deviation of 0.01.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.classification.vgg import FullyConnected, fully_connected_logits
from opsin.models.layers import Conv, max_pool, shared_fields
from opsin.ops.response_norm import response_norm
from opsin.ranges import BelowOne, Count, CountOrZero

POOLED = (1, 2, 5)
"""The convolutions that a pooling follows, of windows of three pixels a side with stride 2."""


class AlexNetOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        widths: channels of the five convolutions.
        groups: towers of the second, fourth and fifth convolution: each sees its share of the
            channels alone. The third joins them (Fig. 2 of the paper).
        kernel_sizes: sides of the five kernels.
        strides: of the five convolutions.
        paddings: rows and columns of zeros at each side of what the five see.
        pool_padding: "VALID" leaves out the last row and column where no whole window ends with
            them, "CEIL" has smaller windows there.
        response_norm: whether ``ops.response_norm`` acts "before" the first two poolings (as
            Krizhevsky et al., section 3.5) or "after" them (as Zeiler and Fergus, Fig. 3), or None.
    """

    widths: Sequence[Count] = (96, 256, 384, 384, 256)
    groups: Count = 2
    kernel_sizes: Sequence[Count] = (11, 5, 3, 3, 3)
    strides: Sequence[Count] = (4, 1, 1, 1, 1)
    paddings: Sequence[CountOrZero] = (2, 2, 1, 1, 1)
    pool_padding: Literal["VALID", "CEIL"] = "VALID"
    response_norm: Literal["before", "after"] | None = "before"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class AlexNetBackbone(AlexNetOptions):
    """The convolutions and poolings. For the fields see ``AlexNetOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """The last features of each stride, finest first.

        {4: conv1, 8: conv2, 16: conv5, 32: pool5} of AlexNet, {2: conv1, 4: pool1, 8: conv2,
        16: conv5, 32: pool5} of ZFNet. Sizes are those of the papers at 224 pixels, 55, 27, 13 and
        6 of AlexNet, not the image's over the stride.

        Raises:
            ValueError: if ``x`` is not a batch of images, is too small, or a field holds what it
                cannot.
        """
        del train  # the same computation in training and in evaluation
        if x.ndim != 4:
            raise ValueError(f"AlexNet takes [batch, height, width, channels]; got {x.shape}")
        if self.pool_padding not in ("VALID", "CEIL"):
            raise ValueError(f'pool_padding is "VALID" or "CEIL"; got {self.pool_padding!r}')
        if self.response_norm not in ("before", "after", None):
            raise ValueError(
                f'response_norm is "before", "after" or None; got {self.response_norm!r}'
            )
        layers = self.widths, self.kernel_sizes, self.strides, self.paddings
        if {len(layer) for layer in layers} != {5}:
            raise ValueError(f"AlexNet has five convolutions; got {layers}")
        _, height, width, _ = x.shape
        conv = partial(
            Conv,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        features: dict[int, Any] = {}
        level = 1
        for index, (channels, side, stride, padding) in enumerate(
            zip(*layers, strict=True), start=1
        ):
            x = conv(
                channels,
                (side, side),
                strides=stride,
                padding=padding,
                feature_group_count=self.groups if index in (2, 4, 5) else 1,
                name=f"conv{index}",
            )(x)
            x = nn.relu(x)
            normed = index in (1, 2)
            if normed and self.response_norm == "before":
                x = response_norm(x)
            level *= stride
            features[level] = x
            if index in POOLED:
                x = max_pool(x, (3, 3), strides=(2, 2), padding=self.pool_padding)
                if normed and self.response_norm == "after":
                    x = response_norm(x)
                level *= 2
                features[level] = x
            if 0 in x.shape:
                raise ValueError(
                    f"images of {height}x{width} are too small for AlexNet: nothing is left after "
                    f"conv{index}; enlarge them, for instance to 224x224"
                )
        return features


class AlexNet(AlexNetOptions):
    """Backbone, two hidden layers and a linear head. For the other fields see ``AlexNetOptions``.

    Parameters are ``{"backbone": those of AlexNetBackbone, "fc": those of FullyConnected,
    "head": …}``. Features of another size than 6×6, which 224×224 pixels give, are averaged or
    repeated first, as in torchvision.

    Attributes:
        hidden: channels of the two hidden layers.
        kernel_size: side of the features that the first of them sees.
        dropout: probability at both, in training only.
        dropout_first: as of ``FullyConnected``.
    """

    num_classes: Count = 1000
    hidden: Count = 4096
    kernel_size: Count = 6
    dropout: BelowOne = 0.5
    dropout_first: bool = False

    @nn.nowrap
    def without_head(self, name: str | None = None) -> AlexNetBackbone:
        """The backbone of this classifier, for other tasks: ``AlexNet().without_head()``."""
        return AlexNetBackbone(**shared_fields(self, AlexNetBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        fc = FullyConnected(**shared_fields(self, FullyConnected), name="fc")
        return fully_connected_logits(x, fc, self.num_classes, train=train)


# Parameters of AlexNet, whose towers were trained on a GPU each, 60,965,224; of the same layers in
# one tower 62,378,344; of torchvision's form 61,100,840.
AlexNetOneTower = partial(AlexNet, groups=1)
AlexNetOneWeirdTrick = partial(
    AlexNet,
    widths=(64, 192, 384, 256, 256),
    groups=1,
    response_norm=None,
    dropout_first=True,
)

# Fig. 3 of Zeiler and Fergus, 62,357,608, and the wider variant that Stanford's cs231n teaches,
# 107,627,624. The paper names no constants of its contrast normalisation: here they are AlexNet's.
ZFNet = partial(
    AlexNet,
    groups=1,
    kernel_sizes=(7, 5, 3, 3, 3),
    strides=(2, 2, 1, 1, 1),
    paddings=(1, 0, 1, 1, 1),
    pool_padding="CEIL",
    response_norm="after",
)
ZFNetWide = partial(ZFNet, widths=(96, 256, 512, 1024, 512))
