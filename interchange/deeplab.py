"""Names of DeepLabv3's arrays in torchvision."""

from __future__ import annotations

import re

from opsin.interchange import resnet
from opsin.interchange.layouts import Rules
from opsin.models.segmentation.deeplab import DeepLabv3


def torchvision(model: DeepLabv3) -> Rules:
    """Of ``deeplabv3_resnet50`` and ``…101``, with their auxiliary head."""
    del model

    def pyramid(found: re.Match[str]) -> str:
        branch, kind = found.groups()
        second = ("conv", "norm").index(kind)
        if branch == "project":
            return f"classifier.0.project.{second}"
        if branch == "image":  # behind a pooling
            return f"classifier.0.convs.4.{1 + second}"
        index = 0 if branch == "point" else int(branch.removeprefix("atrous"))
        return f"classifier.0.convs.{index}.{second}"

    rules: Rules = {
        r"aspp/(point|atrous\d|image|project)_(conv|norm)": pyramid,
        "conv": "classifier.1",
        "norm": "classifier.2",
        "score": "classifier.4",
    }
    head = fcn_head("auxiliary_head", "aux_classifier")
    return rules | head | resnet.backbone("backbone/", "backbone.")


def fcn_head(ours: str, theirs: str) -> Rules:
    """Of ``FCNHead``."""
    places = {"conv": 0, "norm": 1, "score": 4}
    return {f"{ours}/{name}": f"{theirs}.{index}" for name, index in places.items()}
