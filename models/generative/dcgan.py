"""DCGAN, a generator and a discriminator of strided convolutions.

Radford, Metz and Chintala, 2016, "Unsupervised representation learning with deep convolutional
generative adversarial networks", arXiv:1511.06434.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from opsin.models.generative.gan import Discriminator, Generator, Make
from opsin.models.upsampling import ConvTranspose
from opsin.ranges import Count


class DCGANGenerator(Generator):
    """Transposed convolutions, each with its norm and ReLU, from one pixel to the image.

    The first makes a map of height and width / 2**halvings, those after it are 4×4 of stride 2. The
    last map before the image has ``width`` channels, each one before it twice as many. With the
    defaults it has 3,576,704 parameters. For the fields see ``Generator``.
    """

    @nn.nowrap
    def outputs(self, z: Array, size: tuple[int, int], norm: Make | None) -> Array:
        """As in the base."""
        conv = partial(
            ConvTranspose,
            use_bias=norm is None,
            kernel_init=self.kernel_init,
            param_dtype=self.param_dtype,
        )
        x = z[:, None, None]  # [B, 1, 1, latent + classes]
        first: dict[str, Any] = {"kernel_size": size, "strides": (1, 1)}
        others: dict[str, Any] = {"kernel_size": (4, 4), "padding": 1}
        for index in range(1, self.halvings + 1):
            features = self.width * 2 ** (self.halvings - index)
            options = first if index == 1 else others
            x = conv(features, dtype=self.dtype, name=f"conv{index}", **options)(x)
            x = nn.relu(x if norm is None else norm(name=f"norm{index}")(x))
        return conv(self.image[2], name="head", **others)(x)


class DCGANDiscriminator(Discriminator):
    """Convolutions 4×4 of stride 2, with norm but for the first, leaky ReLU, and a dense layer.

    The first has ``width`` channels, each one after it twice as many. With the defaults and three
    channels it has 2,765,568 parameters. For the other fields see ``Discriminator``.

    Attributes:
        hidden: units of a dense layer before the last, or None. Few convolutions see places only
            apart: after two halvings the logit is a sum over patches of 10 pixels.
    """

    hidden: Count | None = None

    @nn.nowrap
    def features(self, x: Array, conv: Make, dense: Make, norm: Make | None) -> Array:
        """The last map, all of it, or the hidden units that see it."""
        conv = partial(conv, strides=2, padding=1, use_bias=norm is None)
        for index in range(1, self.halvings + 1):
            x = conv(self.width * 2 ** (index - 1), (4, 4), name=f"conv{index}")(x)
            if norm is not None and index > 1:
                x = norm(name=f"norm{index}")(x)
            x = nn.leaky_relu(x, 0.2)
        x = x.reshape(len(x), -1).astype(jnp.float32)
        if self.hidden is not None:
            x = nn.leaky_relu(dense(self.hidden, name="hidden")(x), 0.2)
        return x


# For 32×32 pixels: parameters 1,068,928 and 663,296. For 28×28 take two halvings.
DCGANGenerator32 = partial(DCGANGenerator, image=(32, 32, 3), halvings=3)


DCGANDiscriminator32 = partial(DCGANDiscriminator, halvings=3)
