"""Names of MobileNetV2's arrays in torchvision and in timm."""

from __future__ import annotations

from opsin.interchange import inverted
from opsin.interchange.layouts import Rules
from opsin.models.classification.mobilenet import MobileNetV2


def torchvision(model: MobileNetV2) -> Rules:
    """Of ``mobilenet_v2``."""
    blocks = [blocks for *_, blocks in model.stages]

    def inside(stage: int, block: int, name: str, kind: str) -> str:
        expands = model.stages[stage - 1][0] > 1
        layer = ("expand", "depthwise", "project").index(name) - (not expands)
        norm = kind == "norm"
        # The last layer has no activation, and so no list of its own.
        place = f"{layer + norm}" if name == "project" else f"{layer}.{int(norm)}"
        return f"features.{sum(blocks[: stage - 1]) + block}.conv.{place}"

    return inverted.torchvision_rules(sum(blocks) + 1, inside)


def timm(model: MobileNetV2) -> Rules:
    """Of ``mobilenetv2_100``."""
    return inverted.timm_rules([expansion for expansion, *_ in model.stages])
