"""From grey levels to what a likelihood describes: binary pixels, or numbers in [0, 1].

Dynamic binarisation and dequantisation draw anew at each step: they are augmentations, see
``data.augment``. Fixed binarisation is one draw for good: it is a source.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Key

from opsin.data.augment import Batch, map_images
from opsin.data.examples import DataError, Examples, Records, Source, labels, read_several
from opsin.data.sources import open_source
from opsin.ranges import Seed


def random_binarize(key: Key[Array, ""], batch: Batch) -> Batch:
    """Makes each pixel 1 with the probability of its intensity, else 0, anew at each step.

    Salakhutdinov & Murray, 2008, On the Quantitative Analysis of Deep Belief Networks; so do Burda
    et al., 2016, arXiv:1509.00519. Pixels of 0 and 1 stay as they are.

    Raises:
        ValueError: the images are not float [batch, height, width, channels].
    """

    def draw(key: Key[Array, ""], image: Array) -> Array:
        return jax.random.bernoulli(key, image).astype(image.dtype)

    return map_images(draw, key, batch)


def dequantize(key: Key[Array, ""], batch: Batch) -> Batch:
    """Spreads bytes evenly over the line: (255 x + u) / 256 in [0, 1], u uniform in [0, 1).

    A density of the result, averaged over u, bounds the probability of the bytes: Theis et al.,
    2016, arXiv:1511.01844, section 3.1.

    Raises:
        ValueError: the images are not float [batch, height, width, channels].
    """

    def spread(key: Key[Array, ""], image: Array) -> Array:
        return (255 * image + jax.random.uniform(key, image.shape, image.dtype)) / 256

    return map_images(spread, key, batch)


def binarized(
    split: str,
    *,
    source: str | Source,
    seed: Seed = 0,
    splits: tuple[str, ...] = ("train", "test"),
) -> Examples:
    """A set whose images are 0 or 255 by one draw: 255 with a probability of the intensity.

    The draw of an example is that of the seed, of the split as it is written and of the index in
    it, whatever is read before or how often. A slice, such as "train[:80%]", is a split of its own:
    its draws are not those of "train", nor those of the rest.

    Args:
        split: of the source.
        source: of images of bytes, as for ``open_source``.
        seed: of the draw, at least 0.
        splits: what is binarised, by the name of the split without the slice; other splits pass as
            they are, such as a training split for ``random_binarize``.

    Raises:
        DataError: if the source cannot be opened, ``splits`` is no tuple or names one part of
            "train+test" but not the other, or, on reading, images are not uint8.
    """
    if isinstance(splits, str):
        raise DataError(f'splits is a tuple of names, such as ("{splits}",), not "{splits}"')
    examples = open_source(source, split)
    named = {part.partition("[")[0].strip() in splits for part in split.split("+")}
    if named == {False}:
        return examples
    if named != {True}:
        raise DataError(f'"{split}" has parts that are binarised and others that are not; read one')
    records = _Binarized(examples.records, (seed, zlib.crc32(split.encode())))
    # Labels do not need the images.
    return replace(examples, records=records, read_labels=partial(labels, examples))


@dataclass(frozen=True)
class _Binarized:
    records: Records
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        every = range(len(self))
        places = [every[index] for index in indices]  # a negative index names an example too
        return [
            row | {"image": self._draw(row["image"], place)}
            for row, place in zip(read_several(self.records, places), places, strict=True)
        ]

    def _draw(self, image: np.ndarray, index: int) -> np.ndarray:
        if image.dtype != np.uint8:
            raise DataError(f"images to binarise are uint8, not {image.dtype}; convert them")
        levels = np.random.default_rng([*self.seeds, index]).integers(0, 255, image.shape, np.uint8)
        return np.where(levels < image, np.uint8(255), np.uint8(0))  # k of 255 levels are below k
