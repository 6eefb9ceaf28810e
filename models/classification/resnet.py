"""Residual networks and their plain twins.

He, Zhang, Ren and Sun, 2015, "Deep residual learning for image recognition", arXiv:1512.03385.
Details follow torchvision, so that its weights fit: symmetric padding at stride 2, batch norm with
momentum 0.9 and epsilon 1e-5, and the stride of a bottleneck on its 3×3 convolution ("v1.5"; the
paper strides the first 1×1).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.deformable import DeformableConv
from opsin.models.layers import (
    Conv,
    Norm,
    SqueezeExcite,
    batch_norm,
    pooled_logits,
    shared_fields,
)
from opsin.ops.convolution.materialized import materialized
from opsin.ranges import Count, CountOrZero, Depth

Shortcut = Literal["identity-pad", "projection"]


class Block(nn.Module):
    """Fields and shortcut of both kinds of block; layers come from the backbone.

    Attributes:
        conv: makes the 1×1 convolutions.
        spatial_conv: makes the 3×3 ones, which may be deformable.
        gate: makes what weights the channels of the branch before the addition; None is nothing.
        dilation: of the convolution that has the stride, and of those after it. They differ in the
            first block of a dilated stage: what comes before the stride that is left out keeps its
            own.
    """

    channels: Count
    stride: Count
    conv: Callable[..., Callable[[Array], Array]]
    spatial_conv: Callable[..., Callable[[Array], Array]]
    norm: Norm
    dilation: tuple[Count, Count] = (1, 1)
    residual: bool = True
    shortcut: Shortcut = "projection"
    zero_init_last_norm: bool = False
    gate: Callable[..., Callable[[Array], Array]] | None = None

    expansion: ClassVar[int]

    @nn.nowrap
    def conv3x3(self, *, stride: int, dilation: int, name: str) -> Callable[[Array], Array]:
        """A 3×3 convolution to ``channels`` channels that keeps the size, but for the stride."""
        return self.spatial_conv(
            self.channels,
            (3, 3),
            strides=stride,
            padding=dilation,
            kernel_dilation=dilation,
            name=name,
        )

    @nn.nowrap
    def last_norm(self, *, train: bool, name: str) -> Callable[[Array], Array]:
        """The norm before the addition; a zero scale makes a new block the identity of relu(x)."""
        init = nn.initializers.zeros if self.zero_init_last_norm else nn.initializers.ones
        return self.norm(train=train, scale_init=init, name=name)

    @nn.nowrap
    def join(self, x: Array, branch: Array, *, train: bool) -> Array:
        """relu(shortcut(x) + branch), eq. 1 and 2, or relu(branch) in a plain network.

        The branch is gated first, if the block has a gate.
        """
        if self.gate is not None:
            branch = self.gate(branch.shape[-1], name="se")(branch)
        if not self.residual:
            return nn.relu(branch)
        channels = branch.shape[-1]
        if self.stride != 1 or x.shape[-1] != channels:
            if self.shortcut == "projection":
                x = self.conv(channels, (1, 1), strides=self.stride, name="shortcut_conv")(x)
                x = self.norm(train=train, name="shortcut_norm")(x)
            else:
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))
        return materialized(nn.relu(x + branch))


class BasicBlock(Block):
    """Two 3×3 convolutions (Fig. 5, left)."""

    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch height_out width_out out"]:
        """Features with ``channels`` channels, ``stride`` times smaller, rounded up."""
        first, second = self.dilation
        y = self.conv3x3(stride=self.stride, dilation=first, name="conv1")(x)
        y = nn.relu(self.norm(train=train, name="norm1")(y))
        y = self.conv3x3(stride=1, dilation=second, name="conv2")(y)
        return self.join(x, self.last_norm(train=train, name="norm2")(y), train=train)


class BottleneckBlock(Block):
    """1×1, 3×3 and 1×1 convolutions, the last four times as wide (Fig. 5, right)."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch height_out width_out out"]:
        """Features with ``4 * channels`` channels, ``stride`` times smaller, rounded up."""
        y = self.conv(self.channels, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(train=train, name="norm1")(y))
        y = self.conv3x3(stride=self.stride, dilation=self.dilation[0], name="conv2")(y)
        y = nn.relu(self.norm(train=train, name="norm2")(y))
        y = self.conv(self.channels * self.expansion, (1, 1), name="conv3")(y)
        return self.join(x, self.last_norm(train=train, name="norm3")(y), train=train)


class ResNetOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
        stage_sizes: blocks in each stage; stage i has ``width * 2**i`` channels (times four out of
            a bottleneck), and every stage but the first starts with stride 2.
        block: ``BasicBlock`` or ``BottleneckBlock``.
        width: channels of the stem and of the first stage.
        stem: "imagenet" is a 7×7 convolution and a 3×3 max-pool, both stride 2; "cifar" is one 3×3
            convolution at full size.
        shortcut: where the shape changes, "projection" is a strided 1×1 convolution with norm
            (option B), "identity-pad" takes every second pixel and adds channels of zeros (option
            A).
        output_stride: how many times smaller than the image the last features are. Stages that
            would go further are dilated instead (Yu et al., 2017, arXiv:1705.09914, section 2;
            torchvision's ``replace_stride_with_dilation``): same parameters, same values at the
            pixels that the strided network has, and those between. None: no dilation.
        deformable_stages: stages, counted from 1, whose 3×3 convolutions are ``DeformableConv``.
        modulated: their second version, with a weight for each sample.
        residual: False builds the plain twin, without any shortcut.
        zero_init_last_norm: start every block as the identity (Goyal et al., 2017,
            arXiv:1706.02677, section 5.1).
        se_reduction: every block weights the channels of its branch by ``SqueezeExcite``, whose
            inner width is their number over this (Hu et al., 2017, arXiv:1709.01507, Fig. 3; 16 in
            the paper). None: no such layers.
        norm: ``batch_norm``, ``group_norm`` or a ``partial`` of them.
    """

    stage_sizes: Sequence[Depth]
    block: type[Block]
    width: Count = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Shortcut = "projection"
    output_stride: Count | None = None
    deformable_stages: Sequence[CountOrZero] = ()
    modulated: bool = True
    residual: bool = True
    zero_init_last_norm: bool = False
    se_reduction: Count | None = None
    norm: Norm = batch_norm
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class ResNetBackbone(ResNetOptions):
    """The stem and the stages. For the fields see ``ResNetOptions``."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of each stage by its stride, finest first.

        {4: C2, 8: C3, 16: C4, 32: C5} with the ImageNet stem and four stages; {1, 2, 4, …} with
        the CIFAR stem. Sizes that a stride does not divide are rounded up. The keys name the
        levels: they stay those of the network without dilation, whatever ``output_stride`` is.

        Raises:
            ValueError: if ``x`` is not a batch of images, or a field holds what it cannot.
        """
        if x.ndim != 4:
            raise ValueError(f"ResNet takes [batch, height, width, channels]; got {x.shape}")
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f'stem is "imagenet" or "cifar"; got {self.stem!r}')
        if self.shortcut not in ("identity-pad", "projection"):
            raise ValueError(f'shortcut is "identity-pad" or "projection"; got {self.shortcut!r}')
        stem_stride = 4 if self.stem == "imagenet" else 1
        levels = [stem_stride * 2**stage for stage in range(len(self.stage_sizes))]
        if self.output_stride not in (None, *levels):
            raise ValueError(f"output_stride is None or one of {levels}; got {self.output_stride}")
        stages = range(1, len(levels) + 1)
        if not set(self.deformable_stages) <= set(stages):
            raise ValueError(
                f"deformable_stages are among {list(stages)}; got {tuple(self.deformable_stages)}"
            )
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        options: dict[str, Any] = {"use_bias": False, "kernel_init": fan_out, **types}
        conv = partial(Conv, padding=0, **options)
        deformable = partial(DeformableConv, modulated=self.modulated, **options)
        norm = partial(self.norm, **types)

        def gate(channels: int, *, name: str) -> SqueezeExcite:
            return SqueezeExcite(max(1, channels // (self.se_reduction or 1)), **types, name=name)

        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), strides=2, padding=3, name="stem_conv")(x)
            x = nn.relu(norm(train=train, name="stem_norm")(x))
            margin: Any = ((1, 1), (1, 1))  # linen takes it, but declares `padding: str`
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=margin)
        else:
            x = conv(self.width, (3, 3), padding=1, name="stem_conv")(x)
            x = nn.relu(norm(train=train, name="stem_norm")(x))

        features = {}
        dilation = 1
        for stage, (level, blocks) in enumerate(zip(levels, self.stage_sizes, strict=True)):
            previous, dilation = dilation, max(1, level // (self.output_stride or level))
            for index in range(blocks):
                block = self.block(
                    channels=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 and dilation == 1 else 1,
                    dilation=(previous if index == 0 else dilation, dilation),
                    conv=conv,
                    spatial_conv=deformable if stage + 1 in self.deformable_stages else conv,
                    norm=norm,
                    residual=self.residual,
                    shortcut=self.shortcut,
                    zero_init_last_norm=self.zero_init_last_norm,
                    gate=gate if self.se_reduction else None,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
                x = block(x, train=train)
            features[level] = x
        return features


class ResNet(ResNetOptions):
    """Backbone, global average pooling and a linear head; other fields as ``ResNetOptions``.

    Parameters are ``{"backbone": those of ResNetBackbone, "head": …}``, and so are the statistics.
    """

    num_classes: Count = 1000

    @nn.nowrap
    def without_head(self, name: str | None = None) -> ResNetBackbone:
        """The backbone of this classifier, for other tasks: ``ResNet50().without_head()``."""
        return ResNetBackbone(**shared_fields(self, ResNetBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Any image size; raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        return pooled_logits(x, self.num_classes, self.param_dtype)


# Table 1 of the paper: parameters 11,689,512; 21,797,672; 25,557,032; 44,549,160; 60,192,808.
ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock)
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=BottleneckBlock)
ResNet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3), block=BottleneckBlock)

# With Squeeze-and-Excitation (Hu et al., 2017, arXiv:1709.01507): parameters 11,778,592;
# 28,088,024; 49,326,872.
SEResNet18 = partial(ResNet18, se_reduction=16)
SEResNet50 = partial(ResNet50, se_reduction=16)
SEResNet101 = partial(ResNet101, se_reduction=16)

# The ImageNet networks on 32×32 images, as later papers use them (SimCLR, for one; Chen et al.,
# 2020, arXiv:2002.05709, appendix B.9): parameters 11,173,962; 11,263,042; 23,520,842.
ResNet18Cifar = partial(ResNet18, stem="cifar", num_classes=10)
SEResNet18Cifar = partial(SEResNet18, stem="cifar", num_classes=10)
ResNet50Cifar = partial(ResNet50, stem="cifar", num_classes=10)


def cifar_resnet(depth: int, **options: Any) -> ResNet:
    """The networks of section 4.2 for 32×32 images: 6n + 2 layers, 16, 32 and 64 channels.

    Shortcuts are option A, as in the paper. ``options`` are other fields of ``ResNet``:
    ``shortcut="projection"`` is option B, ``residual=False`` the plain twin.

    Raises:
        ValueError: if ``depth`` is not 6n + 2 with n of at least one.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, …); got {depth}")
    fields: dict[str, Any] = {
        "stage_sizes": (blocks, blocks, blocks),
        "block": BasicBlock,
        "width": 16,
        "stem": "cifar",
        "shortcut": "identity-pad",
        "num_classes": 10,
    }
    return ResNet(**(fields | options))


# Table 6 of the paper: parameters 269,722; 464,154; 658,586; 853,018; 1,727,962.
ResNet20 = partial(cifar_resnet, depth=20)
ResNet32 = partial(cifar_resnet, depth=32)
ResNet44 = partial(cifar_resnet, depth=44)
ResNet56 = partial(cifar_resnet, depth=56)
ResNet110 = partial(cifar_resnet, depth=110)
