"""Names of ConvNeXt's arrays in torchvision and in timm."""

from __future__ import annotations

import re

from opsin.interchange.layouts import BLOCK, Key, Rules
from opsin.models.classification.convnext import ConvNeXt


def torchvision(model: ConvNeXt) -> Rules:
    """Of ``convnext_tiny`` to ``convnext_large``."""
    del model
    places = {"depthwise_conv": 0, "norm": 2, "mlp1": 3, "mlp2": 5}

    def block(found: re.Match[str]) -> str:
        return f"features.{2 * int(found[1]) - 1}.{int(found[2]) - 1}"

    return {
        "backbone/stem_conv": "features.0.0",
        "backbone/stem_norm": "features.0.1",
        r"backbone/stage(\d+)_norm": lambda found: f"features.{2 * int(found[1]) - 2}.0",
        r"backbone/stage(\d+)_conv": lambda found: f"features.{2 * int(found[1]) - 2}.1",
        BLOCK + "(depthwise_conv|norm|mlp1|mlp2)": lambda found: (
            f"{block(found)}.block.{places[found[3]]}"
        ),
        BLOCK + "layer_scale": lambda found: Key(f"{block(found)}.layer_scale", expanded=(1, 2)),
        "norm": "classifier.0",
        "head": "classifier.2",
    }


def timm(model: ConvNeXt) -> Rules:
    """Of ``convnext_tiny`` to ``convnext_large``."""
    del model
    names = {"depthwise_conv": "conv_dw", "norm": "norm", "mlp1": "mlp.fc1", "mlp2": "mlp.fc2"}

    def block(found: re.Match[str]) -> str:
        return f"stages.{int(found[1]) - 1}.blocks.{int(found[2]) - 1}"

    def smaller(found: re.Match[str]) -> str:
        return f"stages.{int(found[1]) - 1}.downsample.{('norm', 'conv').index(found[2])}"

    return {
        "backbone/stem_conv": "stem.0",
        "backbone/stem_norm": "stem.1",
        r"backbone/stage(\d+)_(norm|conv)": smaller,
        BLOCK + "(depthwise_conv|norm|mlp1|mlp2)": lambda found: (
            f"{block(found)}.{names[found[3]]}"
        ),
        BLOCK + "layer_scale": lambda found: f"{block(found)}.gamma",
        "norm": "head.norm",
        "head": "head.fc",
    }
