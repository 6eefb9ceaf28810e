"""What names of networks of inverted residual blocks have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from opsin.interchange.layouts import BLOCK, Rules

LAYER = r"(expand|depthwise|project)_(conv|norm)"


def timm_rules(expansions: Sequence[int]) -> Rules:
    """timm's names of MobileNetV2 and EfficientNet.

    Args:
        expansions: of the stages; blocks that expand nothing have names of their own.
    """
    alone = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
    expanding = {
        "expand": ("conv_pw", "bn1"),
        "depthwise": ("conv_dw", "bn2"),
        "project": ("conv_pwl", "bn3"),
    }

    def layer(found: re.Match[str]) -> str:
        stage, block, name, kind = found.groups()
        names = alone if expansions[int(stage) - 1] == 1 else expanding
        return f"{_block(stage, block)}.{names[name][kind == 'norm']}"

    def gate(found: re.Match[str]) -> str:
        stage, block, name = found.groups()
        return f"{_block(stage, block)}.se.conv_{name}"

    return {
        "backbone/stem_conv": "conv_stem",
        "backbone/stem_norm": "bn1",
        "backbone/top_conv": "conv_head",
        "backbone/top_norm": "bn2",
        "head": "classifier",
        BLOCK + LAYER: layer,
        BLOCK + "squeeze_excite/(reduce|expand)": gate,
    }


def torchvision_rules(last: int, inside: Callable[..., str]) -> Rules:
    """torchvision's names, but for those in a block.

    Args:
        last: number of the last convolution among the features.
        inside: the name of a layer for (stage, block, layer, "conv" or "norm"), counted from 1.
    """

    def layer(found: re.Match[str]) -> str:
        stage, block, name, kind = found.groups()
        return inside(int(stage), int(block), name, kind)

    return {
        "backbone/stem_conv": "features.0.0",
        "backbone/stem_norm": "features.0.1",
        "backbone/top_conv": f"features.{last}.0",
        "backbone/top_norm": f"features.{last}.1",
        "head": "classifier.1",
        BLOCK + LAYER: layer,
    }


def _block(stage: str, block: str) -> str:
    return f"blocks.{int(stage) - 1}.{int(block) - 1}"
