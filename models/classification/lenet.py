"""LeNet-5, as printed in 1998 and as it is built today.

LeCun, Bottou, Bengio and Haffner, 1998, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE 86(11), section II-B.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models import layers
from opsin.ops.convolution.dispatch import convolve
from opsin.ranges import Count

IMAGE_SIZE = 32

# Table I of the paper: the maps of S2 that each map of C3 sees.
C3_CONNECTIONS = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)

# Ten digits, 7 wide and 12 high, in the style of Fig. 3 of the paper, which prints no numbers. The
# two empty rows are where the full ASCII set has its descenders.
DIGIT_BITMAPS = """
..###.. ...#... .#####. .#####. .....#. ####### ..####. ####### .#####. .#####.
.#...#. ..##... #.....# #.....# ....##. #...... .#..... #.....# #.....# #.....#
#.....# .#.#... ......# ......# ...#.#. #...... #...... ......# #.....# #.....#
#.....# ...#... ......# ......# ..#..#. #.####. #...... .....#. #.....# #.....#
#.....# ...#... .....#. ..####. .#...#. ##....# #.####. .....#. .#####. #....##
#.....# ...#... ...##.. ......# #....#. ......# ##....# ....#.. #.....# .####.#
#.....# ...#... ..#.... ......# ####### ......# #.....# ....#.. #.....# ......#
#.....# ...#... .#..... ......# .....#. ......# #.....# ...#... #.....# ......#
.#...#. ...#... #...... #.....# .....#. #.....# #.....# ...#... #.....# .....#.
..###.. .#####. ####### .#####. .....#. .#####. .#####. ...#... .#####. .####..
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
"""


def digit_codes() -> Float[np.ndarray, "10 84"]:
    """The target code of each digit: its bitmap, row by row, +1 for ink and -1 for paper."""
    lines = [line.split() for line in DIGIT_BITMAPS.split("\n") if line]
    drawings = ["".join(rows) for rows in zip(*lines, strict=True)]
    return np.array([[1.0 if dot == "#" else -1.0 for dot in drawing] for drawing in drawings])


def fit_image(
    images: Float[Array, "batch size size channels"],
) -> Float[Array, "batch 32 32 channels"]:
    """Brings square images to the 32×32 field of LeNet-5.

    Sizes above 16 are centred in the field, as the paper centres 28×28 digits. The margin repeats
    the border pixels: in MNIST they are paper, and stay so however the data were normalised. Sizes
    that divide 32, such as the 8×8 digits of scikit-learn, are enlarged bilinearly.

    Raises:
        ValueError: for any other shape.
    """
    size = images.shape[1] if images.ndim == 4 and images.shape[1] == images.shape[2] else 0
    if size == IMAGE_SIZE:
        return images
    if size and IMAGE_SIZE % size == 0:
        shape = (images.shape[0], IMAGE_SIZE, IMAGE_SIZE, images.shape[3])
        return jax.image.resize(images, shape, "bilinear")
    if IMAGE_SIZE // 2 < size < IMAGE_SIZE:
        before = (IMAGE_SIZE - size) // 2
        margin = (before, IMAGE_SIZE - size - before)
        return jnp.pad(images, ((0, 0), margin, margin, (0, 0)), mode="edge")
    raise ValueError(
        "LeNet-5 takes [batch, size, size, channels] with a size from 17 to 32 or one that "
        f"divides 32; got {images.shape}: resize the images"
    )


class LeNet5(nn.Module):
    """LeNet-5 in today's form: every map connected, pooling without parameters, a linear output.

    ReLU and max-pooling are the default, because they need the fewest epochs; ``activation=nn.tanh,
    pool=nn.avg_pool`` is closer to the paper. 61,706 parameters for grey images, 62,006 for RGB.
    """

    num_classes: Count = 10
    activation: Callable[[Array], Array] = nn.relu
    pool: Callable[..., Array] = layers.max_pool
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch size size channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Sizes: see ``fit_image``, which raises ValueError for the others."""
        del train  # the same computation in training and in evaluation
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(layers.Conv, kernel_size=(5, 5), padding="VALID", **types)
        x = fit_image(x)
        x = self.activation(conv(6, name="c1")(x))  # [B, 28, 28, 6]
        x = self.pool(x, (2, 2), strides=(2, 2))  # [B, 14, 14, 6]
        x = self.activation(conv(16, name="c3")(x))  # [B, 10, 10, 16]
        x = self.pool(x, (2, 2), strides=(2, 2))  # [B, 5, 5, 16]
        x = self.activation(conv(120, name="c5")(x))  # [B, 1, 1, 120]
        x = self.activation(nn.Dense(84, **types, name="f6")(x[:, 0, 0]))
        output = nn.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="head"
        )
        return output(x)


