"""Names of EfficientNet's arrays in torchvision and in timm."""

from __future__ import annotations

import re

from opsin.interchange import inverted
from opsin.interchange.layouts import BLOCK, Rules
from opsin.interchange.scales import HALF, IMAGENET, Scale
from opsin.models.classification.efficientnet import EfficientNet


def torchvision(model: EfficientNet) -> Rules:
    """Of ``efficientnet_b0`` to ``efficientnet_b7``."""

    def place(stage: int, name: str) -> int:
        names = ["expand", "depthwise", *(["gate"] if model.squeeze else []), "project"]
        return names.index(name) - (model.stages[stage - 1][0] == 1)

    def inside(stage: int, block: int, name: str, kind: str) -> str:
        return f"features.{stage}.{block - 1}.block.{place(stage, name)}.{int(kind == 'norm')}"

    def gate(found: re.Match[str]) -> str:
        stage, block, name = found.groups()
        layer = 1 + ("reduce", "expand").index(name)
        front = f"features.{stage}.{int(block) - 1}.block.{place(int(stage), 'gate')}"
        return f"{front}.fc{layer}"

    rules = inverted.torchvision_rules(len(model.stages) + 1, inside)
    return rules | {BLOCK + "squeeze_excite/(reduce|expand)": gate}


def timm(model: EfficientNet) -> Rules:
    """Of ``efficientnet_b0`` to ``b4``, and ``tf_efficientnet_lite0`` to ``2``.

    Its ``tf_efficientnet_b0`` has the same names and another padding: another network.
    """
    return inverted.timm_rules([expansion for expansion, *_ in model.stages])


def scale(model: EfficientNet) -> Scale:
    """ImageNet's, but for the published weights of Lite."""
    return IMAGENET if model.squeeze else HALF
