"""Names of EfficientNet's arrays in torchvision, in timm and in efficientnet_pytorch."""

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


def efficientnet_pytorch(model: EfficientNet) -> Rules:
    """Of the ports of TensorFlow's code, efficientnet_pytorch and efficientnet_lite_pytorch.

    They pad as TensorFlow: a network with another padding is none of theirs, and has no names.
    Blocks are counted through from 0. One that expands nothing lacks the first convolution and its
    norm, ``_bn0``; the others keep their numbers.
    """
    if model.padding != "same":
        return {}
    blocks = [blocks for *_, blocks in model.scaled_stages()]
    norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}

    def front(stage: str, block: str) -> str:
        return f"_blocks.{sum(blocks[: int(stage) - 1]) + int(block) - 1}"

    def layer(found: re.Match[str]) -> str:
        stage, block, name, kind = found.groups()
        return f"{front(stage, block)}.{norms[name] if kind == 'norm' else f'_{name}_conv'}"

    return {
        "backbone/stem_conv": "_conv_stem",
        "backbone/stem_norm": "_bn0",
        "backbone/top_conv": "_conv_head",
        "backbone/top_norm": "_bn1",
        "head": "_fc",
        BLOCK + inverted.LAYER: layer,
        BLOCK + "squeeze_excite/(reduce|expand)": lambda found: (
            f"{front(found[1], found[2])}._se_{found[3]}"
        ),
    }


def scale(model: EfficientNet) -> Scale:
    """ImageNet's, but for the published weights of Lite."""
    return IMAGENET if model.squeeze else HALF
