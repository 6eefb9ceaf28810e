"""Network in Network: a small perceptron in the place of each linear filter.

Lin, Chen and Yan, 2013, "Network in network", arXiv:1312.4400. Widths and poolings are those of the
authors' network for CIFAR-10 (https://gist.github.com/mavenlin/e56253735ef32c3c296d).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.layers import Conv, ceil_margins, max_pool, shared_fields
from opsin.ranges import BelowOne, Count


class MlpConv(nn.Module):
    """A perceptron that slides over the image, with a ReLU after each of its layers (eq. 2).

    The first layer sees a window, the others, as 1×1 convolutions, the layer before: at every pixel
    the same perceptron.

    Attributes:
        widths: of its layers.
        kernel_size: side of the window, an odd number.
    """

    widths: Sequence[Count]
    kernel_size: Count
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch height width out"]:
        """Features that are not negative, of the same size."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, kernel_init=nn.initializers.he_normal(), **types)
        side = self.kernel_size
        for index, width in enumerate(self.widths, start=1):
            x = nn.relu(conv(width, (side, side), padding=side // 2, name=f"layer{index}")(x))
            side = 1
        return x


class NINOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        widths: of the layers of each perceptron; the classifier adds one to the last.
        kernel_sizes: sides of their windows.
        pools: what halves the size after each but the last, over windows of 3×3: "max" or
            "average". The paper has the maximum alone, the authors' network both.
        dropout: probability after each of these, in training only.
    """

    widths: Sequence[Sequence[Count]] = ((192, 160, 96), (192, 192, 192), (192, 192))
    kernel_sizes: Sequence[Count] = (5, 5, 3)
    pools: Sequence[Literal["max", "average"]] = ("max", "average")
    dropout: BelowOne = 0.5
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class NINBackbone(NINOptions):
    """The perceptrons and poolings. For the fields see ``NINOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of each perceptron by its stride, finest first: {1: …, 2: …, 4: …}.

        Sizes are halved and rounded up, but those of odd numbers n to (n - 1) / 2, as in Caffe.

        Raises:
            ValueError: if ``x`` is not a batch of images, or the fields do not fit.
        """
        if x.ndim != 4:
            raise ValueError(f"NIN takes [batch, height, width, channels]; got {x.shape}")
        if not len(self.widths) == len(self.kernel_sizes) == len(self.pools) + 1:
            raise ValueError(
                f"each of {len(self.widths)} perceptrons has a kernel size, and all but the last "
                f"a pool; got {tuple(self.kernel_sizes)} and {tuple(self.pools)}"
            )
        if not set(self.pools) <= {"max", "average"}:
            raise ValueError(f'pools are "max" or "average"; got {tuple(self.pools)}')
        features = {}
        for index, (widths, side) in enumerate(zip(self.widths, self.kernel_sizes, strict=True)):
            if index > 0:
                x = _halved(x, self.pools[index - 1])
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            perceptron = MlpConv(
                widths, side, self.dtype, self.param_dtype, name=f"mlpconv{index + 1}"
            )
            x = features[2**index] = perceptron(x)
        return features


def _halved(x: Array, pool: str) -> Array:
    """Pooled over windows of 3×3 with stride 2, of which the last end with the image."""
    if pool == "max":
        return max_pool(x, (3, 3), strides=(2, 2), padding="CEIL")
    margins: Any = ceil_margins(x.shape[1:3], (3, 3), (2, 2))
    return nn.avg_pool(x, (3, 3), strides=(2, 2), padding=margins, count_include_pad=False)


class NIN(NINOptions):
    """Backbone, the last layer of its last perceptron, and its mean over the image (section 3.2).

    The head is that layer, a map for each class: nothing is fully connected, and the number of
    parameters does not depend on the image. They are ``{"backbone": those of NINBackbone, "head":
    …}``. For the other fields see ``NINOptions``.
    """

    num_classes: Count = 10

    @nn.nowrap
    def without_head(self, name: str | None = None) -> NINBackbone:
        """The backbone of this classifier, for other tasks: ``NIN().without_head()``."""
        return NINBackbone(**shared_fields(self, NINBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32, which a ReLU keeps from being negative: they are means of feature maps.

        Any image size; raises ValueError as the backbone does.
        """
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        types: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": self.param_dtype}
        he_normal = nn.initializers.he_normal()
        head = Conv(self.num_classes, (1, 1), kernel_init=he_normal, **types, name="head")
        return jnp.mean(nn.relu(head(x)), axis=(1, 2))
