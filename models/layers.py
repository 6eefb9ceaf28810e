"""What several architectures share: convolution, pooling, norms, and a way to hand fields down."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.ops import mapped
from opsin.ops.convolution.dispatch import convolve
from opsin.ranges import BelowOne, Count, Positive

# Every convolution of every model is this one.
Conv = partial(nn.Conv, conv_general_dilated=convolve)

Norm = Callable[..., Callable[..., Any]]
"""A norm field: called with ``train``, it gives a module for images [batch, height, width,
channels].

It also takes ``name``, ``epsilon``, ``use_bias``, ``scale_init``, ``bias_init``, ``dtype`` and
``param_dtype``.
"""


class _Affine(nn.Module):
    """What the norms share: a scale and a bias of each channel.

    Attributes:
        epsilon: added to the variance.
        use_bias: whether something is added in the end.
        dtype: of the result; None is that of input and parameters together.
        param_dtype: of scale and bias, which start as ``scale_init`` and ``bias_init`` say.
    """

    epsilon: float = 1e-5
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.nowrap
    def parameters(self, channels: int) -> tuple[Array, Array]:
        """Scale and bias [channels]; the bias is zero where there is none."""
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
        if not self.use_bias:
            return scale, jnp.zeros(channels, self.param_dtype)
        return scale, self.param("bias", self.bias_init, (channels,), self.param_dtype)


class BatchNorm(_Affine, kw_only=True):
    """``nn.BatchNorm`` of the last axis, in training in the form x · scale + shift.

    The gradients of scale and shift are then sums over what is in memory anyway, x and the
    gradient; linen's form writes x − mean for them. Statistics are float32 whatever the compute
    dtype, and those of the whole batch, under ``pmap`` too (see ``ops.mapped``). The variance is
    E[(x − c)²] − E[x − c]², about the mean c of the pixels in the middle of the images. It reads x
    once, as linen's E[x²] − E[x]² does, of which nothing is left where the mean is a thousand times
    the deviation. On several devices c is an all-reduce of its own, of one number a channel, before
    that of the moments: compiled for 4, the gradient of a ResNet-50 has 153, and 100 with linen's.

    Attributes:
        use_running_average: normalise with the running statistics, and leave them as they are.
        momentum: weight of the old running statistics in an update.
    """

    use_running_average: bool
    momentum: BelowOne = 0.9

    @nn.compact
    def __call__(self, x: Float[Array, "*places channels"]) -> Float[Array, "*places channels"]:
        """Normalised features."""
        shape = x.shape[-1:]
        running = [
            self.variable("batch_stats", name, initial, shape, jnp.float32)
            for name, initial in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        scale, bias = self.parameters(x.shape[-1])
        features = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.use_running_average:
            mean, variance = (statistic.value for statistic in running)
        else:
            axes = tuple(range(x.ndim - 1))
            centre = mapped.mean(jax.lax.stop_gradient(jnp.mean(_middle(features), 0)))
            moments = mapped.mean(jnp.stack(_moments(features, centre, axes)))
            mean, variance = centre + moments[0], _variance(*moments)
            if not self.is_initializing():
                for statistic, new in zip(running, (mean, variance), strict=True):
                    statistic.value = self.momentum * statistic.value + (1 - self.momentum) * new
        dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)
        scale = scale * jax.lax.rsqrt(variance + self.epsilon)
        if self.use_running_average:  # nothing is gained, and the gradient of scale is more exact
            return ((features - mean) * scale + bias).astype(dtype)
        return (features * scale + (bias - mean * scale)).astype(dtype)


def batch_norm(
    *,
    train: bool,
    frozen_statistics: bool = False,
    momentum: BelowOne = 0.9,
    epsilon: Positive = 1e-5,
    **options: Any,
) -> BatchNorm:
    """Batch normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167) with PyTorch's defaults.

    Statistics are float32 whatever the compute dtype. PyTorch's momentum 0.1 is 0.9 here. Unlike
    PyTorch, the running variance averages the biased batch variance.

    Args:
        train: use the statistics of this batch and update the running ones.
        frozen_statistics: use the running statistics in training too, for fine-tuning on small
            batches. Scale and bias still learn, unless the optimiser masks them.
        momentum: weight of the old running statistics in an update.
        epsilon: added to the variance.
        **options: other fields of ``BatchNorm``, such as ``name``, ``dtype`` or ``scale_init``.
    """
    return BatchNorm(
        use_running_average=frozen_statistics or not train,
        momentum=momentum,
        epsilon=epsilon,
        **options,
    )


class GroupNorm(_Affine):
    """``nn.GroupNorm`` of images, with its sums in the order in which the numbers lie in memory.

    They go over the pixels of each channel first, and over the channels of a group after; both at
    once, XLA is slow on a CPU. Statistics are float32 whatever the compute dtype, and the variance
    is that of ``BatchNorm``, about the pixel in the middle of each image.

    Attributes:
        groups: of channels that share their statistics; must divide the channels.
    """

    groups: Count = 32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Normalised features. Raises ValueError unless the groups divide the channels."""
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {channels} channels")
        shape = (self.groups, channels // self.groups)
        scale, shift = (y.reshape(shape) for y in self.parameters(channels))
        features = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        middle = jax.lax.stop_gradient(_middle(features)).reshape(len(x), *shape)
        centre = jnp.mean(middle, axis=2, keepdims=True)  # [batch, groups, 1]
        everywhere = jnp.broadcast_to(centre, middle.shape).reshape(len(x), 1, 1, channels)
        moments = jnp.stack(_moments(features, everywhere, (1, 2)))
        mean, square = jnp.mean(moments.reshape(2, len(x), *shape), axis=3, keepdims=True)
        scale = scale * jax.lax.rsqrt(_variance(mean, square) + self.epsilon)
        shift = shift - (centre + mean) * scale
        scale, shift = (y.reshape(len(x), 1, 1, -1) for y in (scale, shift))
        dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
        return (features * scale + shift).astype(dtype)


def _middle(x: Array) -> Array:
    """The pixel in the middle of each image, which is no border: [batch, channels]."""
    return x[:, *(side // 2 for side in x.shape[1:-1])]


def _moments(x: Array, centre: Array, axes: tuple[int, ...]) -> list[Array]:
    """The means of x − c and of its square; the constant c matters to rounding alone."""
    return [jnp.mean(y, axes) for y in (x - centre, jnp.square(x - centre))]


def _variance(mean: Array, square: Array) -> Array:
    """Of the means of numbers and of their squares; rounding could make it negative."""
    return jnp.maximum(square - jnp.square(mean), 0)


def group_norm(
    *,
    train: bool,
    groups: Count = 32,
    epsilon: Positive = 1e-5,
    **options: Any,
) -> GroupNorm:
    """Group normalisation (Wu and He, 2018, arXiv:1803.08494): a drop-in for ``batch_norm``.

    ``train`` changes nothing: each image has its own statistics.
    ``groups`` must divide the channels.
    """
    del train
    return GroupNorm(groups=groups, epsilon=epsilon, **options)


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole image holds (Hu et al., 2017, arXiv:1709.01507).

    y = x · gate(W₂ activation(W₁ mean(x) + b₁) + b₂): the mean over the pixels of each channel
    (eq. 2), two fully connected layers (eq. 3) and one gate a channel (eq. 4). For C channels it
    has 2 C · ``reduced`` + ``reduced`` + C parameters; the paper's ``reduced`` is C / 16.

    Attributes:
        reduced: width between the two layers.
        activation: between them.
        gate: of the second, to 0 … 1.
    """

    reduced: Count
    activation: Callable[[Array], Array] = nn.relu
    gate: Callable[[Array], Array] = nn.sigmoid
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Each channel times its gate."""
        conv = partial(Conv, kernel_size=(1, 1), dtype=self.dtype, param_dtype=self.param_dtype)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=wide)
        y = self.activation(conv(self.reduced, name="reduce")(y))
        return x * self.gate(conv(x.shape[-1], name="expand")(y))


def max_pool(
    x: Float[Array, "batch height width channels"],
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Any = "VALID",
) -> Float[Array, "batch rows columns channels"]:
    """The largest value in each window, as ``nn.max_pool``; "CEIL" pads by ``ceil_margins``.

    Of several largest pixels of a window, as the zeros of a ReLU are, the first takes the whole
    gradient, row by row, as in XLA and PyTorch. Windows that lie side by side have a form of their
    own for it: XLA's, of a general pooling, scatters, which is slow on a CPU.
    """
    if padding == "CEIL":  # copies come after what they copy: they change no maximum or gradient
        margins = ceil_margins(x.shape[1:3], window_shape, strides or (1, 1))
        x, padding = jnp.pad(x, ((0, 0), *margins, (0, 0)), mode="edge"), "VALID"
    sides = x.shape[1:3]
    tiled = (
        padding == "VALID"
        and (strides or (1, 1)) == window_shape
        and all(side % step == 0 for side, step in zip(sides, window_shape, strict=True))
    )
    if not tiled:
        return nn.max_pool(x, window_shape, strides, padding)
    return _tile_max(x, *window_shape)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _tile_max(x: Array, rows: int, columns: int) -> Array:
    """The largest value in each tile of the image."""
    return reduce(jnp.maximum, _pixels(x, rows, columns))


@_tile_max.defjvp
def _tile_max_jvp(
    rows: int, columns: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    largest = _tile_max(x, rows, columns)
    # What is not below the largest, so that a NaN, which nothing is equal to, has a gradient too.
    order = [
        jnp.where(y < largest, rows * columns, index)
        for index, y in enumerate(_pixels(x, rows, columns))
    ]
    first = reduce(jnp.minimum, order)[:, :, None, :, None]
    batch, height, width, channels = x.shape
    # Tiles as axes of their own: the transpose of slices pads, which is slow.
    tiles = (batch, height // rows, rows, width // columns, columns, channels)
    places = jnp.arange(rows * columns).reshape(rows, 1, columns, 1)
    return largest, jnp.sum(jnp.where(places == first, tangent.reshape(tiles), 0), axis=(2, 4))


def _pixels(x: Array, rows: int, columns: int) -> list[Array]:
    """The first pixel of every tile, the second of every one, and so on."""
    return [x[:, i::rows, j::columns] for i in range(rows) for j in range(columns)]


def ceil_margins(
    sides: tuple[int, ...], window_shape: tuple[int, int], strides: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """Padding below and to the right with which windows of a pooling reach the last pixel.

    Rounds the number of windows up, as Caffe and PyTorch's ``ceil_mode`` do: ceil((H - K) / S) + 1
    of H, at least 1. They begin inside the image as long as the stride is not above the window.
    """
    steps = [max(0, -((k - n) // s)) for n, k, s in zip(sides, window_shape, strides, strict=True)]
    return tuple(
        (0, max(0, n * s + k - side))
        for side, k, s, n in zip(sides, window_shape, strides, steps, strict=True)
    )


def adaptive_average_pool(
    x: Float[Array, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch {size[0]} {size[1]} channels"]:
    """Averages over windows that cover the image evenly (PyTorch's ``adaptive_avg_pool2d``).

    Row i of n is the mean of the rows from floor(i H / n) to ceil((i + 1) H / n) of H. Windows
    overlap where n does not divide H, and repeat rows where n is larger.
    """
    for axis, count in enumerate(size, start=1):
        side = x.shape[axis]
        if side == count:
            continue
        index, row = np.arange(count)[:, None], np.arange(side)
        inside = (row >= index * side // count) & (row < -((index + 1) * side // -count))
        weights = jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)
        mean = lax.dot_general(x, weights, (((axis,), (1,)), ((), ())), precision="highest")
        x = jnp.moveaxis(mean, -1, axis)
    return x


def pooled_logits(
    x: Float[Array, "batch height width channels"],
    num_classes: int,
    param_dtype: DTypeLike,
    *,
    dropout: BelowOne = 0.0,
    train: bool = False,
) -> Float[Array, "batch classes"]:
    """Global average pooling and a linear layer called "head", float32; within ``nn.compact``.

    ``dropout`` is between the two, in training only.
    """
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    if dropout:
        x = nn.Dropout(dropout, deterministic=not train)(x)
    return nn.Dense(num_classes, dtype=jnp.float32, param_dtype=param_dtype, name="head")(x)


def sow_auxiliary(module: nn.Module, logits: Array) -> None:
    """Gives the logits of an auxiliary head to whoever asks for the collection "auxiliary".

    They are its "logits", of several heads one after the other. ``module`` is the whole network.
    """
    if not module.is_initializing():  # else they would be among the initial variables
        module.sow("auxiliary", "logits", logits)


def shared_fields(module: nn.Module, part: type[nn.Module]) -> dict[str, Any]:
    """The fields that ``module`` and the class ``part`` share, to build a ``part`` with."""
    names = part.__dataclass_fields__.keys() & module.__dataclass_fields__.keys()
    return {name: getattr(module, name) for name in names - {"parent", "name"}}


class StochasticDepth(nn.Module):
    """A branch beside a shortcut, left out for some of the images (torchvision's mode "row").

    Huang et al., 2016, arXiv:1603.09382, eq. 2: y = b x with b of 0 or 1, drawn for each row of the
    batch. Divided by the chance that b is 1, as in dropout: evaluation has nothing to scale. Drawn
    by the key "dropout".

    Attributes:
        rate: probability that the branch is left out, in training only.
    """

    rate: BelowOne = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *places"], *, train: bool = False
    ) -> Float[Array, "batch *places"]:
        """The branch, or zeros."""
        places = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=places, deterministic=not train)(x)
