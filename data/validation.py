"""A split for validation, held out of the training images of a set that has none."""

from __future__ import annotations

import numpy as np

from opsin.data.examples import DataError, Examples, Source
from opsin.data.selection import select
from opsin.data.sources import open_source


def with_validation(
    split: str, *, source: str | Source = "digits", share: float = 0.1, seed: int = 0
) -> Examples:
    """A set with a split "val": a share of its training images, which "train" then lacks.

    Other splits are those of the set. Which images are held out depends on ``seed`` and on their
    number, and not on the seed of a run.

    Args:
        split: "train", "val", or another of the source.
        source: what it is held out of, as for ``open_source``.
        share: of the training images, in (0, 1).
        seed: which of them, at least 0.

    Raises:
        DataError: if the share is no share or leaves one side empty, or the source cannot be
            opened.
    """
    if split not in ("train", "val"):
        return open_source(source, split)
    examples = open_source(source, "train")
    count = len(examples.records)
    held = round(count * share) if 0 < share < 1 else 0
    if not 0 < held < count:
        raise DataError(
            f"share={share} of {count} training images leaves one side empty: choose another"
        )
    order = np.random.default_rng(seed).permutation(count)
    return select(examples, np.sort(order[:held] if split == "val" else order[held:]))
