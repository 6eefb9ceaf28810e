"""Translation of images into images: a discriminator of patches, and the generator.

Isola, Zhu, Zhou and Efros, 2017, "Image-to-image translation with conditional adversarial
networks", arXiv:1611.07004.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from opsin.models.generative.gan import DiscriminatorLayers, norm_of
from opsin.models.layers import batch_norm
from opsin.models.segmentation.unet import UNet
from opsin.ranges import Depth


class PatchGAN(DiscriminatorLayers):
    """Convolutions 4×4 that judge each patch of an image, given what the image was made from.

    Convolutions of stride 2, one of stride 1, each with leaky ReLU and all but the first with norm,
    and a last one. With the defaults a patch is 70×70 pixels, and two images of three channels make
    2,768,705 parameters. For the other fields see ``DiscriminatorLayers``.

    Attributes:
        width: channels of the first convolution; each one after it has twice as many, up to eight
            times.
        strided: convolutions of stride 2: 1, 2, 3, 4 and 5 make patches of 16, 34, 70, 142 and 286
            pixels a side.
    """

    strided: Depth = 3

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        condition: Float[Array, "batch height width _"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch rows columns"]:
        """Logits of being real, float32, a patch each.

        There are height // 2**strided - 2 rows of them. The features that the last convolution
        sees are sown as "features" into the collection "intermediates".

        Args:
            x: images, real ones or the generator's.
            condition: what the generator made them from; None judges them by themselves.
            train: use the statistics of the batch.

        Raises:
            ValueError: for images that are too small, a condition of another size, or ``strided``
                0.
        """
        x = self._joined(x, condition)
        norm = norm_of(self, train=train)
        conv = partial(self.layers(train=train)[0], kernel_size=(4, 4), padding=1)
        for index in range(1, self.strided + 2):
            x = conv(
                self.width * min(2 ** (index - 1), 8),
                strides=2 if index <= self.strided else 1,
                use_bias=norm is None or index == 1,
                name=f"conv{index}",
            )(x)
            if norm is not None and index > 1:
                x = norm(name=f"norm{index}")(x)
            x = nn.leaky_relu(x, 0.2)
        self.sow("intermediates", "features", x)
        return conv(1, dtype=jnp.float32, name="head")(x)[..., 0]

    def _joined(self, x: Array, condition: Array | None) -> Array:
        if self.strided < 1:
            raise ValueError(f"strided is at least 1; got {self.strided}")
        least = 3 * 2**self.strided
        if x.ndim != 4 or min(x.shape[1:3]) < least:
            raise ValueError(
                f"a PatchGAN with strided={self.strided} takes [batch, height, width, channels] of "
                f"at least {least} pixels a side; got {list(x.shape)}"
            )
        if condition is None:
            return x
        if condition.shape[:3] != x.shape[:3]:
            raise ValueError(
                "image and condition have one batch, height and width; "
                f"got {list(x.shape)} and {list(condition.shape)}"
            )
        return jnp.concatenate([condition, x], axis=-1)


# The generator: outputs are linear, as those of `models.generative.gan`. The paper's own U-Net
# strides down to a single pixel and takes 256×256; this one has its skips and takes any size. Noise
# is dropout, at the lowest level. The paper samples with it, and with the statistics of the batch:
# that is train=True.
TranslationUNet = partial(UNet, num_classes=3, padding="same", norm=batch_norm, dropout=0.5)
