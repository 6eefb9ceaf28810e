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

from models.layers import Conv, Norm, batch_norm, shared_fields

Shortcut = Literal["identity-pad", "projection"]


class Block(nn.Module):
    """Fields and shortcut of both kinds of block; `conv` and `norm` come from the backbone."""

    channels: int
    stride: int
    conv: Callable[..., Callable[[Array], Array]]
    norm: Norm
    residual: bool = True
    shortcut: Shortcut = "projection"
    zero_init_last_norm: bool = False

    expansion: ClassVar[int]

    @nn.nowrap
    def last_norm(self, *, train: bool, name: str) -> Callable[[Array], Array]:
        """The norm before the addition; a zero scale makes a new block the identity of relu(x)."""
        init = nn.initializers.zeros if self.zero_init_last_norm else nn.initializers.ones
        return self.norm(train=train, scale_init=init, name=name)

    @nn.nowrap
    def join(self, x: Array, branch: Array, *, train: bool) -> Array:
        """relu(shortcut(x) + branch), eq. 1 and 2, or relu(branch) in a plain network."""
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
        return nn.relu(x + branch)


class BasicBlock(Block):
    """Two 3×3 convolutions (Fig. 5, left)."""

    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch height_out width_out out"]:
        """Features with `channels` channels, `stride` times smaller, rounded up."""
        y = self.conv(self.channels, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(train=train, name="norm1")(y))
        y = self.conv(self.channels, (3, 3), padding=1, name="conv2")(y)
        return self.join(x, self.last_norm(train=train, name="norm2")(y), train=train)


class BottleneckBlock(Block):
    """1×1, 3×3 and 1×1 convolutions, the last four times as wide (Fig. 5, right)."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch height_out width_out out"]:
        """Features with `4 * channels` channels, `stride` times smaller, rounded up."""
        y = self.conv(self.channels, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(train=train, name="norm1")(y))
        y = self.conv(self.channels, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(train=train, name="norm2")(y))
        y = self.conv(self.channels * self.expansion, (1, 1), name="conv3")(y)
        return self.join(x, self.last_norm(train=train, name="norm3")(y), train=train)


class ResNetOptions(nn.Module):
    """The fields that a backbone and its classifier share.

    Attributes:
      stage_sizes: blocks in each stage; stage i has `width * 2**i` channels (times four out of a
        bottleneck), and every stage but the first starts with stride 2.
      block: `BasicBlock` or `BottleneckBlock`.
      width: channels of the stem and of the first stage.
      stem: "imagenet" is a 7×7 convolution and a 3×3 max-pool, both stride 2; "cifar" is one 3×3
        convolution at full size.
      shortcut: where the shape changes, "projection" is a strided 1×1 convolution with norm
        (option B), "identity-pad" takes every second pixel and adds channels of zeros (option A).
      residual: False builds the plain twin, without any shortcut.
      zero_init_last_norm: start every block as the identity (Goyal et al., 2017,
        arXiv:1706.02677, section 5.1).
      norm: `batch_norm`, `group_norm` or a `partial` of them.
      axis_name: mapped axis for the statistics of batch norm; only `pmap` needs it.
    """

    stage_sizes: Sequence[int]
    block: type[Block]
    width: int = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Shortcut = "projection"
    residual: bool = True
    zero_init_last_norm: bool = False
    norm: Norm = batch_norm
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class ResNetBackbone(ResNetOptions):
    """The stem and the stages. For the fields see `ResNetOptions`."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Output of each stage by its stride, finest first.

        {4: C2, 8: C3, 16: C4, 32: C5} with the ImageNet stem and four stages; {1, 2, 4, …} with
        the CIFAR stem. Sizes that a stride does not divide are rounded up.

        Raises:
          ValueError: if `x` is not a batch of images, or a field holds an unknown name.
        """
        if x.ndim != 4:
            raise ValueError(f"ResNet takes [batch, height, width, channels]; got {x.shape}")
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f'stem is "imagenet" or "cifar"; got {self.stem!r}')
        if self.shortcut not in ("identity-pad", "projection"):
            raise ValueError(f'shortcut is "identity-pad" or "projection"; got {self.shortcut!r}')
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(Conv, use_bias=False, padding=0, kernel_init=fan_out, **types)
        norm = partial(self.norm, axis_name=self.axis_name, **types)

        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), strides=2, padding=3, name="stem_conv")(x)
            x = nn.relu(norm(train=train, name="stem_norm")(x))
            margin: Any = ((1, 1), (1, 1))  # linen takes it, but declares `padding: str`
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=margin)
            stride = 4
        else:
            x = conv(self.width, (3, 3), padding=1, name="stem_conv")(x)
            x = nn.relu(norm(train=train, name="stem_norm")(x))
            stride = 1

        features = {}
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                block = self.block(
                    channels=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    residual=self.residual,
                    shortcut=self.shortcut,
                    zero_init_last_norm=self.zero_init_last_norm,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
                x = block(x, train=train)
            features[stride * 2**stage] = x
        return features


class ResNet(ResNetOptions):
    """Backbone, global average pooling and a linear head. For the other fields see `ResNetOptions`.

    Parameters are `{"backbone": those of ResNetBackbone, "head": …}`, and so are the statistics.
    """

    num_classes: int = 1000

    @nn.nowrap
    def without_head(self, name: str | None = None) -> ResNetBackbone:
        """The backbone of this classifier, for other tasks: `ResNet50().without_head()`."""
        return ResNetBackbone(**shared_fields(self, ResNetBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Any image size; raises ValueError as the backbone does."""
        *_, x = self.without_head(name="backbone")(x, train=train).values()
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        head = nn.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="head"
        )
        return head(x)


# Table 1 of the paper: parameters 11,689,512; 21,797,672; 25,557,032; 44,549,160; 60,192,808.
ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock)
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=BottleneckBlock)
ResNet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3), block=BottleneckBlock)

# The ImageNet networks on 32×32 images, as later papers use them (SimCLR, for one; Chen et al.,
# 2020, arXiv:2002.05709, appendix B.9): parameters 11,173,962; 23,520,842.
ResNet18Cifar = partial(ResNet18, stem="cifar", num_classes=10)
ResNet50Cifar = partial(ResNet50, stem="cifar", num_classes=10)


def cifar_resnet(depth: int, **options: Any) -> ResNet:
    """The networks of section 4.2 for 32×32 images: 6n + 2 layers, 16, 32 and 64 channels.

    Shortcuts are option A, as in the paper. `options` are other fields of `ResNet`:
    `shortcut="projection"` is option B, `residual=False` the plain twin.

    Raises:
      ValueError: if `depth` is not 6n + 2 with n of at least one.
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
