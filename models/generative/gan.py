"""Generators and discriminators of adversarial networks, convolutional and residual.

Goodfellow et al., 2014, "Generative adversarial networks", arXiv:1406.2661. DCGAN: Radford, Metz
and Chintala, 2016, "Unsupervised representation learning with deep convolutional generative
adversarial networks", arXiv:1511.06434. The residual pair, and spectral normalisation: Miyato et
al., 2018, "Spectral normalization for generative adversarial networks", arXiv:1802.05957.

A generator's outputs are linear, float32: the image in [0, 1] is (tanh + 1) / 2 of them. A
discriminator takes images of any range and gives one logit an image; the features that its last
layer sees are sown as "features" into the collection "intermediates".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.generative.autoencoder import check_halves, join, one_hot_condition
from models.layers import Conv, Norm, batch_norm
from models.segmentation.upsampling import ConvTranspose
from ops.spectral_norm import spectral_norm
from ops.upsampling import upsample_nearest

Make = Callable[..., Callable[..., Any]]  # a layer's class, or a `partial` of it


def small_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """An initialiser: N(0, 0.02²) (Radford et al., section 4)."""
    return 0.02 * jax.random.normal(key, shape, dtype)


def glorot(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """An initialiser: that of Glorot and Bengio, 2010, as the authors of the residual pair use."""
    return nn.initializers.xavier_uniform()(key, shape, dtype)


class SpectralLayer(nn.Module):
    """A layer whose parameter `kernel` is divided by its largest singular value, as a matrix.

    To be mixed into a linen layer. The singular vector is the variable "u" in the collection
    "spectral". Each call takes one step of the power iteration from it, and in training keeps the
    result, if that is mutable. A kernel of zeros stays as it is.

    Attributes:
      train: keep the singular vector.
    """

    train: bool = False

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """As `nn.Module.param`; it is where the kernel can be had whatever the layer does to it."""
        value = super().param(name, init_fn, *args, **options)
        if name != "kernel":
            return value

        def start() -> Array:
            return jax.random.normal(self.make_rng("params"), value.shape[-1:])

        u = self.variable("spectral", "u", start)
        sigma, closer = spectral_norm(value, u.value, iterations=1)
        keep = self.train and self.is_mutable_collection("spectral")
        if keep and not self.is_initializing():
            u.value = closer
        return value / jnp.where(sigma > 0, sigma, 1)


class SpectralDense(SpectralLayer, nn.Dense):
    """`nn.Dense` with spectral normalisation."""


class _SpectralConv(SpectralLayer, nn.Conv):
    """`Conv` with spectral normalisation, with the options of the house below."""


SpectralConv = partial(_SpectralConv, **Conv.keywords)


class Generator(nn.Module):
    """What generators share.

    Attributes:
      image: height, width and channels.
      latent: dimensions of z.
      width: channels; of which map, the generator says.
      halvings: how often the size is doubled; 2**halvings must divide height and width.
      num_classes: of the labels that are joined to z as one-hot, whose weights in the first layer
        are their embedding; None if there are none.
      norm: `batch_norm`, `group_norm` or a `partial` of them; None for none.
      kernel_init: of the kernels, but for those 3×3 of `ResidualBlock`.
    """

    image: tuple[int, int, int] = (64, 64, 3)
    latent: int = 100
    width: int = 64
    halvings: int = 4
    num_classes: int | None = None
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


class DCGANGenerator(Generator):
    """Transposed convolutions, each with its norm and ReLU, from one pixel to the image.

    The first makes a map of height and width / 2**halvings, those after it are 4×4 of stride 2. The
    last map before the image has `width` channels, each one before it twice as many. With the
    defaults it has 3,576,704 parameters. For the fields see `Generator`.
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


class ResidualGenerator(Generator):
    """A dense layer, residual blocks that double the size, norm, ReLU and a convolution 3×3.

    All maps have `width` channels. With the defaults it is the network of Miyato et al. for
    CIFAR-10, of 4,276,739 parameters. For the fields see `Generator`.
    """

    image: tuple[int, int, int] = (32, 32, 3)
    latent: int = 128
    width: int = 256
    halvings: int = 3
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
      resize: "up" doubles the size before the first convolution, "down" halves it after the second.
      first: leave out the first norm and ReLU, which would cut off half of an image's values.
    """

    features: int
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


class DiscriminatorLayers(nn.Module):
    """The fields of what makes a discriminator's layers.

    Attributes:
      width: channels; of which map, the discriminator says.
      norm: `batch_norm`, `group_norm` or a `partial` of them; None for none. With batch norm the
        logit of an image depends on the others, as a penalty on its gradient must not.
      spectral: normalise each kernel by its largest singular value; see `SpectralLayer`.
      kernel_init: of the kernels, but for those 3×3 of `ResidualBlock`.
    """

    width: int = 64
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
    """What discriminators of whole images share. For the others see `DiscriminatorLayers`.

    Attributes:
      halvings: how often the size is halved; 2**halvings must divide height and width.
      num_classes: of the labels that the logits are conditional on; None if they are not.
      condition: "projection" adds the inner product of features and an embedding of the class
        (Miyato and Koyama, 2018, arXiv:1802.05637); "planes" joins a plane a class to the image.
    """

    halvings: int = 4
    num_classes: int | None = None
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
          ValueError: for images that cannot be halved so often, an unknown `condition`, or labels
            that are missing or given to a model without classes.
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


class DCGANDiscriminator(Discriminator):
    """Convolutions 4×4 of stride 2, with norm but for the first, leaky ReLU, and a dense layer.

    The first has `width` channels, each one after it twice as many. With the defaults and three
    channels it has 2,765,568 parameters. For the other fields see `Discriminator`.

    Attributes:
      hidden: units of a dense layer before the last, or None. Few convolutions see places only
        apart: after two halvings the logit is a sum over patches of 10 pixels.
    """

    hidden: int | None = None

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


class ResidualDiscriminator(Discriminator):
    """Residual blocks, of which the first halve the size, ReLU, the sum over pixels, a dense layer.

    All maps have `width` channels. With the defaults and three channels it is the network of Miyato
    et al. for CIFAR-10, of 1,053,824 parameters. For the other fields see `Discriminator`.

    Attributes:
      blocks: how many there are, not fewer than halvings.
    """

    width: int = 128
    norm: Norm | None = None
    spectral: bool = True
    kernel_init: Callable[..., Array] = glorot
    halvings: int = 2
    blocks: int = 4

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


# For 32×32 pixels: parameters 1,068,928 and 663,296. For 28×28 take two halvings.
DCGANGenerator32 = partial(DCGANGenerator, image=(32, 32, 3), halvings=3)
DCGANDiscriminator32 = partial(DCGANDiscriminator, halvings=3)


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
    """`one_hot_condition`, of one label for each example.

    Raises:
      ValueError: as there, and for labels that are not [batch].
    """
    classes = one_hot_condition(labels, num_classes)
    if labels is not None and labels.shape != (batch,):
        raise ValueError(f"one label an example: {batch} of them; got {list(labels.shape)}")
    return classes
