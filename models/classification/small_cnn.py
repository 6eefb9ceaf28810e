"""A small convolutional network, to begin with where nothing is given.

Two 3×3 convolutions, each with a ReLU and an average over 2×2 pixels, and one hidden layer: the
network of the current MNIST example of Flax (https://github.com/google/flax), without its dropout.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.layers import Conv, Norm, adaptive_average_pool, batch_norm, shared_fields
from opsin.ranges import BelowOne, Count


class SmallCNNOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        widths: channels of the convolutions, each of which halves the size.
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them after each convolution, which
            keeps its bias; None leaves it out.
    """

    widths: Sequence[Count] = (32, 64)
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class SmallCNNBackbone(SmallCNNOptions):
    """The convolutions. For the fields see ``SmallCNNOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """The last features of each stride, finest first: {1: conv1, 2: conv2, 4: its average}.

        An odd last row or column is left out where the size is halved.

        Raises:
            ValueError: if ``x`` is not a batch of images, or they are too small to be halved.
        """
        if x.ndim != 4:
            raise ValueError(f"SmallCNN takes [batch, height, width, channels]; got {x.shape}")
        if min(x.shape[1:3]) < 2 ** len(self.widths):
            raise ValueError(
                f"SmallCNN halves the size {len(self.widths)} times, and the images have "
                f"{x.shape[1]}x{x.shape[2]} pixels"
            )
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        features = {}
        for index, width in enumerate(self.widths):
            he_normal = nn.initializers.he_normal()
            name = f"conv{index + 1}"
            x = Conv(width, (3, 3), padding=1, kernel_init=he_normal, **types, name=name)(x)
            if self.norm is not None:
                x = self.norm(train=train, **types, name=f"norm{index + 1}")(x)
            x = features[2**index] = nn.relu(x)
            x = features[2 ** (index + 1)] = nn.avg_pool(x, (2, 2), strides=(2, 2))
        return features


class SmallCNN(SmallCNNOptions):
    """Backbone, a hidden layer and a linear head. For the other fields see ``SmallCNNOptions``.

    Parameters are ``{"backbone": those of SmallCNNBackbone, "hidden": …, "head": …}``. The features
    of 28×28 pixels are 7×7; those of other sizes are averaged, or repeated, to as many.

    Attributes:
        hidden_width: of the hidden layer.
        dropout: probability after it, in training only.
    """

    num_classes: Count = 10
    hidden_width: Count = 256
    dropout: BelowOne = 0.0

    @nn.nowrap
    def without_head(self, name: str | None = None) -> SmallCNNBackbone:
        """The backbone of this classifier, for other tasks: ``SmallCNN().without_head()``."""
        return SmallCNNBackbone(**shared_fields(self, SmallCNNBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = adaptive_average_pool(x, (7, 7)).reshape(len(x), -1)
        x = nn.relu(nn.Dense(self.hidden_width, **types, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        types["dtype"] = jnp.float32
        return nn.Dense(self.num_classes, **types, name="head")(x)


# Parameters of SmallCNN for grey images 824,458, and with batch norms 824,650.
SmallCNNBatchNorm = partial(SmallCNN, norm=batch_norm)
