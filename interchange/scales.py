"""Mean and std of the channels, by which published networks scale their images in [0, 1]."""

from __future__ import annotations

Scale = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Scale = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of most of them."""
HALF: Scale = (0.5,) * 3, (0.5,) * 3
"""Onto -1 … 1."""
