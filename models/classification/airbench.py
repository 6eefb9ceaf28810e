"""The network of airbench94, made to reach 94 % on CIFAR-10 with little computation.

Jordan, 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv:2404.00498, section 3 and
the code in its appendix. A first layer of filters that whiten patches of 2×2 pixels, computed from
images and not learned (``ops.whitening``), three groups of two 3×3 convolutions, GELU, and a linear
layer after the maximum over all places.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from opsin.models.layers import Conv, Norm, batch_norm, max_pool, shared_fields
from opsin.ranges import Count, Positive


def fan_in_uniform(
    key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[Array, "*shape"]:
    """A kernel that is uniform within 1 / sqrt(fan in), as those of PyTorch begin."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def partial_identity(
    key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[Array, "height width in out"]:
    """A kernel whose first outputs are its inputs; the other ones are random (section 3.3).

    Args:
        key: of what is random, by ``fan_in_uniform``.
        shape: of the kernel, with odd sides.
        dtype: of the kernel.
    """
    height, width, inputs, outputs = shape
    alike = jnp.eye(inputs, outputs, dtype=dtype)
    identity = jnp.zeros(shape, dtype).at[height // 2, width // 2].set(alike)
    return jnp.where(jnp.arange(outputs) < inputs, identity, fan_in_uniform(key, shape, dtype))


class AirbenchOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        widths: channels of the groups.
        whitening: side of the patches that the first layer whitens; it has two filters for each
            number of a patch, and its kernel is random until weights replace it.
        kernel_init: of the other convolutions.
        norm: after each of them; its scale is to be frozen, as in the paper.
    """

    widths: Sequence[Count] = (64, 256, 256)
    whitening: Count = 2
    kernel_init: nn.initializers.Initializer = partial_identity
    norm: Norm = partial(batch_norm, momentum=0.4)
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class AirbenchBackbone(AirbenchOptions):
    """The convolutions. For the fields see ``AirbenchOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of each group by its stride, finest first: {2, 4, 8} of 15, 7 and 3 for 32 pixels.

        The first layer has no padding, and an odd last row or column is left out where the size is
        halved.

        Raises:
            ValueError: if ``x`` is not a batch of images, or they are too small.
        """
        least = 2 ** len(self.widths) + self.whitening - 1
        if x.ndim != 4 or min(x.shape[1:3]) < least:
            raise ValueError(
                f"Airbench takes [batch, height, width, channels] with sides of at least {least}; "
                f"got {x.shape}"
            )
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        side, filters = self.whitening, 2 * self.whitening**2 * x.shape[3]
        x = Conv(
            filters,
            (side, side),
            padding="VALID",
            kernel_init=fan_in_uniform,
            **types,
            name="whiten",
        )(x)
        x, features = nn.gelu(x, approximate=False), {}
        for group, width in enumerate(self.widths, start=1):
            for layer in (1, 2):
                name = f"group{group}_%s{layer}"
                x = Conv(
                    width,
                    (3, 3),
                    padding=1,
                    use_bias=False,
                    kernel_init=self.kernel_init,
                    name=name % "conv",
                    **types,
                )(x)
                if layer == 1:
                    x = max_pool(x, (2, 2), (2, 2))
                x = self.norm(train=train, name=name % "norm", **types)(x)
                x = nn.gelu(x, approximate=False)
            features[2**group] = x
        return features


class Airbench(AirbenchOptions):
    """Backbone, the maximum over all places and a linear head without bias.

    For the other fields see ``AirbenchOptions``. Parameters are ``{"backbone": those of
    AirbenchBackbone, "head": …}``: 1,972,792 for ten classes, of which the paper learns 1,971,352.

    Attributes:
        logit_scale: factor of the logits.
    """

    num_classes: Count = 10
    logit_scale: Positive = 1 / 9

    @nn.nowrap
    def without_head(self, name: str | None = None) -> AirbenchBackbone:
        """The backbone of this classifier, for other tasks: ``Airbench().without_head()``."""
        return AirbenchBackbone(**shared_fields(self, AirbenchBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        head = nn.Dense(
            self.num_classes,
            use_bias=False,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            kernel_init=fan_in_uniform,
            name="head",
        )
        return self.logit_scale * head(jnp.max(x, axis=(1, 2)).astype(jnp.float32))
