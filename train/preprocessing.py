"""How images reach a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opsin.ranges import LARGEST

LARGEST_SIDE = 2**16
"""Pixels, or channels, of an image."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image in [0, 1] reaches a network: ``(image - mean) / std``, then onto ``range``.

    Attributes:
        mean: of each channel, or one for all.
        std: of each channel, or one for all.
        image: height, width and channels.
        range: what 0 and 1 become in the last step: (-1, 1) where a task maps its images there.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image: tuple[int, ...]
    range: tuple[float, float] = (0.0, 1.0)

    def scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the std that do the same in one step."""
        low, high = self.range
        std = np.divide(self.std, high - low)
        return tuple(np.subtract(self.mean, low * std).tolist()), tuple(std.tolist())


def preprocessing_of(said: Mapping[str, Any]) -> Preprocessing:
    """What the header of a file says, which somebody may have written.

    Args:
        said: its ``mean``, ``std``, ``image`` and ``range``, as JSON.

    Raises:
        ValueError: one is missing, or cannot be: says which, of the file.
    """
    for name, count in {"mean": None, "std": None, "image": 3, "range": 2}.items():
        if not _are_numbers(said.get(name), count):
            raise ValueError(f"does not say the {name} of its images")
    image, std, (low, high) = said["image"], said["std"], said["range"]
    sized = all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in image)
    if not (sized and min(std) > 0 and low < high):
        raise ValueError(f"says it saw images of {image}, std {std} and range {[low, high]}")
    return Preprocessing(*(tuple(said[x]) for x in ("mean", "std", "image", "range")))


def _are_numbers(values: Any, count: int | None) -> bool:
    listed = isinstance(values, list | tuple) and 0 < len(values) == (count or len(values))
    return listed and all(type(x) in (int, float) and abs(x) <= LARGEST for x in values)
