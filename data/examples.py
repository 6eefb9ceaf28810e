"""What every source returns: examples that are read one at a time, and how they become arrays."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from opsin.errors import UserError

_CHUNK = 256  # examples that a thread reads at a time: enough to hide what it costs to start


class DataError(UserError):
    """A mistake in the data or in how they are requested: one line, the cause and the way out."""


@runtime_checkable
class Records(Protocol):
    """Random access to examples: each is a flat dict of numpy arrays.

    A classification source gives ``image``, uint8 [height, width, channels], and ``label``, an
    int32 scalar. Reading must be safe from several threads. Records that read several at a time
    faster than one by one have ``__getitems__`` too, from a list of indices to a list of examples.
    Those of training that are cut otherwise for evaluation have ``held_out``: records so cut. Those
    of several passes over the same images have ``passes``, their number: an epoch visits all of one
    before the next.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Arrays:
    """Records that are in memory: a dict of arrays with one leading axis of equal length."""

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in self.arrays.items()}


@dataclass(frozen=True)
class Examples:
    """One split of a data set.

    Attributes:
        records: the examples, read when indexed.
        class_names: the name of each label, in order; empty where the set has no classes.
        read_labels: a faster way to all labels than reading every example, if there is one.
        resized: whether the source brought images of any size to one, as opposed to showing them as
            they are.
        files: what identifies the files that it reads, if it does; see ``data.fingerprint``.
    """

    records: Records
    class_names: tuple[str, ...] = ()
    read_labels: Callable[[], Int[np.ndarray, " n"]] | None = None
    resized: bool = False
    files: str = ""


Source = Callable[[str], Examples]
"""A function from the name of a split, such as "train", to its examples."""

SPLITS = ("train", "test")
"""The splits of a set that is made or embedded."""

PIXEL_MAPS = ("mask", "weight")
"""What has a value for each pixel of the image [height, width], and is moved as the image is."""


