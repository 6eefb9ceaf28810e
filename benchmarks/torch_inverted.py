"""Inverted residual blocks in PyTorch, beside the networks of ``benchmarks.torch_models``."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.models.classification.efficientnet import EFFICIENTNET
from opsin.models.classification.mobilenet import MOBILENET_V2
from opsin.models.inverted import Stage, round_channels


class Conv(nn.Module):
    """A convolution without a bias; ``same`` pads as TensorFlow does, less at the top and left."""

    def __init__(
        self, inputs: int, channels: int, side: int, stride: int, groups: int, *, same: bool
    ):
        super().__init__()
        odd = same and stride > 1
        self.margins = ((side - 2) // 2, (side - 1) // 2) * 2 if odd else None
        self.stride, self.groups, self.padding = stride, groups, 0 if odd else side // 2
        self.weight = nn.Parameter(torch.empty(channels, inputs // groups, side, side))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Features; images have even sides at stride 2."""
        if self.margins:
            x = F.pad(x, self.margins)
        return F.conv2d(
            x, self.weight, stride=self.stride, padding=self.padding, groups=self.groups
        )


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole image holds."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Each channel times its gate."""
        y = F.silu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.expand(y))


class Block(nn.Module):
    """Expansion, a depthwise convolution, projection, and a shortcut where shapes allow it."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        expansion: int,
        side: int,
        stride: int,
        squeeze: bool,
        same: bool,
        activation: Callable[[Tensor], Tensor],
    ):
        super().__init__()
        wide = inputs * expansion
        self.expands, self.activation = expansion > 1, activation
        self.shortcut = stride == 1 and inputs == channels
        if self.expands:
            self.expand_conv = Conv(inputs, wide, 1, 1, 1, same=same)
            self.expand_norm = nn.BatchNorm2d(wide)
        self.depthwise_conv = Conv(wide, wide, side, stride, wide, same=same)
        self.depthwise_norm = nn.BatchNorm2d(wide)
        self.squeeze_excite = SqueezeExcite(wide, inputs // 4) if squeeze else nn.Identity()
        self.project_conv = Conv(wide, channels, 1, 1, 1, same=same)
        self.project_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features, ``stride`` times smaller."""
        y = x
        if self.expands:
            y = self.activation(self.expand_norm(self.expand_conv(y)))
        y = self.activation(self.depthwise_norm(self.depthwise_conv(y)))
        y = self.project_norm(self.project_conv(self.squeeze_excite(y)))
        return x + y if self.shortcut else y


class Inverted(nn.Module):
    """``models.classification.mobilenet`` and ``efficientnet`` at width 1, of ten classes."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        activation: Callable[[Tensor], Tensor],
        squeeze: bool = False,
        same: bool = False,
    ):
        super().__init__()
        self.activation, inputs = activation, round_channels(32)
        self.stem_conv = Conv(3, inputs, 3, 2, 1, same=same)
        self.stem_norm = nn.BatchNorm2d(inputs)
        self.names = []
        for number, (expansion, side, stride, channels, blocks) in enumerate(stages, start=1):
            for index in range(blocks):
                block = Block(
                    inputs,
                    channels,
                    expansion=expansion,
                    side=side,
                    stride=stride if index == 0 else 1,
                    squeeze=squeeze,
                    same=same,
                    activation=activation,
                )
                self.names.append(f"stage{number}_block{index + 1}")
                self.add_module(self.names[-1], block)
                inputs = channels
        self.top_conv = Conv(inputs, 1280, 1, 1, 1, same=same)
        self.top_norm = nn.BatchNorm2d(1280)
        self.head = nn.Linear(1280, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.activation(self.stem_norm(self.stem_conv(x)))
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.head(self.activation(self.top_norm(self.top_conv(x))).mean((2, 3)))


INVERTED = {
    "mobilenet_v2": partial(Inverted, MOBILENET_V2, activation=F.relu6),
    "efficientnet_b0": partial(Inverted, EFFICIENTNET, activation=F.silu, squeeze=True),
    "efficientnet_lite0": partial(Inverted, EFFICIENTNET, activation=F.relu6, same=True),
}
"""Twins of cases of ``benchmarks.cases.CASES``."""
