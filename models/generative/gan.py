"""What generators and discriminators of adversarial networks share.

Goodfellow et al., 2014, "Generative adversarial networks", arXiv:1406.2661. A generator's outputs
are linear, float32: the image in [0, 1] is (tanh + 1) / 2 of them. A discriminator takes images of
any range and gives one logit an image; the features that its last layer sees are sown as
"features" into the collection "intermediates".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from opsin.models.generative.inputs import check_halves, join, one_hot_condition
from opsin.models.layers import Conv, Norm, batch_norm
from opsin.models.spectral import SpectralConv, SpectralDense
from opsin.ranges import Count, DepthOrZero

Make = Callable[..., Callable[..., Any]]  # a layer's class, or a `partial` of it


def small_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """An initialiser: N(0, 0.02²) (Radford et al., section 4)."""
    return 0.02 * jax.random.normal(key, shape, dtype)


def glorot(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """An initialiser: that of Glorot and Bengio, 2010, as the authors of the residual pair use."""
    return nn.initializers.xavier_uniform()(key, shape, dtype)


class Generator(nn.Module):
    """What generators share.

    Attributes:
        image: height, width and channels.
        latent: dimensions of z.
        width: channels of one of the maps; each generator says of which.
        halvings: how often the size is doubled; 2**halvings must divide height and width.
        num_classes: of the labels that are joined to z as one-hot, whose weights in the first layer
            are their embedding; None if there are none.
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them; None for none.
        kernel_init: of the kernels, but for those 3×3 of ``ResidualBlock``.
    """

    image: tuple[Count, Count, Count] = (64, 64, 3)
    latent: Count = 100
    width: Count = 64
    halvings: DepthOrZero = 4
    num_classes: Count | None = None
    norm: Norm | None = batch_norm
    kernel_init: Callable[..., Array] = small_normal
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        *,
        labels: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch {self.image[0]} {self.image[1]} {self.image[2]}"]:
        """Linear outputs, float32.

        Raises:
            ValueError: for an image that cannot be halved so often, latents of another size, or
                labels that are missing or given to a model without classes.
        """
        size = smallest_map(self.image[:2], self.halvings)
        if self.latent < 1:
            raise ValueError(f"a generator takes at least one number; got latent={self.latent}")
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise ValueError(f"a generator takes [batch, {self.latent}]; got {list(z.shape)}")
        z = join(z, one_hot_classes(labels, self.num_classes, len(z)))
        return self.outputs(z, size, norm_of(self, train=train))

    @nn.nowrap
    def outputs(self, z: Array, size: tuple[int, int], norm: Make | None) -> Array:
        """The outputs for latents and classes, from a first map of this height and width."""
        raise NotImplementedError


class DiscriminatorLayers(nn.Module):
    """The fields of what makes a discriminator's layers.

    Attributes:
        width: channels of one of the maps; each discriminator says of which.
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them; None for none. With batch
            norm the logit of an image depends on the others, as a penalty on its gradient must not.
        spectral: normalise each kernel by its largest singular value; see ``SpectralLayer``.
        kernel_init: of the kernels, but for those 3×3 of ``ResidualBlock``.
    """

    width: Count = 64
    norm: Norm | None = batch_norm
    spectral: bool = False
    kernel_init: Callable[..., Array] = small_normal
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def layers(self, *, train: bool) -> tuple[Make, Make]:
        """What makes a convolution, and what makes a dense layer, which is float32."""
        conv, dense = Conv, nn.Dense
        if self.spectral:
            conv, dense = (partial(make, train=train) for make in (SpectralConv, SpectralDense))
        options = {"kernel_init": self.kernel_init, "param_dtype": self.param_dtype}
        conv = partial(conv, dtype=self.dtype, **options)
        return conv, partial(dense, dtype=jnp.float32, **options)


class Discriminator(DiscriminatorLayers):
    """What discriminators of whole images share. For the others see ``DiscriminatorLayers``.

    Attributes:
        halvings: how often the size is halved; 2**halvings must divide height and width.
        num_classes: of the labels that the logits are conditional on; None if they are not.
        condition: "projection" adds the inner product of features and an embedding of the class
            (Miyato and Koyama, 2018, arXiv:1802.05637); "planes" joins a plane a class to the
            image.
    """

    halvings: DepthOrZero = 4
    num_classes: Count | None = None
    condition: Literal["projection", "planes"] = "projection"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        labels: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, " batch"]:
        """Logits of being real, float32; the last layer has no bias.

        Raises:
            ValueError: for images that cannot be halved so often, an unknown ``condition``, or
                labels that are missing or given to a model without classes.
        """
        if x.ndim != 4:
            raise ValueError(f"a discriminator takes batches of images; got {list(x.shape)}")
        smallest_map(x.shape[1:3], self.halvings)
        if self.condition not in ("projection", "planes"):
            raise ValueError(f'condition is "projection" or "planes"; got {self.condition!r}')
        classes = one_hot_classes(labels, self.num_classes, len(x))
        if classes is not None and self.condition == "planes":
            x, classes = join(x, classes[:, None, None]), None
        conv, dense = self.layers(train=train)
        features = self.features(x, conv, dense, norm_of(self, train=train))
        self.sow("intermediates", "features", features)
        logits = dense(1, use_bias=False, name="head")(features)[:, 0]
        if classes is None:
            return logits
        embed = dense(features.shape[1], use_bias=False, name="projection")
        return logits + jnp.sum(features * embed(classes), axis=1)

    @nn.nowrap
    def features(self, x: Array, conv: Make, dense: Make, norm: Make | None) -> Array:
        """What the last layer sees, [batch, d], float32."""
        raise NotImplementedError


def norm_of(module: Any, *, train: bool) -> Make | None:
    """What makes a norm, by the fields of a generator or discriminator; None if it has none."""
    types = {"dtype": module.dtype, "param_dtype": module.param_dtype}
    return module.norm and partial(module.norm, train=train, **types)


def smallest_map(size: tuple[int, ...], halvings: int) -> tuple[int, int]:
    """Height and width, halved so often. Raises ValueError if they cannot be, or never are."""
    if halvings < 1:
        raise ValueError(f"halvings is at least 1; got {halvings}")
    check_halves(size, halvings)
    return size[0] // 2**halvings, size[1] // 2**halvings


def one_hot_classes(
    labels: Int[Array, " batch"] | None, num_classes: int | None, batch: int
) -> Float[Array, "batch classes"] | None:
    """``one_hot_condition``, of one label for each example.

    Raises:
        ValueError: as there, and for labels that are not [batch].
    """
    classes = one_hot_condition(labels, num_classes)
    if labels is not None and labels.shape != (batch,):
        raise ValueError(f"one label an example: {batch} of them; got {list(labels.shape)}")
    return classes
