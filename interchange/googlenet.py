"""Names of GoogLeNet's arrays in torchvision."""

from __future__ import annotations

import re

from opsin.interchange.layouts import Key, Rules
from opsin.interchange.scales import HALF, Scale
from opsin.models.classification.googlenet import GoogLeNet


def torchvision(model: GoogLeNet) -> Rules:
    """Of ``googlenet``, whose layers are those of ``GoogLeNetBatchNorm``."""

    def unit(found: re.Match[str]) -> str:
        module, branch, reduction, kind = found.groups()
        place = {"1": "", "4": ".1"}.get(branch, ".0" if reduction else ".1")
        return f"{module}.branch{branch}{place}.{_layer(kind)}"

    rules: Rules = {
        r"backbone/(conv\d)/(conv|norm)": lambda found: f"{found[1]}.{_layer(found[2])}",
        r"backbone/(inception\d\w)/branch(\d)(_reduce)?/(conv|norm)": unit,
        "head": "fc",
    }
    for index, name in enumerate(model.auxiliary, start=1):
        ours, theirs = f"auxiliary{name}", f"aux{index}"
        rules |= {
            f"{ours}/conv/conv": f"{theirs}.conv.conv",
            f"{ours}/conv/norm": f"{theirs}.conv.bn",
            f"{ours}/fc1": Key(f"{theirs}.fc1", flat=True),
            f"{ours}/fc2": f"{theirs}.fc2",
        }
    return rules


def scale(model: GoogLeNet) -> Scale:
    """Of the published weights, which torchvision brings ImageNet's scale to itself."""
    del model
    return HALF


def _layer(kind: str) -> str:
    return {"conv": "conv", "norm": "bn"}[kind]
