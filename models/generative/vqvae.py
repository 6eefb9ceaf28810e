"""The VQ-VAE: an autoencoder whose code is a map of indices into a book of vectors.

van den Oord, Vinyals and Kavukcuoglu, 2017, "Neural discrete representation learning",
arXiv:1711.00937. The network is that of the authors' example for CIFAR-10 in DeepMind's Sonnet.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from opsin.models.generative.inputs import check_halves
from opsin.models.layers import Conv, shared_fields
from opsin.models.upsampling import ConvTranspose
from opsin.ops.quantization import (
    EmaCodebook,
    ema_update,
    nearest_codes,
    restart_dead,
    straight_through,
)
from opsin.ranges import BelowOne, Count, DepthOrZero


@flax.struct.dataclass
class VQOutput:
    """What a VQ-VAE says of images.

    Attributes:
        outputs: the decoder's, of each pixel; float32.
        z_e: the encoder's vectors.
        codes: the nearest code of each. A codebook that learns by gradient has it from here.
        indices: of these codes; int32.
    """

    outputs: Float[Array, "batch height width outputs"]
    z_e: Float[Array, "batch rows columns d"]
    codes: Float[Array, "batch rows columns d"]
    indices: Int[Array, "batch rows columns"]


class VectorQuantizer(nn.Module):
    """A book of codes, float32. Random numbers take the stream "codes".

    Attributes:
        num_codes: K.
        code_size: D.
        update: "gradient", by the codebook loss: then the book is the parameter ``codebook``; or
            "ema", by moving averages: then it is ``embedding``, ``counts`` and ``sums`` in the
            collection "codebook", updated in training if that is mutable.
        decay: of the moving averages.
        restart: how often, on average, a batch must use a code for it not to be restarted from one
            of the batch's vectors; only with "ema". 0 restarts none.
    """

    num_codes: Count = 512
    code_size: Count = 64
    update: Literal["ema", "gradient"] = "ema"
    decay: BelowOne = 0.99
    restart: BelowOne = 0.0

    def setup(self) -> None:
        """Makes the book. Raises ValueError for an unknown ``update``, or one without restarts."""
        if self.update not in ("ema", "gradient"):
            raise ValueError(f'update is "ema" or "gradient"; got {self.update!r}')
        if self.restart and self.update != "ema":
            raise ValueError('codes restart with update="ema" only: set restart=0')
        shape = (self.num_codes, self.code_size)
        start = nn.initializers.variance_scaling(1.0, "fan_out", "uniform")  # 1 / D a coordinate
        if self.update == "gradient":
            self.codebook = self.param("codebook", start, shape, jnp.float32)
        else:
            self.embedding = self.variable(
                "codebook", "embedding", lambda: start(self.make_rng("params"), shape, jnp.float32)
            )
            self.counts = self.variable("codebook", "counts", jnp.ones, shape[:1])
            # A copy: donated buffers must not be shared.
            self.sums = self.variable("codebook", "sums", lambda: jnp.copy(self.embedding.value))

    def __call__(
        self, z: Float[Array, "*batch d"], *, train: bool = False
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"], Int[Array, "*batch"]]:
        """The codes with the gradient of ``z``, the codes themselves, and their indices.

        Raises:
            ValueError: for vectors of another size than ``code_size``, an unknown ``update``, or
                restarts of a book that learns by gradient.
        """
        z = z.astype(jnp.float32)
        indices = nearest_codes(z, self._embedding())
        codes = self._embedding()[indices]
        learns = self.update == "ema" and self.is_mutable_collection("codebook")
        if train and learns and not self.is_initializing():
            self._learn(lax.stop_gradient(z), indices)
        return straight_through(z, codes), codes, indices

    def _embedding(self) -> Array:
        return self.codebook if self.update == "gradient" else self.embedding.value

    def _learn(self, z: Array, indices: Array) -> None:
        book = EmaCodebook(self.embedding.value, self.counts.value, self.sums.value)
        book = ema_update(book, z, indices, decay=self.decay)
        if self.restart:
            book = restart_dead(self.make_rng("codes"), book, z, threshold=self.restart)
        self.embedding.value, self.counts.value, self.sums.value = book


class ResidualStack(nn.Module):
    """Blocks x + conv1×1(ReLU(conv3×3(ReLU(x)))), and a ReLU at the end."""

    residual_layers: DepthOrZero
    residual_width: Count
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Features of the same shape."""
        conv = partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        for index in range(1, self.residual_layers + 1):
            y = conv(self.residual_width, (3, 3), name=f"wide{index}")(nn.relu(x))
            x = x + conv(x.shape[-1], (1, 1), name=f"point{index}")(nn.relu(y))
        return nn.relu(x)


