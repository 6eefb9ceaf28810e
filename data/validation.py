"""A split for validation, held out of the training images of a set that has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from opsin.data.examples import DataError, Examples, Source
from opsin.data.selection import select
from opsin.data.sources import open_source
from opsin.ranges import Part, Seed


def with_validation(
    split: str,
    *,
    source: str | Source = "digits",
    share: Part = 0.1,
    seed: Seed = 0,
    as_stored: bool = False,
) -> Examples:
    """A set with a split "val": a share of its training images, which "train" then lacks.

    Other splits are those of the set. Which images are held out depends on ``seed`` and on their
    number, and not on the seed of a run. They are cut as those of other splits are, where these are
    cut unlike those of training, as by ``data.squares.squared``.

    Args:
        split: "train", "val", or another of the source.
        source: what it is held out of, as for ``open_source``.
        share: of the training images, in (0, 1).
        seed: which of them, at least 0.
        as_stored: leave images in their own sizes, as for ``open_source``.

    Raises:
        DataError: if the share leaves one side empty, or the source cannot be opened.
    """
    if split not in ("train", "val"):
        return open_source(source, split, as_stored=as_stored)
    examples = open_source(source, "train", as_stored=as_stored)
    if split == "val":
        records = getattr(examples.records, "held_out", examples.records)
        examples = replace(examples, records=records)
    count = len(examples.records)
    held = round(count * share)
    if not 0 < held < count:
        raise DataError(
            f"share={share} of {count} training images leaves one side empty: choose another"
        )
    order = np.random.default_rng(seed).permutation(count)
    return select(examples, np.sort(order[:held] if split == "val" else order[held:]))
