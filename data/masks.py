"""Masks for segmentation: what their labels mean, and checks of every example that is read.

An example has ``image``, uint8 [height, width, channels], ``mask``, uint8 [height, width], one
class a pixel, and possibly ``weight``, float32 [height, width].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opsin.data.examples import DataError, Records
from opsin.ranges import Count

IGNORE = 255
"""The label of pixels that do not count: void in the data, or outside a moved image."""


@dataclass(frozen=True)
class Labels:
    """What the labels of a set mean.

    Attributes:
        class_names: the name of each label, in order.
        void: the label that the set gives to pixels that do not count, if it has one.
    """

    class_names: tuple[str, ...]
    void: int | None = None


TFDS_LABELS = {
    # Brostow et al., 2009, with the classes of Badrinarayanan et al., 2015, arXiv:1511.00561.
    "camvid": Labels(
        (
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "sign symbol",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ),
        void=11,
    ),
    "isbi2012": Labels(("membrane", "cell")),  # Arganda-Carreras et al., 2015
}
"""Labels of sets that TFDS reads but does not explain, by name."""


@dataclass(frozen=True)
class CheckedMasks:
    """Records whose masks are checked when they are read.

    Reading raises DataError where a mask is not of the size of its image, has a label that is
    neither a class nor ``IGNORE``, or has no pixel that counts.

    Attributes:
        records: with ``image`` and ``mask``.
        name: names the mask of an example in an error, by its index.
        num_classes: labels are 0 to num_classes - 1; None leaves them unchecked.
    """

    records: Records
    name: Callable[[int], str]
    num_classes: Count | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self.records[index]
        mask, size = example["mask"], example["image"].shape[:2]
        if mask.shape != size:
            raise DataError(
                f"{self.name(index)} has the shape {mask.shape} and its image {size} pixels; "
                "give both the same height and width"
            )
        counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
        if counts[IGNORE] == mask.size:
            raise DataError(
                f"{self.name(index)} has no pixel that counts: all are {IGNORE}, which means "
                "ignored; label some, or remove the example"
            )
        if self.num_classes is not None and counts[self.num_classes : IGNORE].any():
            wrong = self.num_classes + counts[self.num_classes : IGNORE].argmax()
            raise DataError(
                f"{self.name(index)} has the label {wrong}, and the classes are 0 to "
                f"{self.num_classes - 1} ({IGNORE} means ignored); correct it, or name all classes"
            )
        return example
