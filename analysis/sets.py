"""The images that a measurement uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from opsin.data.examples import Examples, materialize
from opsin.data.selection import drawn_places, select
from opsin.train.settings import SettingError

Choice = Literal["drawn", "first"]
"""Which images represent a set if not all are used: ``"drawn"`` at random, always the same, or the
``"first"``, for a set whose order is random, such as MNIST. The first images of a folder have one
class."""


def some_examples(examples: Examples, count: int | None, choice: Choice) -> dict[str, np.ndarray]:
    """At most that many examples, in memory, in the order of the set; None takes all."""
    total = len(examples.records)
    if count is None or count >= total:
        return materialize(examples)
    places = np.arange(count) if choice == "first" else drawn_places(count, total)
    return materialize(select(examples, places))


def split_of(sets: Mapping[str, Examples], split: str) -> Examples:
    """One of the sets. Raises SettingError if it is not there."""
    if split not in sets:
        raise SettingError(f"there is no split {split!r} to measure: data have {', '.join(sets)}")
    return sets[split]
