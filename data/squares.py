"""Photographs of any size as squares of one size, decoded and cut out on the host."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from opsin.data.examples import PIXEL_MAPS, DataError, Examples, Records, Source, read_several
from opsin.data.sources import open_source
from opsin.ranges import Count

Interpolation = Literal["bilinear", "bicubic"]


def squared(
    split: str,
    *,
    source: str | Source,
    size: Count,
    held_out: Count | None = None,
    interpolation: Interpolation = "bilinear",
) -> Examples:
    """The largest central square of each image, resized to ``size`` pixels a side.

    The shorter side is resized to ``size``, the other to the whole pixels below its share, and the
    centre is cropped, antialiased: to rounding what torchvision's ``Resize`` and ``CenterCrop``
    give. Images of "folder:PATH" or "masks:PATH" are taken as they are. Masks, and weights of their
    pixels, are cropped to the same square and sampled at the nearest pixel. The training split
    keeps these squares for random crops on the device. Other splits are cropped to the central
    ``held_out`` pixels, the usual way to test ("resize 256, crop 224").

    Args:
        split: of the source; training splits are called "train…".
        source: of images of 8 bits a channel, as for ``open_source``.
        size: of the squares.
        held_out: size of the squares of other splits; None crops them as those of training.
        interpolation: of images; published networks were trained with the one or the other.

    Raises:
        DataError: ``held_out`` is larger than ``size``, the interpolation is unknown, the source
            has resized its images before, or as ``open_source``.
    """
    evaluated = size if held_out is None else held_out
    if evaluated > size:
        raise DataError(f"size={size} and held_out={held_out}: take held_out <= size")
    cropped = size if split.startswith("train") else evaluated
    examples = open_source(source, split, as_stored=True)
    if examples.resized:
        raise DataError(
            "squared resizes images, and its source did so before, which would blur them: give it "
            "folder:PATH or tfds:NAME, or set size=None in the source"
        )
    if interpolation not in get_args(Interpolation):
        raise DataError(f"interpolation={interpolation!r}: take 'bilinear' or 'bicubic'")
    records = _Squares(examples.records, size, cropped, evaluated, interpolation)
    return replace(examples, records=records, resized=True)


def square(
    image: UInt8[np.ndarray, "height width channels"],
    size: Count,
    cropped: Count,
    *,
    interpolation: str = "bilinear",
) -> UInt8[np.ndarray, "cropped cropped channels"]:
    """The central ``cropped`` pixels of an image whose shorter side is brought to ``size``."""
    height, width, channels = image.shape
    box = _central(height, width, size, cropped)
    pixels = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = pixels.resize((cropped, cropped), Image.Resampling[interpolation.upper()], box)
    return np.asarray(resized).reshape(cropped, cropped, channels)


def nearest_square(
    values: Shaped[np.ndarray, "height width"], size: Count, cropped: Count
) -> Shaped[np.ndarray, "cropped cropped"]:
    """The pixels of a mask that lie nearest to those of ``square``, of the image below it."""
    height, width = values.shape
    left, top, right, bottom = _central(height, width, size, cropped)
    centres = (np.arange(cropped) + 0.5) / cropped
    rows, columns = (
        (start + centres * (stop - start)).astype(int)
        for start, stop in ((top, bottom), (left, right))
    )
    return values[rows[:, None], columns]


def _central(height: int, width: int, size: int, cropped: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what ends up in the central ``cropped`` pixels.

    The whole image is thought of as resized, to whole pixels, and cropped at whole pixels.
    """
    edges = []
    for side in (width, height):
        resized = size * side // min(height, width)
        start = round((resized - cropped) / 2)
        edges.append((start * side / resized, (start + cropped) * side / resized))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


@dataclass(frozen=True)
class _Squares:
    records: Records
    size: int
    cropped: int
    evaluated: int
    interpolation: Interpolation

    @property
    def held_out(self) -> Records:
        return replace(self, cropped=self.evaluated)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        return [self._square(example) for example in read_several(self.records, indices)]

    def _square(self, example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        maps = {
            name: nearest_square(example[name], self.size, self.cropped)
            for name in PIXEL_MAPS
            if name in example
        }
        image = square(example["image"], self.size, self.cropped, interpolation=self.interpolation)
        return {**example, **maps, "image": image}
