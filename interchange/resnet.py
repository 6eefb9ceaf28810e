"""Names of ResNet's arrays; torchvision and timm agree, and SE-ResNet's are timm's."""

from __future__ import annotations

import re

from opsin.interchange.layouts import BLOCK, Rules
from opsin.models.classification.resnet import ResNet


def torchvision(model: ResNet) -> Rules:
    """Of ``resnet18`` to ``resnet152``, with their bottlenecks and projections."""
    del model
    return backbone("backbone/", "") | {"head": "fc"}


def timm(model: ResNet) -> Rules:
    """Of ``resnet18`` to ``resnet152`` and ``seresnet50``; not of others, with another stem."""

    def gate(found: re.Match[str]) -> str:
        stage, number, what = found.groups()
        layer = 1 + ("reduce", "expand").index(what)
        return f"layer{stage}.{int(number) - 1}.se.fc{layer}"

    return torchvision(model) | {BLOCK + "se/(reduce|expand)": gate}


def backbone(ours: str, theirs: str) -> Rules:
    """Of ``ResNetBackbone``, each name with something in front."""

    def block(found: re.Match[str]) -> str:
        stage, number, what, index = found.groups()
        kind = {"conv": "conv", "norm": "bn"}[what]
        return f"{theirs}layer{stage}.{int(number) - 1}.{kind}{index}"

    def shortcut(found: re.Match[str]) -> str:
        stage, number, what = found.groups()
        return f"{theirs}layer{stage}.{int(number) - 1}.downsample.{('conv', 'norm').index(what)}"

    inside = rf"{ours}stage(\d+)_block(\d+)/"
    return {
        f"{ours}stem_conv": f"{theirs}conv1",
        f"{ours}stem_norm": f"{theirs}bn1",
        rf"{inside}(conv|norm)(\d)": block,
        rf"{inside}shortcut_(conv|norm)": shortcut,
    }
