"""The residual generator and discriminator of Miyato et al., 2018, arXiv:1802.05957."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from opsin.models.generative.gan import Discriminator, Generator, Make, glorot
from opsin.models.layers import Conv, Norm
from opsin.ops.upsampling import upsample_nearest
from opsin.ranges import Count, Depth, DepthOrZero


class ResidualGenerator(Generator):
    """A dense layer, residual blocks that double the size, norm, ReLU and a convolution 3×3.

    All maps have ``width`` channels. With the defaults it is the network of Miyato et al. for
    CIFAR-10, of 4,276,739 parameters. For the fields see ``Generator``.
    """

    image: tuple[Count, Count, Count] = (32, 32, 3)
    latent: Count = 128
    width: Count = 256
    halvings: DepthOrZero = 3
    kernel_init: Callable[..., Array] = glorot

    @nn.nowrap
    def outputs(self, z: Array, size: tuple[int, int], norm: Make | None) -> Array:
        """As in the base."""
        options = {"kernel_init": self.kernel_init, "param_dtype": self.param_dtype}
        conv = partial(Conv, dtype=self.dtype, **options)
        dense = nn.Dense(size[0] * size[1] * self.width, dtype=self.dtype, **options, name="dense")
        x = dense(z).reshape(-1, *size, self.width)
        for index in range(1, self.halvings + 1):
            x = ResidualBlock(self.width, conv, norm, resize="up", name=f"block{index}")(x)
        x = nn.relu(x if norm is None else norm(name="norm")(x))
        return conv(self.image[2], (3, 3), dtype=jnp.float32, name="head")(x)


class ResidualBlock(nn.Module):
    """x + conv(ReLU(norm(conv(ReLU(norm(x)))))), doubled in size by copies or halved by means.

    Attributes:
        features: channels of the result.
        conv: makes the convolutions.
        norm: makes the norms; None for none.
        resize: "up" doubles the size before the first convolution, "down" halves it after the
            second.
        first: leave out the first norm and ReLU, which would cut off half of an image's values.
    """

    features: Count
    conv: Make
    norm: Make | None
    resize: Literal["up", "down"] | None = None
    first: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch height_out width_out {self.features}"]:
        """The sum of both ways."""
        y = x
        # Twice the variance of `glorot`, for what follows a ReLU.
        start = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
        for index in (1, 2):
            if index == 2 or not self.first:
                y = nn.relu(y if self.norm is None else self.norm(name=f"norm{index}")(y))
            if index == 1 and self.resize == "up":
                y = upsample_nearest(y, 2)
            y = self.conv(self.features, (3, 3), kernel_init=start, name=f"conv{index}")(y)
        if self.resize == "down":
            x, y = (nn.avg_pool(each, (2, 2), (2, 2)) for each in (x, y))
        if self.resize or x.shape[-1] != self.features:
            # A 1×1 convolution and a resizing may change places: it is cheaper on the smaller map.
            x = self.conv(self.features, (1, 1), name="shortcut")(x)
        return y + (upsample_nearest(x, 2) if self.resize == "up" else x)


class ResidualDiscriminator(Discriminator):
    """Residual blocks (the first ones halve the size), ReLU, sum over pixels, dense layer.

    All maps have ``width`` channels. With the defaults and three channels it is the network of
    Miyato et al. for CIFAR-10, of 1,053,824 parameters. For the other fields see ``Discriminator``.

    Attributes:
        blocks: how many there are, not fewer than halvings.
    """

    width: Count = 128
    norm: Norm | None = None
    spectral: bool = True
    kernel_init: Callable[..., Array] = glorot
    halvings: DepthOrZero = 2
    blocks: Depth = 4

    @nn.nowrap
    def features(self, x: Array, conv: Make, dense: Make, norm: Make | None) -> Array:
        """The sum of the last map. Raises ValueError for fewer blocks than halvings."""
        if self.blocks < self.halvings:
            raise ValueError(f"{self.blocks} blocks cannot halve images {self.halvings} times")
        block = partial(ResidualBlock, self.width, conv, norm)
        for index in range(1, self.blocks + 1):
            resize = "down" if index <= self.halvings else None
            x = block(resize=resize, first=index == 1, name=f"block{index}")(x)
        return jnp.sum(nn.relu(x), axis=(1, 2), dtype=jnp.float32)
