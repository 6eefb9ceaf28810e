"""Images of any size through a function of one size: the overlap-tile strategy.

Ronneberger et al., 2015, arXiv:1505.04597, Fig. 2: tiles overlap by what their borders spoil, and
what lies beyond the image is the image mirrored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped


def over_tiles(
    function: Callable[[np.ndarray], np.ndarray],
    image: Shaped[np.ndarray, "height width channels"],
    *,
    tile: tuple[int, int],
    result: tuple[int, int] | None = None,
    overlap: int = 0,
    batch: int = 1,
) -> Shaped[np.ndarray, "height width features"]:
    """Applies a function of tiles to an image and puts its results together.

    Args:
        function: from [batch, *tile, channels] to [batch, *result, features]; it is always called
            with the same shape.
        image: of any size; it is mirrored where a tile reaches beyond.
        tile: height and width of what the function takes.
        result: height and width of what it gives, for the centre of a tile; None if for all of it.
        overlap: pixels at each side of a result that are left to the neighbouring tile; none along
            an axis that one tile covers.
        batch: tiles in a call.

    Raises:
        ValueError: the image is empty, or the overlap leaves nothing of a tile.
    """
    height, width = image.shape[:2]
    if 0 in image.shape:
        raise ValueError(f"an image of {image.shape} has no pixels")
    size = result or tile
    lost = [(whole - kept) // 2 for whole, kept in zip(tile, size, strict=True)]
    margins = [0 if n <= kept else overlap for n, kept in zip((height, width), size, strict=True)]
    steps = [kept - 2 * margin for kept, margin in zip(size, margins, strict=True)]
    if min(steps) < 1:
        raise ValueError(f"an overlap of {overlap} leaves nothing of results of {size}")
    counts = [-(-n // step) for n, step in zip((height, width), steps, strict=True)]
    sides = [
        (edge + margin, count * step - n + edge + margin)
        for n, edge, margin, count, step in zip(
            (height, width), lost, margins, counts, steps, strict=True
        )
    ]
    padded = np.pad(image, (*sides, (0, 0)), "reflect")
    corners = [(i * steps[0], j * steps[1]) for i in range(counts[0]) for j in range(counts[1])]
    rows: list[np.ndarray] = []
    for start in range(0, len(corners), batch):
        chunk = corners[start : start + batch]
        chunk += chunk[-1:] * (batch - len(chunk))
        tiles = np.stack([padded[y : y + tile[0], x : x + tile[1]] for y, x in chunk])
        rows.extend(np.asarray(function(tiles)))
    inner = [slice(margin, margin + step) for margin, step in zip(margins, steps, strict=True)]
    results = np.stack([row[inner[0], inner[1]] for row in rows[: len(corners)]])
    grid = results.reshape(*counts, *steps, -1).swapaxes(1, 2)
    return grid.reshape(counts[0] * steps[0], counts[1] * steps[1], -1)[:height, :width]
