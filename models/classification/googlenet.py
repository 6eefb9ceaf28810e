"""GoogLeNet: modules of parallel convolutions, and classifiers on the way that only train.

Szegedy et al., 2014, "Going deeper with convolutions", arXiv:1409.4842. ``GoogLeNet`` is the
network of the paper's Table 1, ``GoogLeNetBatchNorm`` that of torchvision, so that its weights fit.
"""

from collections.abc import Sequence
from functools import partial
from string import ascii_lowercase
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.layers import (
    Conv,
    Norm,
    adaptive_average_pool,
    batch_norm,
    max_pool,
    pooled_logits,
    shared_fields,
    sow_auxiliary,
)
from opsin.ops.response_norm import response_norm
from opsin.ranges import BelowOne, Count, CountOrZero

Widths = tuple[CountOrZero, ...]
"""Channels of a module in the order of Table 1: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool."""

# Table 1 of the paper: the modules 3a, 3b; 4a to 4e; 5a, 5b.
TABLE_1: tuple[tuple[Widths, ...], ...] = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class ConvNormReLU(nn.Module):
    """A convolution that keeps the size, but for the stride, a norm if there is one, and a ReLU.

    Attributes:
        kernel_size: side of the kernel, an odd number.
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them, in place of the bias.
    """

    features: Count
    kernel_size: Count
    strides: Count = 1
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Features that are not negative."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.strides,
            padding=self.kernel_size // 2,
            use_bias=self.norm is None,
            kernel_init=nn.initializers.he_normal(),
            **types,
            name="conv",
        )(x)
        if self.norm is not None:
            x = self.norm(train=train, **types, name="norm")(x)
        return nn.relu(x)


class Inception(nn.Module):
    """Convolutions of three sizes and a max-pool beside one another, joined by channels (Fig. 2).

    Attributes:
        widths: channels, as in a row of Table 1. A reduction of 0 is left out, and with it a pool
            of 0: with (64, 0, 128, 0, 32, 0) it is the naive module of Fig. 2a, whose channels
            can only become more, with all six that of Fig. 2b.
        kernel_size: side of the third convolution: 5, or 3 in torchvision's form.
        norm: after each convolution, if any.
    """

    widths: Widths
    kernel_size: Count = 5
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch height width out"]:
        """Channels of the four branches, one after the other. Raises ValueError for bad widths."""
        if len(self.widths) != 6 or 0 in self.widths[0:5:2]:
            raise ValueError(
                "widths are six numbers, of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool, and "
                f"only the reductions and the pool may be 0; got {tuple(self.widths)}"
            )
        point, reduce3, width3, reduce5, width5, pool = self.widths
        fields = shared_fields(self, ConvNormReLU)

        def unit(x: Array, features: int, name: str, side: int = 1) -> Array:
            fields.update(features=features, kernel_size=side)
            return ConvNormReLU(**fields, name=name)(x, train=train)

        y3 = unit(x, reduce3, "branch2_reduce") if reduce3 else x
        y5 = unit(x, reduce5, "branch3_reduce") if reduce5 else x
        margin: Any = ((1, 1), (1, 1))  # linen takes it, but declares `padding: str`
        pooled = max_pool(x, (3, 3), strides=(1, 1), padding=margin)
        branches = (
            unit(x, point, "branch1"),
            unit(y3, width3, "branch2", 3),
            unit(y5, width5, "branch3", self.kernel_size),
            unit(pooled, pool, "branch4") if pool else pooled,
        )
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryClassifier(nn.Module):
    """Average pooling to 4×4, a 1×1 convolution, a hidden layer, dropout and a linear layer.

    Section 5 of the paper, whose windows for 14×14 pixels are 5×5 with stride 3. Here they are
    PyTorch's ``adaptive_average_pool``, as in torchvision: 4×4 there, and any image fits.

    Attributes:
        width: channels of the convolution.
        hidden: width of the hidden layer.
        dropout: probability after it, in training only.
    """

    num_classes: Count
    width: Count = 128
    hidden: Count = 1024
    dropout: BelowOne = 0.7
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch {self.num_classes}"]:
        """Logits, float32."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = adaptive_average_pool(x, (4, 4))
        x = ConvNormReLU(self.width, 1, norm=self.norm, **types, name="conv")(x, train=train)
        he_normal = nn.initializers.he_normal()
        fc1 = Conv(self.hidden, (4, 4), padding=0, kernel_init=he_normal, **types, name="fc1")
        x = nn.relu(fc1(x)[:, 0, 0])
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        types["dtype"] = jnp.float32
        return nn.Dense(self.num_classes, **types, name="fc2")(x)


class GoogLeNetOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        stem: channels of the three convolutions before the modules: 7×7, 1×1 and 3×3.
        stages: ``widths`` of the modules of each stage. The first is number 3, its modules are
            called "3a", "3b" and so on; every stage halves the size.
        kernel_size: side of the third convolution of each module.
        last_pool: side of the window of the pooling before the last stage; 2 in torchvision.
        response_norm: whether ``ops.response_norm`` acts twice in the stem (Fig. 3).
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them after each convolution, in
            place of its bias; None as in the paper.
    """

    stem: tuple[Count, Count, Count] = (64, 64, 192)
    stages: tuple[tuple[Widths, ...], ...] = TABLE_1
    kernel_size: Count = 5
    last_pool: Count = 3
    response_norm: bool = True
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def modules(self) -> list[str]:
        """Names of the modules, in the order in which they run: ["3a", "3b", "4a", …]."""
        return [
            f"{number}{letter}"
            for number, stage in enumerate(self.stages, start=3)
            for letter, _ in zip(ascii_lowercase, stage, strict=False)
        ]


