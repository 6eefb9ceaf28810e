"""Names of the fully convolutional network's arrays in torchvision."""

from __future__ import annotations

from opsin.interchange import resnet
from opsin.interchange.deeplab import fcn_head
from opsin.interchange.layouts import Rules
from opsin.models.segmentation.fcn import FCN


def torchvision(model: FCN) -> Rules:
    """Of ``fcn_resnet50`` and ``…101``, with their auxiliary head."""
    del model
    head = fcn_head("head", "classifier") | fcn_head("auxiliary_head", "aux_classifier")
    return head | resnet.backbone("backbone/", "backbone.")
