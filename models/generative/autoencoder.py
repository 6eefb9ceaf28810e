"""Autoencoders, dense and convolutional, and the networks between images and vectors.

Hinton and Salakhutdinov, 2006, "Reducing the dimensionality of data with neural networks",
Science 313(5786). A denoising autoencoder (Vincent et al., 2008, doi:10.1145/1390156.1390294) is
the same network that reads a corrupted image.

An encoder is called with images and, optionally, a condition, a decoder with vectors. Models take
them as fields: a class or a ``partial`` of it, called with ``dtype`` and ``param_dtype``, a decoder
also with ``image`` and ``outputs``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.generative.inputs import check_halves, check_image, check_latent, join
from opsin.models.layers import Conv, shared_fields
from opsin.models.upsampling import ConvTranspose
from opsin.ranges import Count


class MLP(nn.Module):
    """Dense layers, each with its activation. Weights start as Glorot and Bengio, 2010, do."""

    widths: Sequence[Count]
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Features of the last width."""
        for index, width in enumerate(self.widths, start=1):
            dense = nn.Dense(
                width,
                kernel_init=nn.initializers.xavier_uniform(),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"dense{index}",
            )
            x = self.activation(dense(x))
        return x


class DenseEncoder(nn.Module):
    """An ``MLP`` that reads all pixels as one vector, with the condition behind them."""

    widths: Sequence[Count]
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        condition: Float[Array, "batch classes"] | None = None,
    ) -> Float[Array, "batch out"]:
        """Features of the last width."""
        x = join(x.reshape(x.shape[0], -1), condition)
        return MLP(**shared_fields(self, MLP), name="layers")(x)


class DenseDecoder(nn.Module):
    """An ``MLP`` and a linear layer with one output for each pixel and channel."""

    image: tuple[Count, Count, Count]
    outputs: Count
    widths: Sequence[Count]
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch {self.image[0]} {self.image[1]} {self.outputs}"]:
        """The outputs of each pixel, float32."""
        height, width, _ = self.image
        z = MLP(**shared_fields(self, MLP), name="layers")(z)
        head = nn.Dense(
            height * width * self.outputs,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            name="head",
        )
        return head(z).reshape(*z.shape[:-1], height, width, self.outputs)


class ConvEncoder(nn.Module):
    """Convolutions 4×4 of stride 2, each with its activation; the condition is planes of the image.

    Attributes:
        channels: of each convolution; as many halvings must divide height and width.
    """

    channels: Sequence[Count] = (32, 64)
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        condition: Float[Array, "batch classes"] | None = None,
    ) -> Float[Array, "batch out"]:
        """All features of the last convolution. Raises ValueError for sides that do not halve."""
        check_halves(x.shape[1:3], len(self.channels))
        x = join(x, None if condition is None else condition[:, None, None])
        for index, channels in enumerate(self.channels, start=1):
            conv = Conv(
                channels,
                (4, 4),
                strides=2,
                padding=1,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"conv{index}",
            )
            x = self.activation(conv(x))
        return x.reshape(x.shape[0], -1)


class ConvDecoder(nn.Module):
    """The mirror of ``ConvEncoder``: a dense layer, then 4×4 transposed convolutions, stride 2."""

    image: tuple[Count, Count, Count]
    outputs: Count
    channels: Sequence[Count] = (32, 64)
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "*samples batch d"]
    ) -> Float[Array, "*samples batch {self.image[0]} {self.image[1]} {self.outputs}"]:
        """The outputs of each pixel, float32. Raises ValueError for sides that do not halve."""
        levels = len(self.channels)
        check_halves(self.image[:2], levels)
        rows, columns = (side // 2**levels for side in self.image[:2])
        start = nn.initializers.he_normal()
        # Of the sixteen taps of a transposed convolution, each pixel sees four.
        sparse = nn.initializers.variance_scaling(4 * 2.0, "fan_in", "truncated_normal")
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # The batch comes first: each device keeps its share of it.
        x = jnp.moveaxis(z, -2, 0)
        shape = x.shape[:-1]
        dense = nn.Dense(
            rows * columns * self.channels[-1], kernel_init=start, **types, name="dense"
        )
        x = self.activation(dense(x)).reshape(-1, rows, columns, self.channels[-1])
        conv = partial(ConvTranspose, kernel_size=(4, 4), padding=1, kernel_init=sparse)
        for index, channels in enumerate(reversed(self.channels[:-1]), start=1):
            x = self.activation(conv(channels, **types, name=f"conv{index}")(x))
        x = conv(self.outputs, param_dtype=self.param_dtype, name="head")(x)
        return jnp.moveaxis(x.reshape(*shape, *x.shape[1:]), 0, len(shape) - 1)


class Autoencoder(nn.Module):
    """Encoder, a linear code, decoder.

    With the defaults it is the 784-1000-500-250-30 network of Hinton and Salakhutdinov and its
    mirror, of 2,837,314 parameters, with ReLU in place of their logistic units.

    Attributes:
        image: height, width and channels.
        outputs: channels that the decoder gives for each pixel.
        latent: dimensions of the code.
        encoder: from images to features.
        decoder: from a code to the outputs of each pixel.
    """

    image: tuple[Count, Count, Count] = (28, 28, 1)
    outputs: Count = 1
    latent: Count = 30
    encoder: Callable[..., nn.Module] = partial(DenseEncoder, widths=(1000, 500, 250))
    decoder: Callable[..., nn.Module] = partial(DenseDecoder, widths=(250, 500, 1000))
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Makes the networks."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.features = self.encoder(**types)
        self.code = nn.Dense(self.latent, dtype=jnp.float32, param_dtype=self.param_dtype)
        self.pixels = self.decoder(image=self.image, outputs=self.outputs, **types)

    def encode(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch {self.latent}"]:
        """Codes, float32. Raises ValueError for an image of another shape than ``image``."""
        del train  # the same computation in training and in evaluation
        check_image(x, self.image)
        return self.code(self.features(x))

    def decode(
        self, z: Float[Array, "batch d"], *, train: bool = False
    ) -> Float[Array, "batch {self.image[0]} {self.image[1]} {self.outputs}"]:
        """Linear outputs, float32: logits or values, as the loss takes them.

        Raises:
            ValueError: for a code of another size than ``latent``.
        """
        del train
        check_latent(z, self.latent)
        return self.pixels(z)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch height width {self.outputs}"]:
        """The outputs for the codes of these images."""
        return self.decode(self.encode(x, train=train), train=train)


# 258,015 parameters for MNIST.
ConvAutoencoder = partial(Autoencoder, encoder=ConvEncoder, decoder=ConvDecoder)