class GoogLeNetBackbone(GoogLeNetOptions):
    """The stem and the modules. For the fields see ``GoogLeNetOptions``."""

    @nn.compact
    def outputs(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Features by the name of the layer: "conv1", "conv3" and those of ``modules``.

        Raises:
            ValueError: if ``x`` is not a batch of images, or a field holds what it cannot.
        """
        if x.ndim != 4:
            raise ValueError(f"GoogLeNet takes [batch, height, width, channels]; got {x.shape}")
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        unit = partial(ConvNormReLU, norm=self.norm, **types)
        normed = response_norm if self.response_norm else lambda x: x
        halved = partial(max_pool, strides=(2, 2), padding="CEIL")

        found = {}
        x = found["conv1"] = unit(self.stem[0], 7, strides=2, name="conv1")(x, train=train)
        x = normed(halved(x, (3, 3)))
        x = unit(self.stem[1], 1, name="conv2")(x, train=train)
        x = found["conv3"] = unit(self.stem[2], 3, name="conv3")(x, train=train)
        x = normed(x)
        rows = [widths for stage in self.stages for widths in stage]
        for name, widths in zip(self.modules(), rows, strict=True):
            if name.endswith("a"):
                side = self.last_pool if int(name[:-1]) == 2 + len(self.stages) else 3
                x = halved(x, (side, side))
            module = Inception(
                widths, self.kernel_size, self.norm, **types, name=f"inception{name}"
            )
            x = found[name] = module(x, train=train)
        return found

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """The last features of each stride: {2: conv1, 4: conv3, 8: 3b, 16: 4e, 32: 5b}.

        A pooling halves a side and rounds up, but an odd side of n pixels to (n - 1) / 2, as in
        torchvision. Raises ValueError as ``outputs`` does.
        """
        outputs = self.outputs(x, train=train)
        features = {2: outputs["conv1"], 4: outputs["conv3"]}
        return features | {2 ** int(name[:-1]): outputs[name] for name in self.modules()}


class GoogLeNet(GoogLeNetOptions):
    """Backbone, average pooling, a linear head and two auxiliary ones.

    Parameters are ``{"backbone": those of GoogLeNetBackbone, "head": …, "auxiliary4a": …,
    "auxiliary4d": …}``. For the other fields see ``GoogLeNetOptions``.

    Attributes:
        dropout: probability before the head, in training only.
        auxiliary: the modules whose output an ``AuxiliaryClassifier`` sees in training. The logits
            are sown as "logits" into the collection "auxiliary", one after the other; a task adds
            their losses (times 0.3 in the paper's section 5). () has none.
        auxiliary_hidden: width of their hidden layer.
        auxiliary_dropout: probability of theirs.
    """

    num_classes: Count = 1000
    dropout: BelowOne = 0.4
    auxiliary: Sequence[str] = ("4a", "4d")
    auxiliary_hidden: Count = 1024
    auxiliary_dropout: BelowOne = 0.7

    @nn.nowrap
    def without_head(self, name: str | None = None) -> GoogLeNetBackbone:
        """The backbone of this classifier, for other tasks: ``GoogLeNet().without_head()``."""
        return GoogLeNetBackbone(**shared_fields(self, GoogLeNetBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Any image size.

        Raises:
            ValueError: as the backbone does, or for an auxiliary head on a module that there is
                not.
        """
        outputs = self.without_head(name="backbone").outputs(x, train=train)
        if not set(self.auxiliary) <= set(self.modules()):
            raise ValueError(f"auxiliary names some of {self.modules()}; got {self.auxiliary}")
        if train or self.is_initializing():
            for name in self.auxiliary:
                head = AuxiliaryClassifier(
                    self.num_classes,
                    hidden=self.auxiliary_hidden,
                    dropout=self.auxiliary_dropout,
                    norm=self.norm,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"auxiliary{name}",
                )
                sow_auxiliary(self, head(outputs[name], train=train))
        # By name: whoever maps over a dict of arrays, as a sharded step does, sorts it.
        x = outputs[self.modules()[-1]]
        options: dict[str, Any] = {"dropout": self.dropout, "train": train}
        return pooled_logits(x, self.num_classes, self.param_dtype, **options)


# torchvision's: the third branch has a 3×3 kernel, by a mistake that its weights were trained with.
# Parameters with both auxiliary heads 13,378,280 and 13,004,888; without them 6,998,552 and
# 6,624,904.
GoogLeNetBatchNorm = partial(
    GoogLeNet,
    kernel_size=3,
    last_pool=2,
    response_norm=False,
    norm=partial(batch_norm, epsilon=1e-3),
    dropout=0.2,
)