def check_same_data(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compares what was recorded about the training data to what they are now.

    Args:
        saved: as JSON: ``class_names``, ``examples`` (how many), ``arrays`` (name → shape and
            type), ``files`` (split → what identifies them) and ``labels`` (what does those of
            training).
        now: the same of the data as they are; what only one of them has is not compared.

    Raises:
        DataError: if they differ: says in what first.
    """
    for name, what in _RECORDED.items():
        there, here = (each.get(name) for each in (saved, now))
        if name == "files":
            there, here, what = _first_other_files(there or {}, here or {})
        if there == here or None in (there, here):
            continue
        if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
            (there, here), what = _first_difference(there, here), "a class called"
        raise DataError(
            f"the checkpoint was trained on {what} {_short(there)}, and the data have "
            f"{_short(here)}: give the data that it was trained on, or move the run away to start "
            "from the beginning"
        )


_RECORDED = {"class_names": "classes"} | {x: x for x in ("examples", "arrays", "files", "labels")}


def _first_other_files(
    there: Mapping[str, str], here: Mapping[str, str]
) -> tuple[str | None, str | None, str]:
    """Of the first split whose files differ."""
    other = [split for split in there.keys() & here.keys() if there[split] != here[split]]
    split = min(other, default="")
    return there.get(split), here.get(split), f"files of {split!r}:"


def _first_difference(there: list[Any], here: list[Any]) -> tuple[Any, Any]:
    return next(pair for pair in zip(there, here, strict=True) if pair[0] != pair[1])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def require_split(name: str, split: str) -> None:
    """Raises DataError for a split that is not one of ``SPLITS``."""
    if split not in SPLITS:
        raise DataError(f'"{name}" has no split "{split}"; use "train" or "test"')


def read_several(records: Records, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """The examples at ``indices``: in one call where the records have ``__getitems__``."""
    several = getattr(records, "__getitems__", None)
    return several(indices) if several else [records[index] for index in indices]


def stack(records: Records, indices: Iterable[int], *, classes: int = 0) -> dict[str, np.ndarray]:
    """Reads some records and stacks their arrays along a new first axis, in 32 bits at most.

    Args:
        records: some of these.
        indices: which.
        classes: how many there are, to compare the labels to; with 0 they are not looked at.

    Raises:
        DataError: if the records differ in what they hold, in type or in shape, or a label is none
            of the classes.
    """
    if isinstance(records, Arrays):
        chosen = np.fromiter(indices, np.int64)
        return {name: _in_32_bits(array[chosen]) for name, array in records.arrays.items()}
    rows = [int(index) for index in indices]
    given = read_several(records, rows)
    for row, example in zip(rows, given, strict=True):
        if not isinstance(example, Mapping) or example.keys() != given[0].keys():
            found = ", ".join(example) if isinstance(example, Mapping) else type(example).__name__
            raise DataError(
                f"example {row} has {found}, and example {rows[0]} {', '.join(given[0])}: give all "
                "examples the same entries"
            )
    read = [{name: _in_32_bits(value) for name, value in example.items()} for example in given]
    for name in read[0]:
        _require_one_type(name, rows, [row[name].dtype for row in read])
        _require_one_shape(name, (row[name].shape for row in read))
    stacked = {name: np.stack([row[name] for row in read]) for name in read[0]}
    label = stacked.get("label")
    if classes and label is not None and (place := first_unknown(label, classes)) is not None:
        raise DataError(
            f"example {rows[place]} has the label {label[place]}, and the {classes} classes are 0 "
            f"to {classes - 1}: name all classes, and leave examples without one out"
        )
    return stacked


def materialize(examples: Examples) -> dict[str, np.ndarray]:
    """Reads a whole split into memory with one thread a core.

    Returns:
        Each record's arrays stacked, as by ``stack``: ``image`` uint8 [n, height, width, channels],
        ``label`` int32 [n].

    Raises:
        DataError: if the split is empty, an example cannot be read, shapes differ, or a label is
            none of the classes.
    """
    records = examples.records
    if isinstance(records, Arrays):
        return {name: _in_32_bits(array) for name, array in records.arrays.items()}
    count = len(records)
    if count == 0:
        raise DataError("this split has no examples; choose another one")
    chunks = np.array_split(np.arange(count), math.ceil(count / _CHUNK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = partial(stack, records, classes=len(examples.class_names))
        parts = list(pool.map(read, chunks))
    for name in parts[0]:
        _require_one_shape(name, (part[name].shape[1:] for part in parts))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def first_unknown(label: np.ndarray, classes: int) -> int | None:
    """The place of the first label that is none of so many classes; None if all are."""
    wrong = (label < 0) | (label >= classes)
    return int(wrong.argmax()) if wrong.any() else None


def fits_in_memory(examples: Examples, limit_bytes: int) -> bool:
    """Whether the materialised split takes at most ``limit_bytes``, judged by its first example."""
    count = len(examples.records)
    if count == 0:
        return True
    first = stack(examples.records, [0])
    return count * sum(array.nbytes for array in first.values()) <= limit_bytes


def labels(examples: Examples) -> Int[np.ndarray, " n"]:
    """All labels of a split, int32 [n], without decoding images where the source can do so.

    Raises:
        DataError: if the examples have no scalar ``label``.
    """
    if examples.read_labels is not None:
        return np.asarray(examples.read_labels(), np.int32)
    records = examples.records
    try:
        return np.array([records[index]["label"] for index in range(len(records))], np.int32)
    except KeyError as error:
        raise DataError('these examples have no "label"; choose a set with classes') from error


def _in_32_bits(value: Any) -> np.ndarray:
    """Numbers as an array of 32 bits at most: jax keeps no more on a device."""
    array = np.asarray(value)
    kind, size = array.dtype.kind, array.dtype.itemsize
    return array.astype(f"{kind}{min(size, 4)}", copy=False) if kind in "biuf" else array


def _require_one_type(name: str, rows: Sequence[int], types: Sequence[np.dtype]) -> None:
    other = next((place for place, each in enumerate(types) if each != types[0]), None)
    if other is not None:
        raise DataError(
            f"{name!r} of example {rows[other]} is {types[other]}, and of example {rows[0]} "
            f"{types[0]}: give all examples one type"
        )


def _require_one_shape(name: str, shapes: Iterable[tuple[int, ...]]) -> None:
    distinct = list(dict.fromkeys(shapes))
    if len(distinct) > 1:
        raise DataError(
            f'examples differ in the shape of "{name}", such as {distinct[0]} and {distinct[1]}; '
            "resize, crop or pad them to one shape in the source"
        )
