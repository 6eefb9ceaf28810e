"""The networks of ``models/`` in PyTorch, as its users write them; images are [B, C, H, W].

Parts have the names of ours, so that parameters can be carried over. Papers: see ``models/``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.benchmarks.torch_inverted import INVERTED


class LeNet5(nn.Module):
    """``models.classification.lenet.LeNet5`` for grey images of 28×28."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.head = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.pad(x, (2, 2, 2, 2), mode="replicate")
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c3(x)), 2)
        x = F.relu(self.c5(x)).flatten(1)
        return self.head(F.relu(self.f6(x)))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int, projection: bool):
        super().__init__()
        self.stride, self.padding = stride, channels - inputs
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.projects = projection and (stride > 1 or inputs != channels)
        if self.projects:
            self.shortcut_conv = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features, ``stride`` times smaller."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.projects:
            x = self.shortcut_norm(self.shortcut_conv(x))
        elif self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(x + y)


class ResNet(nn.Module):
    """``models.classification.resnet.ResNet`` with basic blocks and the CIFAR stem."""

    def __init__(
        self,
        stage_sizes: Sequence[int],
        width: int,
        shortcut: Literal["identity-pad", "projection"],
    ):
        super().__init__()
        self.stem_conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        inputs, self.blocks = width, []
        for stage, blocks in enumerate(stage_sizes):
            for index in range(blocks):
                channels, stride = width * 2**stage, 2 if stage > 0 and index == 0 else 1
                block = BasicBlock(inputs, channels, stride, shortcut == "projection")
                name = f"stage{stage + 1}_block{index + 1}"
                self.add_module(name, block)
                inputs = channels
                self.blocks.append(name)
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.stem_norm(self.stem_conv(x)))
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return self.head(x.mean((2, 3)))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block with one map for queries, keys and values."""

    def __init__(self, width: int, mlp_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp1 = nn.Linear(width, mlp_width)
        self.mlp2 = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T, D] of the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # [B, H, T, D / H] each
        y = F.scaled_dot_product_attention(queries, keys, values)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))


class ViT(nn.Module):
    """``models.classification.vit.ViT`` with a class token and learned positions, on 32×32."""

    def __init__(self, depth: int, width: int, mlp_width: int, heads: int, patch: int):
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        tokens = (32 // patch) ** 2 + 1
        self.positions = nn.Parameter(torch.empty(tokens, width).normal_(std=0.02))
        self.blocks = nn.Sequential(*[EncoderBlock(width, mlp_width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(self.norm(self.blocks(x + self.positions))[:, 0])


class TwoConvolutions(nn.Module):
    """Two 3×3 convolutions, each with batch norm and ReLU."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same size."""
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class UNet(nn.Module):
    """``models.segmentation.unet.UNet``, padded, with batch norm and up-convolutions."""

    def __init__(self, classes: int, width: int, depth: int = 4):
        super().__init__()
        self.depth, inputs = depth, 3
        for level in range(depth):
            channels = width * 2**level
            self.add_module(f"down{level + 1}", TwoConvolutions(inputs, channels))
            self.add_module(f"up{level + 1}", nn.ConvTranspose2d(2 * channels, channels, 2, 2))
            self.add_module(f"expand{level + 1}", TwoConvolutions(2 * channels, channels))
            inputs = channels
        self.bottom = TwoConvolutions(inputs, 2 * inputs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K, H, W]; height and width must halve without a rest."""
        passed = []
        for level in range(1, self.depth + 1):
            passed.append(self.get_submodule(f"down{level}")(x))
            x = F.max_pool2d(passed[-1], 2)
        x = self.bottom(x)
        for level in range(self.depth, 0, -1):
            x = self.get_submodule(f"up{level}")(x)
            x = self.get_submodule(f"expand{level}")(torch.cat([passed.pop(), x], dim=1))
        return self.head(x)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions behind group norm and SiLU, with the embedding of the time between."""

    def __init__(self, inputs: int, channels: int, embedded: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1)
        self.embed = nn.Linear(embedded, channels)
        self.norm2 = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.projects = inputs != channels
        if self.projects:
            self.shortcut = nn.Conv2d(inputs, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features of the same size."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.embed(F.silu(embedding))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.shortcut(x) if self.projects else x)


class AttentionBlock(nn.Module):
    """Every pixel looks at all others, by one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same size."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        queries, keys, values = self.qkv(pixels).chunk(3, dim=-1)
        y = self.out(F.scaled_dot_product_attention(queries, keys, values))
        return x + y.transpose(1, 2).reshape(x.shape)


class DiffusionUNet(nn.Module):
    """``models.generative.diffusion_unet.DiffusionUNet`` of grey 32×32 images, attention at 16.

    Resampled by convolutions, without dropout or classes.
    """

    def __init__(self, width: int, multiples: Sequence[int], blocks: int = 2):
        super().__init__()
        self.width, embedded = width, 4 * width
        self.embed1 = nn.Linear(width, embedded)
        self.embed2 = nn.Linear(embedded, embedded)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.down, self.up, passed, x, size = [], [], [width], width, 32

        def add(steps: list[tuple[str, str]], kind: str, name: str, module: nn.Module) -> None:
            self.add_module(name, module)
            steps.append((kind, name))

        def block(steps: list[tuple[str, str]], inputs: int, channels: int, name: str) -> int:
            add(steps, "block", name, ResidualBlock(inputs, channels, embedded))
            if size == 16:
                add(steps, "attend", f"{name}_attention", AttentionBlock(channels))
            return channels

        for level, multiple in enumerate(multiples, start=1):
            for index in range(1, blocks + 1):
                x = block(self.down, x, width * multiple, f"down{level}_{index}")
                self.down.append(("keep", ""))
                passed.append(x)
            if level < len(multiples):
                add(self.down, "halve", f"halve{level}", nn.Conv2d(x, x, 3, 2))
                self.down.append(("keep", ""))
                passed.append(x)
                size //= 2
        self.middle1 = ResidualBlock(x, x, embedded)
        self.middle_attention = AttentionBlock(x)
        self.middle2 = ResidualBlock(x, x, embedded)
        for level, multiple in reversed(list(enumerate(multiples, start=1))):
            for index in range(1, blocks + 2):
                self.up.append(("join", ""))
                x = block(self.up, x + passed.pop(), width * multiple, f"up{level}_{index}")
            if level > 1:
                add(self.up, "double", f"double{level}", nn.Conv2d(x, x, 3, padding=1))
                size *= 2
        self.norm = nn.GroupNorm(32, x, eps=1e-6)
        self.head = nn.Conv2d(x, 1, 3, padding=1)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """The noise [B, 1, H, W]."""
        frequencies = 10_000.0 ** -torch.linspace(0, 1, self.width // 2)
        angles = times[:, None] * frequencies
        embedding = self.embed1(torch.cat([angles.sin(), angles.cos()], dim=1))
        embedding = self.embed2(F.silu(embedding))
        x = self.stem(x)
        passed = [x]
        for kind, name in self.down:
            x = self._step(x, kind, name, embedding, passed)
        x = self.middle2(self.middle_attention(self.middle1(x, embedding)), embedding)
        for kind, name in self.up:
            x = self._step(x, kind, name, embedding, passed)
        return self.head(F.silu(self.norm(x)))

    def _step(
        self, x: Tensor, kind: str, name: str, embedding: Tensor, passed: list[Tensor]
    ) -> Tensor:
        if kind == "keep":
            passed.append(x)
            return x
        if kind == "join":
            return torch.cat([x, passed.pop()], dim=1)
        module = self.get_submodule(name)
        if kind == "block":
            return module(x, embedding)
        if kind == "halve":
            x = F.pad(x, (0, 1, 0, 1))  # as "SAME" has it
        if kind == "double":
            x = F.interpolate(x, scale_factor=2)
        return module(x)


NETWORKS = {
    "lenet5": LeNet5,
    "resnet20": partial(ResNet, (3, 3, 3), 16, "identity-pad"),
    "resnet18": partial(ResNet, (2, 2, 2, 2), 64, "projection"),
    "vit": partial(ViT, depth=7, width=384, mlp_width=384, heads=12, patch=4),
    "unet": partial(UNet, classes=4, width=16),
    "ddpm": partial(DiffusionUNet, width=32, multiples=(1, 2, 2)),
    **INVERTED,
}
"""The twin of each case of ``benchmarks.cases.CASES``."""
