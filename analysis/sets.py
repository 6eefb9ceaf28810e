"""The images that a measurement is made of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data.examples import Examples, materialize
from data.selection import select
from train.tasks.task import SettingError


def first_examples(examples: Examples, count: int | None) -> dict[str, np.ndarray]:
    """At most so many examples, in memory."""
    if count is None or count >= len(examples.records):
        return materialize(examples)
    return materialize(select(examples, np.arange(count)))


def split_of(sets: Mapping[str, Examples], split: str) -> Examples:
    """One of the sets. Raises SettingError if it is not there."""
    if split not in sets:
        raise SettingError(f"there is no split {split!r} to measure: data have {', '.join(sets)}")
    return sets[split]


def drawn_places(count: int, total: int, *, seed: int = 0) -> np.ndarray:
    """Places of at most ``count`` of ``total`` images, drawn at random, in ascending order.

    The first images of a set are no sample of it: a folder is in the order of its classes.
    """
    if count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])
