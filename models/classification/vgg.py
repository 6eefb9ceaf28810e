"""Very deep plain networks of 3×3 convolutions.

Simonyan and Zisserman, 2014, "Very deep convolutional networks for large-scale image recognition",
arXiv:1409.1556. Batch norm is torchvision's addition. Weights are drawn as He et al., 2015,
arXiv:1502.01852, section 2.2, so that the deep ones need no shallow one to start from.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.layers import (
    Conv,
    Norm,
    adaptive_average_pool,
    batch_norm,
    max_pool,
    shared_fields,
)
from opsin.ranges import BelowOne, Count, CountOrZero, Depth


class VGGOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        stage_sizes: convolutions of each stage; stage i has ``width * 2**i`` channels, at most
            ``8 * width``, and ends with a max-pool.
        width: channels of the first stage.
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them after each convolution, which
            keeps its bias; None as in the paper.
    """

    stage_sizes: Sequence[Depth]
    width: Count = 64
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class VGGBackbone(VGGOptions):
    """The stages. For the fields see ``VGGOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of each stage's max-pool by its stride, finest first.

        {2: pool1, 4: pool2, 8: pool3, 16: pool4, 32: pool5} with five stages. Sizes that a stride
        does not divide are rounded up, as in the authors' Caffe; torchvision rounds down.

        Raises:
            ValueError: if ``x`` is not a batch of images.
        """
        if x.ndim != 4:
            raise ValueError(f"VGG takes [batch, height, width, channels]; got {x.shape}")
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, padding=1, kernel_init=nn.initializers.he_normal(), **types)
        features = {}
        for stage, layers in enumerate(self.stage_sizes, start=1):
            channels = self.width * min(2 ** (stage - 1), 8)
            for layer in range(1, layers + 1):
                x = conv(channels, (3, 3), name=f"conv{stage}_{layer}")(x)
                if self.norm is not None:
                    norm = partial(self.norm, **types)
                    x = norm(train=train, name=f"norm{stage}_{layer}")(x)
                x = nn.relu(x)
            x = max_pool(x, (2, 2), strides=(2, 2), padding="CEIL")
            features[2**stage] = x
        return features


class FullyConnected(nn.Module):
    """The layers fc6 and fc7, each with ReLU and dropout, as convolutions.

    Over an image of ``kernel_size`` without padding they are VGG's; with padding they slide over
    any image, with the same parameters (Long et al., 2015, arXiv:1411.4038, section 3.1).

    Attributes:
        hidden: channels of both.
        kernel_size: side of fc6's kernel.
        padding: rows and columns of zeros on each side of the image for fc6.
        dropout: probability, in training only.
        dropout_first: whether it acts before each layer, as in torchvision's AlexNet, or after it.
    """

    hidden: Count = 4096
    kernel_size: Count = 7
    padding: CountOrZero = 0
    dropout: BelowOne = 0.5
    dropout_first: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch height_out width_out {self.hidden}"]:
        """Features; ``kernel_size - 1 - 2 * padding`` rows and columns less."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, self.hidden, kernel_init=nn.initializers.he_normal(), **types)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        side = self.kernel_size
        if self.dropout_first:
            x = drop()(x)
        x = nn.relu(conv((side, side), padding=self.padding, name="fc6")(x))
        x = drop()(x)
        x = nn.relu(conv((1, 1), name="fc7")(x))
        return x if self.dropout_first else drop()(x)


def fully_connected_logits(
    x: Float[Array, "batch height width channels"],
    fc: FullyConnected,
    num_classes: int,
    *,
    train: bool,
) -> Float[Array, "batch classes"]:
    """Adaptive pooling to fc6's kernel, ``fc``, and a linear layer called "head"; float32.

    Within ``nn.compact``.
    """
    x = adaptive_average_pool(x, (fc.kernel_size, fc.kernel_size))
    x = fc(x, train=train)[:, 0, 0]
    return nn.Dense(num_classes, dtype=jnp.float32, param_dtype=fc.param_dtype, name="head")(x)


class VGG(VGGOptions):
    """Backbone, two hidden layers and a linear head. For the other fields see ``VGGOptions``.

    Parameters are ``{"backbone": those of VGGBackbone, "fc": those of FullyConnected, "head": …}``;
    with the layers of the paper, 224×224 pixels give fc6 its 7×7 features. From any other size the
    features are averaged, or repeated, to 7×7 first, as in torchvision.

    Attributes:
        hidden: channels of the two hidden layers.
        dropout: probability after each of them, in training only.
    """

    num_classes: Count = 1000
    hidden: Count = 4096
    dropout: BelowOne = 0.5

    @nn.nowrap
    def without_head(self, name: str | None = None) -> VGGBackbone:
        """The backbone of this classifier, for other tasks: ``VGG16().without_head()``."""
        return VGGBackbone(**shared_fields(self, VGGBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Any image size; raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        fc = FullyConnected(**shared_fields(self, FullyConnected), name="fc")
        return fully_connected_logits(x, fc, self.num_classes, train=train)


# Table 1 of the paper, columns A, B, D and E: parameters 132,863,336; 133,047,848; 138,357,544;
# 143,667,240.
VGG11 = partial(VGG, stage_sizes=(1, 1, 2, 2, 2))
VGG13 = partial(VGG, stage_sizes=(2, 2, 2, 2, 2))
VGG16 = partial(VGG, stage_sizes=(2, 2, 3, 3, 3))
VGG19 = partial(VGG, stage_sizes=(2, 2, 4, 4, 4))

# With batch norm: parameters 132,868,840; 133,053,736; 138,365,992; 143,678,248.
VGG11BatchNorm = partial(VGG11, norm=batch_norm)
VGG13BatchNorm = partial(VGG13, norm=batch_norm)
VGG16BatchNorm = partial(VGG16, norm=batch_norm)
VGG19BatchNorm = partial(VGG19, norm=batch_norm)
