"""SimCLR: a backbone, and a small network behind it that is only there for training.

Chen, Kornblith, Norouzi and Hinton, 2020, "A simple framework for contrastive learning of visual
representations", arXiv:2002.05709, section 2.1: h = f(x) is what is kept, z = g(h) is what the
contrastive loss sees.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.classification.resnet import ResNet18Cifar, ResNet50
from opsin.models.layers import Norm
from opsin.ranges import Count, DepthOrZero


class ProjectionHead(nn.Module):
    """g, a multilayer perceptron with ReLU between its layers (section 4.2).

    Attributes:
        layers: 0 is the identity, 1 linear, 2 the paper's; its successor has 3 (Chen et al., 2020,
            arXiv:2006.10029).
        output: numbers out of the last layer.
        width: of the hidden layers; None takes that of the features.
        norm: after each layer, the last one too, which then has no offset, as in the authors' code;
            biases of the layers are left out. None is without.
    """

    layers: DepthOrZero = 2
    output: Count = 128
    width: Count | None = None
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch features"], *, train: bool = False
    ) -> Float[Array, "batch output"]:
        """Embeddings, float32. Raises ValueError for a negative number of layers."""
        if self.layers < 0:
            raise ValueError(f"a projection head has 0 layers or more; got {self.layers}")
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = features
        for index in range(self.layers):
            last = index == self.layers - 1
            width = self.output if last else self.width or features.shape[-1]
            name = f"layer{index + 1}"
            x = nn.Dense(width, use_bias=self.norm is None, name=name, **types)(x)
            if self.norm is not None:
                norm = partial(self.norm, **types)
                x = norm(train=train, use_bias=not last, name=f"norm{index + 1}")(x)
            x = x if last else nn.relu(x)
        return x.astype(jnp.float32)


class SimCLR(nn.Module):
    """The mean of a backbone's last features over the image, and a projection head on it.

    Parameters are ``{"backbone": those of the backbone, "head": those of the head}``: the
    backbone's are where a classifier has them.

    Attributes:
        backbone: a module that returns features by stride, finest first, such as
            ``ResNet50().without_head()``, or one vector an image.
        head: the projection.
    """

    backbone: nn.Module
    head: ProjectionHead = ProjectionHead()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch output"]:
        """Embeddings z, float32, of any length.

        Raises:
            ValueError: if the backbone gives neither features by stride nor vectors.
        """
        features: Any = self.backbone(x, train=train)
        if isinstance(features, dict):
            *_, last = features.values()
            features = jnp.mean(last, axis=(1, 2), dtype=jnp.float32)
        if getattr(features, "ndim", 0) != 2:
            raise ValueError(
                f"SimCLR needs features by stride, or one vector an image, and "
                f"{type(self.backbone).__name__} gives {getattr(features, 'shape', features)}: "
                "take a backbone such as ResNet50().without_head()"
            )
        return self.head(features.astype(jnp.float32), train=train)


# Parameters of the heads: 4,458,624 and 328,320 with biases and without norm.
SimCLRResNet50 = partial(SimCLR, backbone=ResNet50(zero_init_last_norm=True).without_head())
# The stem of appendix B.9 for CIFAR-10, on a smaller network than its ResNet-50.
SimCLRResNet18Cifar = partial(SimCLR, backbone=ResNet18Cifar().without_head())
