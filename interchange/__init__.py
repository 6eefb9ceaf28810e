"""Weights from and to other libraries: one file an architecture says how its parts are called."""

DIALECTS = ("torchvision", "timm", "efficientnet_pytorch")
"""Libraries by whose names files may go: functions of the files in this room."""
