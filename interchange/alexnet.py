"""Names of AlexNet's arrays in torchvision."""

from __future__ import annotations

from opsin.interchange.layouts import Key, Rules
from opsin.models.classification.alexnet import AlexNet


def torchvision(model: AlexNet) -> Rules:
    """Of ``alexnet``, whose layers are those of ``AlexNetOneWeirdTrick``."""
    del model
    convolutions = dict(zip(range(1, 6), (0, 3, 6, 8, 10), strict=True))  # ReLUs, poolings between
    rules: Rules = {f"backbone/conv{i}": f"features.{place}" for i, place in convolutions.items()}
    return rules | {
        "fc/fc6": Key("classifier.1", flat=True),
        "fc/fc7": Key("classifier.4", flat=True),
        "head": "classifier.6",
    }
