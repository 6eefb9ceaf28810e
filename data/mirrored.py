"""Training images and their mirror images, by turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from opsin.data.examples import PIXEL_MAPS, Examples, Records, Source, read_several
from opsin.data.sources import open_source
from opsin.ranges import Seed


def with_mirror_images(
    split: str, *, source: str | Source = "digits", seed: Seed = 0, as_stored: bool = False
) -> Examples:
    """A set whose training images come as they are in one pass and mirrored in the next.

    The alternating flip of Jordan, 2024, arXiv:2404.00498, section 3.6: half of the images, drawn
    once, are mirrored in the first pass, the others in the second, and so on. Two passes hold every
    image and every mirror image, of which flips at random leave out a quarter. An epoch of this set
    is two passes; left and right are exchanged in masks too. Splits that are not called "train…"
    are those of the source. A selection of its images (``data.select``) mixes the passes.

    Args:
        split: of the source.
        source: as for ``open_source``.
        seed: which images are mirrored first, at least 0.
        as_stored: leave images in their own sizes, as for ``open_source``.

    Raises:
        DataError: as ``open_source``.
    """
    examples = open_source(source, split, as_stored=as_stored)
    if not split.startswith("train"):
        return examples
    first = np.random.default_rng(seed).random(len(examples.records)) < 0.5
    read = examples.read_labels
    return replace(
        examples,
        records=_Mirrored(examples.records, first),
        read_labels=None if read is None else lambda: np.tile(read(), 2),
    )


@dataclass(frozen=True)
class _Mirrored:
    records: Records
    first: Bool[np.ndarray, " n"]
    passes: int = 2

    def __len__(self) -> int:
        return self.passes * len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        turns, places = np.divmod(indices, len(self.records))
        mirrored = self.first[places] == (turns == 0)
        read = read_several(self.records, places.tolist())
        return [_mirror(x) if turned else x for x, turned in zip(read, mirrored, strict=True)]


def _mirror(example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    moved = {name for name in ("image", *PIXEL_MAPS) if name in example}
    return {**example, **{name: example[name][:, ::-1] for name in moved}}