class VQOptions(nn.Module):
    """The fields that the encoder, the decoder and the whole VQ-VAE share.

    Attributes:
        outputs: channels that the decoder gives for each pixel.
        width: channels of the features; half as many at half the size of the image.
        halvings: how often the size is halved.
        residual_layers: blocks of the encoder, and of the decoder.
        residual_width: channels inside a block.
        code_size: dimensions of a code, D.
    """

    outputs: Count = 3
    width: Count = 128
    halvings: DepthOrZero = 2
    residual_layers: DepthOrZero = 2
    residual_width: Count = 32
    code_size: Count = 64
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class VQEncoder(VQOptions):
    """Convolutions 4×4 of stride 2, one 3×3, residual blocks, and a 1×1 to the size of a code."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns {self.code_size}"]:
        """Vectors, float32. Raises ValueError for sides that do not halve."""
        check_halves(x.shape[1:3], self.halvings)
        conv = partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        for index in range(1, self.halvings + 1):
            width = self.width // 2 if index == 1 else self.width
            x = nn.relu(conv(width, (4, 4), strides=2, padding=1, name=f"down{index}")(x))
        x = conv(self.width, (3, 3), name="conv")(x)
        x = ResidualStack(**shared_fields(self, ResidualStack), name="residual")(x)
        return conv(self.code_size, (1, 1), dtype=jnp.float32, name="head")(x)


class VQDecoder(VQOptions):
    """The mirror of ``VQEncoder``, with transposed convolutions."""

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch rows columns {self.code_size}"]
    ) -> Float[Array, "batch height width {self.outputs}"]:
        """Linear outputs, float32."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(self.width, (3, 3), **types, name="conv")(z)
        x = ResidualStack(**shared_fields(self, ResidualStack), name="residual")(x)
        conv = partial(ConvTranspose, kernel_size=(4, 4), padding=1)
        for index in range(1, self.halvings):
            width = self.width // 2 if index == self.halvings - 1 else self.width
            x = nn.relu(conv(width, **types, name=f"up{index}")(x))
        return conv(self.outputs, param_dtype=self.param_dtype, name="head")(x)


class VQVAE(VQOptions):
    """Encoder, ``VectorQuantizer``, decoder.

    With the defaults and three channels it has 662,723 parameters, 695,491 with a codebook that
    learns by gradient. The encoder's other gradient, and the codebook's, are those of the losses
    that ``z_e`` and ``codes`` are for. For the fields see ``VQOptions`` and ``VectorQuantizer``.
    """

    num_codes: Count = 512
    update: Literal["ema", "gradient"] = "ema"
    decay: BelowOne = 0.99
    restart: BelowOne = 0.0

    def setup(self) -> None:
        """Makes the parts."""
        self.encoder = VQEncoder(**shared_fields(self, VQEncoder))
        self.quantizer = VectorQuantizer(**shared_fields(self, VectorQuantizer))
        self.decoder = VQDecoder(**shared_fields(self, VQDecoder))

    def encode(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch rows columns {self.code_size}"]:
        """Vectors before quantisation, float32. Raises ValueError for sides that do not halve."""
        del train  # the same computation in training and in evaluation
        return self.encoder(x)

    def quantize(
        self, z_e: Float[Array, "*batch d"], *, train: bool = False
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"], Int[Array, "*batch"]]:
        """Codes with the gradient of ``z_e``, codes and indices; see ``VectorQuantizer``."""
        return self.quantizer(z_e, train=train)

    def decode(
        self, z_q: Float[Array, "batch rows columns {self.code_size}"], *, train: bool = False
    ) -> Float[Array, "batch height width {self.outputs}"]:
        """Linear outputs of each pixel, float32: the likelihood says what they mean."""
        del train
        return self.decoder(z_q)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> VQOutput:
        """All of it; in training, a codebook of moving averages learns from the images."""
        z_e = self.encode(x, train=train)
        z_q, codes, indices = self.quantize(z_e, train=train)
        return VQOutput(self.decode(z_q, train=train), z_e, codes, indices)