class LeNet5Original(nn.Module):
    """LeNet-5 of the paper's Fig. 2, for the ten digits: exactly 60,000 trainable parameters.

    C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164. The output codes are constants. Weights
    start from LeCun normal instead of the paper's uniform ±2.4 / fan-in, which was chosen for its
    second-order optimiser.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch size size channels"], *, train: bool = False
    ) -> Float[Array, "batch 10"]:
        """Logits -‖F6 - code‖², float32: minus the output of the radial basis units, eq. 7.

        Softmax cross-entropy of these logits is the discriminative criterion of eq. 9 without its
        constant rubbish class. Sizes: see ``fit_image``, which raises ValueError for the others.
        """
        del train  # the same computation in training and in evaluation
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(layers.Conv, kernel_size=(5, 5), padding="VALID", **types)
        x = fit_image(x)
        x = squash(conv(6, name="c1")(x))  # [B, 28, 28, 6]
        x = squash(Subsample(**types, name="s2")(x))  # [B, 14, 14, 6]
        x = squash(SparseConv(C3_CONNECTIONS, **types, name="c3")(x))  # [B, 10, 10, 16]
        x = squash(Subsample(**types, name="s4")(x))  # [B, 5, 5, 16]
        x = squash(conv(120, name="c5")(x))  # [B, 1, 1, 120]
        x = squash(nn.Dense(84, **types, name="f6")(x[:, 0, 0]))
        difference = x.astype(jnp.float32)[:, None] - digit_codes().astype(np.float32)
        return -jnp.sum(difference**2, axis=-1)


def squash(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The scaled hyperbolic tangent 1.7159 tanh(2x/3), eq. 6: ±1 maps to ±1, nearly exactly."""
    return 1.7159 * nn.tanh(2 / 3 * x)


class Subsample(nn.Module):
    """Sum of each 2×2 square, times a trainable coefficient, plus a bias; one of each a map."""

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width maps"]
    ) -> Float[Array, "batch height//2 width//2 maps"]:
        """Halves height and width; an odd last row or column is dropped."""
        maps = x.shape[-1]
        # A quarter makes the untrained layer an average.
        scale = self.param("scale", nn.initializers.constant(0.25), (maps,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (maps,), self.param_dtype)
        sums = 4 * nn.avg_pool(x.astype(self.dtype), (2, 2), strides=(2, 2))
        return sums * scale.astype(self.dtype) + bias.astype(self.dtype)


class SparseConv(nn.Module):
    """A convolution in which each output map sees only the input maps listed for it (C3).

    Only the kernels of existing connections are stored, [kernel, kernel, connection], so that the
    parameter count, weight decay and gradients know no others.
    """

    connections: Sequence[Sequence[int]]
    kernel_size: Count = 5
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch height_out width_out outputs"]:
        """Valid convolution: height and width shrink by ``kernel_size - 1``."""
        size, maps = self.kernel_size, len(self.connections)
        pairs = [(i, o) for o, inputs in enumerate(self.connections) for i in inputs]
        inputs, outputs = np.array(pairs).T
        fan_in = size**2 * np.bincount(outputs)[outputs]  # of the unit each connection ends in

        def lecun_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            return jax.random.normal(key, shape, dtype) / jnp.sqrt(fan_in).astype(dtype)

        kernel = self.param("kernel", lecun_normal, (size, size, len(pairs)), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (maps,), self.param_dtype)
        full = jnp.zeros((size, size, x.shape[-1], maps), self.dtype)
        full = full.at[:, :, inputs, outputs].set(kernel.astype(self.dtype))
        x = convolve(
            x.astype(self.dtype),
            full,
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias.astype(self.dtype)
