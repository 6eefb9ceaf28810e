"""What several architectures share: the convolution, the norms and a way to hand fields down."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
from jax import lax

# Every convolution of every model goes through these two names, so that another algorithm
# (a faster one on CPU, say) is chosen here and nowhere else.
convolve = lax.conv_general_dilated
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


def shared_fields(module: nn.Module, part: type[nn.Module]) -> dict[str, Any]:
    """Values of the fields of `module` that the class `part` has too, to build a `part` with."""
    names = part.__dataclass_fields__.keys() & module.__dataclass_fields__.keys()
    return {name: getattr(module, name) for name in names - {"parent", "name"}}
