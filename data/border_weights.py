"""The weight map of U-Net, which makes thin gaps between cells count."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from opsin.data.examples import Arrays, DataError, Examples, Source, materialize
from opsin.data.masks import IGNORE
from opsin.data.sources import open_source
from opsin.ranges import CountOrZero, NonNegative, Positive


def border_weights(
    mask: Integer[np.ndarray, "height width"],
    *,
    foreground: CountOrZero = 1,
    w0: NonNegative = 10.0,
    sigma: Positive = 5.0,
    class_weights: Sequence[NonNegative] | None = None,
) -> Float[np.ndarray, "height width"]:
    """Weights w_c + w0 exp(−(d1 + d2)² / (2 σ²)) by which the losses of the pixels are multiplied.

    d1 and d2 are the distances of a pixel, in the gap or in a cell, to the borders of the nearest
    and of the second nearest cell. A cell is a 4-connected component of ``foreground``; its border
    are the pixels that have a side in common with what is not the cell, not the edge of the image.
    Ronneberger et al., 2015, arXiv:1505.04597, eq. 2. With fewer than two cells, w_c is left.

    Args:
        mask: labels from 0 to 255; ignored pixels (``data.masks.IGNORE``) get weight 0.
        foreground: the label of the cells.
        w0: weight in a gap of no width, at least 0.
        sigma: in pixels, above 0. Borders more than 5 σ away are left out; they would add less than
            4e-6 w0.
        class_weights: w_c of each label. If None, in inverse proportion to the pixels that have the
            label, so that all labels of the mask weigh the same and the mean of w_c is 1.

    Returns:
        float32 weights ≥ 0.

    Raises:
        DataError: labels outside 0 to 255, or a label without a class weight.
    """
    if mask.min() < 0 or mask.max() > 255:
        raise DataError(f"labels from {mask.min()} to {mask.max()}: they must lie in 0 to 255")
    weights = _class_weights(mask, class_weights)
    # Imported where it is used: other data needs no SciPy.
    from scipy import ndimage

    cells = np.zeros(mask.shape, np.int32)
    ndimage.label(mask == foreground, output=cells)
    reach = int(np.ceil(5 * sigma))
    nearest = np.full(mask.shape, np.inf, np.float32)
    second = nearest.copy()
    for number, box in enumerate(ndimage.find_objects(cells), start=1):
        around = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
        cell = cells[around] == number
        border = cell & ~np.asarray(ndimage.binary_erosion(cell, border_value=1), bool)
        distance = np.asarray(ndimage.distance_transform_edt(~border), np.float32)
        second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
        nearest[around] = np.minimum(nearest[around], distance)
    gap = np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(mask == IGNORE, 0.0, weights + w0 * gap).astype(np.float32)


def _class_weights(
    mask: Integer[np.ndarray, "height width"], given: Sequence[float] | None
) -> Float[np.ndarray, "height width"]:
    """w_c of each pixel; 0 where it is ignored."""
    table = np.zeros(256, np.float32)
    found, pixels = np.unique(mask[mask != IGNORE], return_counts=True)
    if given is None:
        table[found] = pixels.sum() / (len(found) * pixels)
    elif found.size and found[-1] >= len(given):
        raise DataError(f"label {found[-1]} has no class weight; there are {len(given)}")
    else:
        table[: len(given)] = given
    return table[mask]


def border_weighted(split: str, *, source: str | Source, **options: Any) -> Examples:
    """A set of masks with the ``border_weights`` of each as ``weight`` [height, width].

    Args:
        split: of the source.
        source: what to weigh, as for ``open_source``.
        **options: of ``border_weights``.

    Raises:
        DataError: as ``open_source`` and ``border_weights``, or if the source has no masks.
    """
    examples = open_source(source, split)
    arrays = materialize(examples)
    if "mask" not in arrays:
        raise DataError(f'{source} has no "mask" to weigh; choose a set with masks')
    weight = np.stack([border_weights(mask, **options) for mask in arrays["mask"]])
    return replace(examples, records=Arrays({**arrays, "weight": weight}))
