"""Narrowing a training split: which examples to keep, as pure functions of the labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import numpy as np
from annotated_types import Interval
from jaxtyping import Int

from opsin.data.examples import DataError, Examples, Records, read_several
from opsin.ranges import Count, Seed


class Selection(Protocol):
    """Which examples of a training split are kept."""

    def __call__(self, labels: Int[np.ndarray, " n"], /, *, seed: int) -> Int[np.ndarray, " kept"]:
        """Indices into the labels."""
        ...


def long_tail(
    labels: Int[np.ndarray, " n"],
    *,
    imbalance: Annotated[float, Interval(ge=1, le=1e6)],
    seed: Seed = 0,
) -> Int[np.ndarray, " kept"]:
    """Indices of a subset whose class sizes fall off exponentially.

    Class c of C, in order of the label, keeps floor(n_max * imbalance^(-c / (C - 1))) examples,
    drawn at random, and at least one. n_max is the most that lets every class supply its share;
    for a balanced set that is the size of a class. CIFAR-10 at 100: 5000, 2997, 1796, …, 50.

    Source: Cui et al., 2019, arXiv:1901.05555, section 5.1.

    Args:
        labels: int [n].
        imbalance: the first class has this many times the examples of the last; at least 1.
        seed: which examples of each class, at least 0.

    Returns:
        Sorted indices into ``labels``.

    Raises:
        DataError: if there are fewer than two classes.
    """
    classes, available = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"a long tail needs two or more classes, not {len(classes)}")
    share = float(imbalance) ** (-np.arange(len(classes)) / (len(classes) - 1))
    # The small term makes up for rounding: 98 * 49 ** -1 must not come out as 1.999….
    largest = np.floor(np.min(available / share) + 1e-6)
    sizes = np.maximum(np.floor(largest * share + 1e-6), 1).astype(int)
    return _of_each_class(labels, dict(zip(classes, sizes, strict=True)), seed)


def per_class(
    labels: Int[np.ndarray, " n"], *, n: Count, seed: Seed = 0
) -> Int[np.ndarray, " kept"]:
    """Indices of a subset with ``n`` examples of every class, drawn at random.

    Subsets of one seed are nested: a smaller n keeps a part of what a larger n keeps.

    Args:
        labels: int [n].
        n: examples of each class, at least 1.
        seed: which examples of each class, at least 0.

    Returns:
        Sorted indices into ``labels``.

    Raises:
        DataError: if a class has fewer examples.
    """
    classes, available = np.unique(labels, return_counts=True)
    if n > (fewest := available.min(initial=n)):
        scarce = classes[available.argmin()]
        raise DataError(
            f"n={n} examples of each class, but class {scarce} has {fewest}; ask for at most that"
        )
    return _of_each_class(labels, dict.fromkeys(classes, n), seed)


def drawn_places(count: int, total: int, *, seed: Seed = 0) -> Int[np.ndarray, " drawn"]:
    """Places of at most ``count`` of ``total`` examples, drawn at random, in ascending order.

    The first examples of a set do not represent it: those of a folder have one class.
    """
    if count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def select(examples: Examples, indices: Int[np.ndarray, " kept"]) -> Examples:
    """The examples at ``indices``, in that order.

    Raises:
        DataError: if there are no indices, they are no whole numbers, or one is outside the split.
    """
    count, indices = len(examples.records), np.asarray(indices)
    if indices.ndim != 1 or (len(indices) and not np.issubdtype(indices.dtype, np.integer)):
        raise DataError(
            f"a selection is whole numbers [kept], the places of examples, and not {indices.dtype} "
            f"{list(indices.shape)}: np.flatnonzero gives those of a mask"
        )
    if len(indices) == 0:
        raise DataError("the selection is empty; keep at least one example")
    if np.min(indices) < 0 or np.max(indices) >= count:
        raise DataError(
            f"the selection has indices from {np.min(indices)} to {np.max(indices)}, but the split "
            f"has {count} examples; select by the labels of the same split"
        )
    read = examples.read_labels
    return replace(
        examples,
        records=Subset(examples.records, indices),
        read_labels=None if read is None else lambda: read()[indices],
    )


@dataclass(frozen=True)
class Subset:
    """Some of the records, in the order of ``indices``."""

    records: Records
    indices: Int[np.ndarray, " kept"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        return read_several(self.records, [int(self.indices[index]) for index in indices])


def _of_each_class(
    labels: Int[np.ndarray, " n"], sizes: dict[np.integer, int], seed: int
) -> Int[np.ndarray, " kept"]:
    # One stream a class, and its first draws: so subsets nest, whatever the other classes keep.
    kept = [
        np.random.default_rng([seed, place]).permutation(np.flatnonzero(labels == label))[:size]
        for place, (label, size) in enumerate(sizes.items())
    ]
    return np.sort(np.concatenate(kept))
