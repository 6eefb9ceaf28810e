"""What several architectures share: convolution, pooling, norms, and a way to hand fields down."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ops.convolution import convolve

# Every convolution of every model is this one.
Conv = partial(nn.Conv, conv_general_dilated=convolve)

Norm = Callable[..., Callable[..., Any]]
"""A norm field: called with `train`, `axis_name` and options of a linen norm, it gives a module."""


def batch_norm(
    *,
    train: bool,
    axis_name: str | None = None,
    frozen_statistics: bool = False,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    **options: Any,
) -> nn.BatchNorm:
    """Batch normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167) with PyTorch's defaults.

    Statistics are float32 whatever the compute dtype. PyTorch's momentum 0.1 is 0.9 here. Unlike
    PyTorch, the running variance averages the biased batch variance.

    Args:
      train: use the statistics of this batch and update the running ones.
      axis_name: the mapped axis to average statistics over; only `pmap` needs it.
      frozen_statistics: use the running statistics in training too, for fine-tuning on small
        batches. Scale and bias still learn, unless the optimiser masks them.
      momentum: weight of the old running statistics in an update.
      epsilon: added to the variance.
      **options: other fields of `nn.BatchNorm`, such as `name`, `dtype` or `scale_init`.
    """
    return nn.BatchNorm(
        use_running_average=frozen_statistics or not train,
        axis_name=axis_name,
        momentum=momentum,
        epsilon=epsilon,
        **options,
    )


def group_norm(
    *,
    train: bool,
    axis_name: str | None = None,
    groups: int = 32,
    epsilon: float = 1e-5,
    **options: Any,
) -> nn.GroupNorm:
    """Group normalisation (Wu and He, 2018, arXiv:1803.08494): a drop-in for `batch_norm`.

    `train` and `axis_name` change nothing: each image has its own statistics.
    `groups` must divide the channels.
    """
    del train, axis_name
    return nn.GroupNorm(num_groups=groups, epsilon=epsilon, **options)


def max_pool(
    x: Float[Array, "batch height width channels"],
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Any = "VALID",
) -> Float[Array, "batch rows columns channels"]:
    """The largest value in each window, as ``nn.max_pool``.

    Windows that lie side by side are compared a pixel at a time: XLA's gradient of a general
    pooling scatters, which on a CPU takes three times as long. Where several pixels of such a
    window are largest, as the zeros of a ReLU are, they share the gradient: the first of them does
    not take it all.
    """
    sides = x.shape[1:3]
    tiled = (
        padding == "VALID"
        and (strides or (1, 1)) == window_shape
        and all(side % step == 0 for side, step in zip(sides, window_shape, strict=True))
    )
    if not tiled:
        return nn.max_pool(x, window_shape, strides, padding)
    rows, columns = window_shape
    pixels = [x[:, i::rows, j::columns] for i in range(rows) for j in range(columns)]
    return reduce(jnp.maximum, pixels)


def pooled_logits(
    x: Float[Array, "batch height width channels"], num_classes: int, param_dtype: DTypeLike
) -> Float[Array, "batch classes"]:
    """Global average pooling and a linear layer called "head", float32; within `nn.compact`."""
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return nn.Dense(num_classes, dtype=jnp.float32, param_dtype=param_dtype, name="head")(x)


def shared_fields(module: nn.Module, part: type[nn.Module]) -> dict[str, Any]:
    """Values of the fields of `module` that the class `part` has too, to build a `part` with."""
    names = part.__dataclass_fields__.keys() & module.__dataclass_fields__.keys()
    return {name: getattr(module, name) for name in names - {"parent", "name"}}
