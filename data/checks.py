"""What a source returned, checked before anything is made of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from opsin.data.examples import (
    PIXEL_MAPS,
    Arrays,
    DataError,
    Examples,
    Records,
    Source,
    first_unknown,
)
from opsin.data.masks import IGNORE

_WAY_OUT = "a source returns Examples(Arrays({'image': …, 'label': …}), class_names)"


def name_of(source: Source) -> str:
    """The name of a function, whatever its options."""
    function: Any = source
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def check_examples(examples: Any, source: str) -> Examples:
    """Checks all that a source has in memory, and else its first and last example.

    Args:
        examples: what the source returned.
        source: its name.

    Returns:
        The same.

    Raises:
        DataError: if it is no ``Examples``, or these are none that a batch could be made of.
    """
    if not isinstance(examples, Examples):
        raise DataError(f"{source} returned a {type(examples).__name__}: {_WAY_OUT}")
    names, records = examples.class_names, examples.records
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{source}: class_names is a tuple of texts, not {names!r}")
    for name, times in Counter(names).items():
        if times > 1:
            raise DataError(f"{source}: {times} classes are called {name!r}: name each otherwise")
    if isinstance(records, Mapping) or not isinstance(records, Records):
        raise DataError(f"{source}: its records are a {type(records).__name__}: {_WAY_OUT}")
    if isinstance(records, Arrays):
        _check_lengths(records.arrays, source)
    count = len(records)
    for place in sorted({0, count - 1} if count else ()):
        example = records[place]
        _check_example(example, f"{source}, example {place}")
        _check_labels(
            {name: np.asarray(x)[None] for name, x in example.items()}, names, source, place
        )
    if isinstance(records, Arrays):
        _check_labels(records.arrays, names, source)
    return examples


def check_splits(splits: Mapping[str, Examples]) -> None:
    """Compares the other splits to ``"train"``: class names, where both have some, and targets.

    Raises:
        DataError: if a label would mean another class there, or labels or masks are missing there.
    """
    train, wanted = splits["train"].class_names, _targets(splits["train"])
    for split, examples in splits.items():
        found = examples.class_names
        if train and found and tuple(found) != tuple(train):
            raise DataError(
                f"split {split!r} has the classes {_few(found)}, and training {_few(train)}: give "
                "both the same names, in one order"
            )
        for name in sorted(wanted - _targets(examples)) if len(examples.records) else ():
            raise DataError(
                f"split {split!r} has no {name!r}, which the training images have: give it one, or "
                "choose another split in data.eval_splits"
            )


def _targets(examples: Examples) -> set[str]:
    """What is learned of an image, where there is any."""
    return {"label", "mask"} & (examples.records[0].keys() if len(examples.records) else set())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")


def _check_lengths(arrays: Mapping[str, Any], source: str) -> None:
    wrong = {name: x for name, x in arrays.items() if not isinstance(x, np.ndarray) or not x.ndim}
    for name, value in wrong.items():
        raise DataError(f"{source}: {name!r} is a {type(value).__name__}: make it a NumPy array")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} of {name!r}" for name, count in lengths.items())
        raise DataError(f"{source}: there are {counts}: give as many of each")


def _check_example(example: Any, what: str) -> None:
    """An image of bytes, and numbers."""
    if not isinstance(example, Mapping) or "image" not in example:
        found = ", ".join(map(repr, example)) if isinstance(example, Mapping) else type(example)
        raise DataError(f"{what} has no 'image' but {found}: {_WAY_OUT}")
    arrays = {name: np.asarray(value) for name, value in example.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(
                f"{what}: {name!r} holds no numbers ({array.dtype}): leave it out, or "
                "give its number, as in 'label' the place of its class"
            )
    image = arrays["image"]
    if image.dtype != np.uint8:
        raise DataError(
            f"{what}: images are uint8, from 0 to 255, and this one is {image.dtype}: convert it, "
            "as by np.round(255 * image).astype(np.uint8) if it lies in [0, 1]"
        )
    if image.ndim != 3 or not image.size:
        raise DataError(
            f"{what}: images are [height, width, channels], and this one is {list(image.shape)}"
            + (": add an axis, as by image[..., None]" if image.ndim == 2 else "")
        )
    for name in PIXEL_MAPS:
        if name in arrays and arrays[name].shape != image.shape[:2]:
            raise DataError(
                f"{what}: its {name!r} is {list(arrays[name].shape)} and its image "
                f"{list(image.shape)}: give both the same height and width"
            )


def _check_labels(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], source: str, first: int = 0
) -> None:
    """Labels, where classes have names, and masks: each is a class."""
    label, mask = arrays.get("label"), arrays.get("mask")
    if names and label is not None and len(label):
        if label.ndim != 1 or label.dtype.kind not in "iu":
            raise DataError(
                f"{source}: a label is the number of a class, a whole one, and these are "
                f"{label.dtype} {list(label.shape[1:])}"
            )
        if (place := first_unknown(label, len(names))) is not None:
            raise DataError(
                f"{source}, example {first + place}: label {label[place]} is none of the "
                f"{len(names)} classes, which are 0 to {len(names) - 1}: name all classes, and "
                "leave examples without one out"
            )
    if mask is not None and mask.dtype != np.uint8:
        raise DataError(f"{source}: masks are uint8, and these are {mask.dtype}: convert them")
    if names and mask is not None:
        largest = int(np.max(mask, where=mask != IGNORE, initial=0))
        if largest >= len(names):
            raise DataError(
                f"{source}: a mask has the label {largest}, and the classes are 0 to "
                f"{len(names) - 1} ({IGNORE} means ignored): correct it, or name all classes"
            )
