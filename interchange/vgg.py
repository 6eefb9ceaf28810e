"""Names of VGG's arrays in torchvision and in timm."""

from __future__ import annotations

from opsin.interchange.layouts import Key, Rules
from opsin.models.classification.vgg import VGG


def torchvision(model: VGG) -> Rules:
    """Of ``vgg11`` to ``vgg19_bn``."""
    ends: Rules = {
        "fc/fc6": Key("classifier.0", flat=True),
        "fc/fc7": Key("classifier.3", flat=True),
        "head": "classifier.6",
    }
    return _features(model) | ends


def timm(model: VGG) -> Rules:
    """Of ``vgg11`` to ``vgg19_bn``, whose hidden layers are convolutions, as ours."""
    ends: Rules = {"fc/fc6": "pre_logits.fc1", "fc/fc7": "pre_logits.fc2", "head": "head.fc"}
    return _features(model) | ends


def _features(model: VGG) -> Rules:
    """A list of layers there: a convolution, a norm if there are any, a ReLU; and a pooling."""
    rules: Rules = {}
    index = 0
    for stage, layers in enumerate(model.stage_sizes, start=1):
        for layer in range(1, layers + 1):
            rules[f"backbone/conv{stage}_{layer}"] = f"features.{index}"
            rules[f"backbone/norm{stage}_{layer}"] = f"features.{index + 1}"
            index += 2 if model.norm is None else 3
        index += 1
    return rules
