"""Variables of a network here from another library's arrays, and back, every one accounted for."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from opsin.interchange import DIALECTS
from opsin.interchange.layouts import Place, Rules, place
from opsin.interchange.scales import IMAGENET, Scale
from opsin.train.paths import flatten, unflatten
from opsin.train.weights import WeightsError

COLLECTIONS = ("params", "batch_stats")
NEEDLESS = re.compile(r"(.*\.)?num_batches_tracked")
"""What a file may hold besides: PyTorch counts steps in its norms."""


@dataclass(frozen=True)
class Converted:
    """A network whose weights came from elsewhere.

    Attributes:
        model: with the number of classes of the file.
        variables: ``{"params": …}``, with ``"batch_stats"`` if it has them; float32.
        dialect: whose names the file has.
        unused: names of arrays that say nothing here.
    """

    model: nn.Module
    variables: dict[str, Any]
    dialect: str
    unused: list[str]


def to_ours(
    arrays: Mapping[str, np.ndarray], model: nn.Module, image: tuple[int, int, int]
) -> Converted:
    """A network with the weights of a ``state_dict``.

    Args:
        arrays: by PyTorch's names.
        model: of the same architecture; it may have another number of classes.
        image: height, width and channels of the images it is for.

    Raises:
        WeightsError: the names of the model's arrays elsewhere are not known, or an array is
            missing, left over or of another shape.
    """
    tables = rules_of(model)
    expected = _shapes(model, image)
    attempts = {
        name: _fitted(arrays, model, rules, image, expected) for name, rules in tables.items()
    }
    dialect = min(attempts, key=lambda name: attempts[name].faults)
    attempt = attempts[dialect]
    if attempt.faults:
        raise WeightsError(_told(attempt, f"{dialect}'s {type(model).__name__}"))
    ours = {path: _array(arrays, path, where) for path, where in attempt.places.items()}
    return Converted(attempt.model, unflatten(ours), dialect, attempt.unused)


def to_theirs(
    variables: Mapping[str, Any], model: nn.Module, dialect: str
) -> dict[str, np.ndarray]:
    """The arrays of a network by another library's names, in its layouts.

    Args:
        variables: of the model.
        model: whose names elsewhere are known.
        dialect: one of ``DIALECTS``.

    Raises:
        WeightsError: they are not known, or not those of every array.
    """
    tables = rules_of(model)
    if dialect not in tables:
        known = " and ".join(tables)
        raise WeightsError(f"names of {type(model).__name__} are known of {known} alone")
    parts: defaultdict[str, dict[int, np.ndarray]] = defaultdict(dict)
    if more := sorted(variables.keys() - set(COLLECTIONS)):
        raise WeightsError(f"{dialect} has no name for the variables {more} of the model")
    leaves = flatten(dict(variables))
    for path, leaf in leaves.items():
        where = place(path, leaf.shape, tables[dialect])
        if where is None:
            raise WeightsError(f"{dialect} has no name for {path} of {type(model).__name__}")
        for name, array in zip(where.names, where.to_theirs(np.asarray(leaf)), strict=True):
            parts[name][where.key.part[0]] = array
    arrays = {
        name: np.ascontiguousarray(np.concatenate([found[i] for i in sorted(found)]))
        for name, found in parts.items()
    }
    counted = [name for name in arrays if name.endswith(".running_var")]
    counters = [name.replace("running_var", "num_batches_tracked") for name in counted]
    return arrays | {name: np.array(0) for name in counters}


def rules_of(model: nn.Module) -> dict[str, Rules]:
    """The tables of a model's names, by library.

    They are in the file of this room that is called as the model's own.

    Raises:
        WeightsError: there is none.
    """
    file, made = _file_of(model), type(model).__name__
    tables = {dialect: getattr(file, dialect, None) for dialect in DIALECTS}
    named = {
        dialect: table(model)
        for dialect, table in tables.items()
        if table is not None and inspect.signature(table).parameters["model"].annotation == made
    }
    known = {dialect: rules for dialect, rules in named.items() if rules}
    if not known:
        raise _unknown(model)
    return known


def scale_of(model: nn.Module) -> Scale:
    """Mean and std of the published weights of an architecture: ImageNet's if its file has none.

    Raises:
        WeightsError: there is no file for it.
    """
    file = _file_of(model)
    return file.scale(model) if hasattr(file, "scale") else IMAGENET


def _file_of(model: nn.Module) -> ModuleType:
    module = type(model).__module__
    name = f"{__package__}.{module.rpartition('.')[2]}"
    if not module.startswith("opsin.models.") or find_spec(name) is None:
        raise _unknown(model)
    return importlib.import_module(name)


def _unknown(model: nn.Module) -> WeightsError:
    return WeightsError(
        f"how other libraries call the arrays of {type(model).__name__} is not known: "
        "interchange/ has a file for each model of which it is"
    )


@dataclass(frozen=True)
class _Attempt:
    """What came of one library's names."""

    model: nn.Module
    places: dict[str, Place]
    missing: list[str]
    left_over: list[str]
    unused: list[str]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.left_over)


def _fitted(
    arrays: Mapping[str, np.ndarray],
    model: nn.Module,
    rules: Rules,
    image: tuple[int, int, int],
    expected: Mapping[str, jax.ShapeDtypeStruct],
) -> _Attempt:
    """How well a file goes by one library's names; ``expected`` are the model's arrays as it is."""
    classes = _classes(arrays, expected, rules)
    if classes and classes != getattr(model, "num_classes", None):
        model = model.clone(num_classes=classes)
        expected = _shapes(model, image)
    found = {path: place(path, leaf.shape, rules) for path, leaf in expected.items()}
    places = {path: where for path, where in found.items() if where is not None}
    wanted = {name for where in places.values() for name in where.names}
    missing = [path for path, where in found.items() if where is None]
    missing += sorted(wanted - arrays.keys())
    rest = sorted(arrays.keys() - wanted)
    unused = [name for name in rest if NEEDLESS.fullmatch(name)]
    return _Attempt(model, places, missing, sorted(set(rest) - set(unused)), unused)


def _shapes(model: nn.Module, image: tuple[int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    try:
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
    except ValueError as error:
        told = str(error).partition("\n")[0]
        raise WeightsError(f"images of {list(image)} do not fit the model: {told}") from error
    return flatten({name: variables[name] for name in COLLECTIONS if name in variables})


def _classes(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, Any], rules: Rules
) -> int | None:
    """How many classes the last layer of a file has; None if it has none."""
    for head in ("head", "score", "head/score"):
        path = f"params/{head}/kernel"
        where = place(path, expected[path].shape, rules) if path in expected else None
        if where is not None and where.names[0] in arrays:
            return len(arrays[where.names[0]])
    return None


def _told(attempt: _Attempt, what: str) -> str:
    parts = [
        f"{len(names)} arrays are {how}, first {names[0]}"
        for how, names in (("missing", attempt.missing), ("left over", attempt.left_over))
        if names
    ]
    return f"these are not the weights of {what}: {', and '.join(parts)}"


def _array(arrays: Mapping[str, np.ndarray], path: str, where: Place) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = [arrays[name].astype(np.float32) for name in where.names]
    if not all(np.isfinite(x).all() for x in found):
        raise WeightsError(f"{where.names[0]} holds numbers that are not finite in float32")
    try:
        return np.ascontiguousarray(where.to_ours(found))
    except ValueError as error:
        raise WeightsError(f"{where.names[0]} does not fit {path}: {error}") from error
