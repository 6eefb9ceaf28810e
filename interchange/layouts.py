"""How arrays of a network here lie in the files of PyTorch, and back.

Names: a table of ``Rules`` gives each module of ours the name of a module there. Layouts: the
kernel of a convolution is [height, width, in, out] here and [out, in, height, width] there, that of
a linear layer [in, out] and [out, in]. Arrays of several layers are one here and several there;
queries, keys and values are three here and may be one there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Our names of arrays, and those of PyTorch's modules."""


BLOCK = r"backbone/stage(\d+)_block(\d+)/"
"""What the names of arrays in a block of a stage begin with here; both are counted from 1."""


@dataclass(frozen=True)
class Key:
    """How a module, or an array by itself, is called in a foreign file, and lies in it.

    Attributes:
        name: of the module, with ``*`` where the name of an array goes, which is behind a dot at
            the end without one. ``{}`` is the number of a layer, from 0, of those we stack.
        part: (index, count): which of the equal parts of the foreign array it is.
        inputs: how many axes of our kernel are inputs: two of what puts attention's heads together.
        flat: a convolution here is a linear layer there.
        expanded: axes of length one that the foreign array has besides.
        adapted: makes an array of our shape of a foreign one that has another, such as positions.
    """

    name: str
    part: tuple[int, int] = (0, 1)
    inputs: int = 1
    flat: bool = False
    expanded: tuple[int, ...] = ()
    adapted: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] | None = None


Rules = dict[str, str | Key | Callable[[re.Match[str]], str | Key]]
"""Regular expressions for the path of a module or an array of ours → what it is there.

A text may refer to groups of the expression, as ``\\1``.
"""


@dataclass(frozen=True)
class Place:
    """Where an array of ours lies in a foreign file.

    Attributes:
        names: of the array there, or of one a layer.
        key: how it lies there.
        shape: of ours.
    """

    names: tuple[str, ...]
    key: Key
    shape: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        """Whether ours has a first axis for layers."""
        return "{}" in self.key.name

    def to_ours(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Our array from those of ``names``.

        Raises:
            ValueError: they do not have its numbers.
        """
        if self.key.adapted is not None:
            arrays = [self.key.adapted(x, self.shape) for x in arrays]
        index, count = self.key.part
        shape = self.shape[1:] if self.stacked else self.shape
        theirs = _to_theirs(np.empty(shape, np.bool_), self.key).shape
        if wrong := [list(x.shape) for x in arrays if _part(x.shape, count) != theirs]:
            fits = [theirs[0] * count, *theirs[1:]]
            raise ValueError(f"it is {wrong[0]} there, and {fits} would fit")
        parts = [_to_ours(np.split(x, count)[index], shape) for x in arrays]
        return np.stack(parts) if self.stacked else parts[0]

    def to_theirs(self, array: np.ndarray) -> list[np.ndarray]:
        """The arrays of ``names``, or the part of each that ours holds."""
        return [_to_theirs(x, self.key) for x in (array if self.stacked else [array])]


def place(path: str, shape: Sequence[int], rules: Rules) -> Place | None:
    """Where the array at ``collection/path`` lies; None if no rule knows it."""
    path = path.partition("/")[2]
    modules, _, leaf = path.rpartition("/")
    key = _look_up(modules, rules)
    if key is not None:
        joined = key.name if "*" in key.name else f"{key.name}.*"
        key = replace(key, name=joined.replace("*", LEAVES.get(leaf, leaf)))
    else:
        key = _look_up(path, rules)
    if key is None:
        return None
    layers = range(shape[0]) if "{}" in key.name else [0]
    return Place(tuple(key.name.format(layer) for layer in layers), key, tuple(shape))


def _look_up(path: str, rules: Rules) -> Key | None:
    for pattern, there in rules.items():
        if found := re.fullmatch(pattern, path):
            name = there(found) if callable(there) else there
            return name if isinstance(name, Key) else Key(found.expand(name))
    return None


def _part(shape: tuple[int, ...], count: int) -> tuple[float, ...]:
    """The shape of one of the equal parts of the first axis."""
    return (shape[0] / count, *shape[1:]) if shape else ()


def _to_ours(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.ndim == 2 and len(shape) == 4:
        height, width, channels, features = shape
        array = array.reshape(features, channels, height, width)
    if array.ndim == 4 and len(shape) > 1:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2 and len(shape) > 1:
        array = array.T
    return array.reshape(shape)


def _to_theirs(array: np.ndarray, key: Key) -> np.ndarray:
    if not key.name.endswith(tuple(LEAVES.values())):
        return np.expand_dims(array, key.expanded)
    if array.ndim == 1 or not key.name.endswith("weight"):
        return array.reshape(-1)
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
        return array.reshape(len(array), -1) if key.flat else array
    return array.reshape(math.prod(array.shape[: key.inputs]), -1).T
