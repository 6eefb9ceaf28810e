"""How images reach a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
