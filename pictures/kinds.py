"""What a task shows or predicts, as arrays: pictures, predictions, charts of counts, curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import flax.struct
import numpy as np
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Preview:
    """Images for people to look at, with the classes to write above them.

    Attributes:
        images: [n, H, W, C] in [0, 1].
        labels: true classes [n], or None.
        predictions: predicted classes [n], or None.
    """

    images: Float[Array, "n height width channels"]
    labels: Int[Array, " n"] | None = None
    predictions: Int[Array, " n"] | None = None


@flax.struct.dataclass
class MaskPreview:
    """Images with the class of each pixel, true and predicted.

    Attributes:
        images: [n, H, W, C] in [0, 1].
        masks: true classes [n, H, W]; ``data.masks.IGNORE`` where there is none.
        predictions: predicted classes [n, H, W].
    """

    images: Float[Array, "n height width channels"]
    masks: Int[Array, "n height width"]
    predictions: Int[Array, "n height width"]


@flax.struct.dataclass
class Panels:
    """Images in rows that belong together, such as originals and reconstructions.

    Attributes:
        images: [rows, columns, H, W, C] in [0, 1].
        rows: what each row shows; empty where there is nothing to say.
        columns: what each column shows, or empty.
    """

    images: Float[Array, "rows columns height width channels"]
    rows: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    columns: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())


Picture = Preview | MaskPreview | Panels


@flax.struct.dataclass
class Labels:
    """A prediction of the class of each image: probabilities [images, classes]."""

    probabilities: Float[Array, "images classes"]


@flax.struct.dataclass
class Masks:
    """A prediction of the class of each pixel: probabilities [images, rows, columns, classes]."""

    probabilities: Float[Array, "images rows columns classes"]


Prediction = Labels | Masks


@dataclass(frozen=True)
class Confusion:
    """How often each class was taken for each other.

    Attributes:
        counts: [true classes, predicted classes].
    """

    counts: Int[np.ndarray, "classes classes"]


@dataclass(frozen=True)
class Usage:
    """How often each of several things was used.

    Attributes:
        counts: of each.
        what: is counted, such as ``"code"``.
    """

    counts: Int[np.ndarray, " things"]
    what: str


Chart = Confusion | Usage


class Curve(NamedTuple):
    """A panel of the training curve.

    Attributes:
        metrics: names without their split; those that a run logs share the panel.
        logarithmic: whether its scale is logarithmic where all values are above 0.
    """

    metrics: tuple[str, ...]
    logarithmic: bool = False
