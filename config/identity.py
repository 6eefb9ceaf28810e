"""The identity of a run: everything that changes its numbers, and the id, its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from opsin.config.names import lasting_name
from opsin.config.tree import at, children, rebuild, resolve
from opsin.errors import ConfigError


def identity(tree: Any) -> str:
    """Twelve hexadecimal digits that name what the tree is made of."""
    return _hash(essence(tree))


def evaluation_id(experiment: Any) -> str:
    """The id of how an experiment evaluates its splits and is measured, as ``identity`` that of it.

    It is made of its task, with what changes what is measured and no trained number, such as the
    sampler, and of the splits.
    """
    task = essence(experiment.task, experiment, whole=True)
    return _hash({"task": task, "splits": dict(experiment.data.eval_splits)})


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def essence(node: Any, root: Any = None, *, whole: bool = False) -> Any:
    """The tree as JSON, without anything that changes no trained number.

    An object is named without its module, so that files may move. An option at its default is left
    out, so that a new one changes no id; and so is a field with the metadata
    ``{"identity": False}``: measurements, how often something is logged or saved, and the layout
    of devices. One with ``{"identity": "evaluation"}``, such as a sampler, counts with ``whole``. A
    field with the metadata ``{"known_by": other}`` is left out where the other field
    has a value: the path of a file whose sha256 is known. One with ``{"counts_with": path}`` does
    count where that path from the root has a value: how is evaluated, where the best state is kept.
    Of several splits that is the one which chooses, whose metric the value is.

    Args:
        node: what is a tree, or lies in one.
        root: the tree that it lies in.
        whole: with the fields that change what is measured.

    Raises:
        ConfigError: for an object that cannot be found by a name, such as a lambda.
    """
    root = node if root is None else root
    within = partial(essence, root=root, whole=whole)
    if isinstance(node, Mapping):
        return {str(key): within(value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [within(value) for value in node]
    if node is None or isinstance(node, bool | int | float | str):
        return resolve(node)
    if isinstance(node, partial):
        positional = {"args": within(node.args)} if node.args else {}
        options = _set(node.func, node.keywords, root, whole)
        return {"call": lasting_name(node.func)} | positional | options
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {"type": lasting_name(type(node))} | _set(type(node), children(node), root, whole)
    return {"call": lasting_name(node)}  # with a key, so that no text is taken for a function


def essence_of_resolved(config: Mapping[str, Any], allowed: Collection[str] = ()) -> Any:
    """The essence of a tree, from what ``resolve`` made of it, now or in earlier code.

    Raises:
        ConfigError: as ``rebuild``.
    """
    return essence(rebuild(config, allowed))


def defaults(owner: Any) -> dict[str, Any]:
    """Option → its default, of a dataclass, a Flax module or a function."""
    if dataclasses.is_dataclass(owner):
        made = {
            field.name: field.default_factory()
            for field in dataclasses.fields(owner)
            if field.default_factory is not dataclasses.MISSING
        }
        plain = {field.name: field.default for field in dataclasses.fields(owner)}
        return {
            name: value
            for name, value in (plain | made).items()
            if value is not dataclasses.MISSING
        }
    try:
        parameters = inspect.signature(owner).parameters
    except ValueError:  # of a library's own making, without a signature
        return {}
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def _set(owner: Any, values: Mapping[str, Any], root: Any, whole: bool) -> dict[str, Any]:
    """The essence of the options that differ from their defaults and count."""
    given = defaults(owner)
    fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
    conditions = {f.name: f.metadata["counts_with"] for f in fields if "counts_with" in f.metadata}
    choosing = {name: _chosen_by(root, path) for name, path in conditions.items()}
    values = {name: _choosing(value, choosing.get(name)) for name, value in values.items()}
    apart = {f.name for f in fields if not _counts(f.metadata.get("identity", True), whole)}
    apart -= {name for name, metric in choosing.items() if metric}
    apart |= {f.name for f in fields if values.get(f.metadata.get("known_by", "")) is not None}
    within = partial(essence, root=root, whole=whole)
    counted = {name: within(value) for name, value in values.items() if name not in apart}
    return {
        name: value
        for name, value in counted.items()
        if name not in given or not _same(value, given[name])
    }


def _counts(said: bool | str, whole: bool) -> bool:
    """Whether a field counts, by its metadata "identity"."""
    return whole if said == "evaluation" else bool(said)


def _chosen_by(root: Any, path: str) -> str | None:
    """The metric at a path from the root, without its sign; None if there is none."""
    try:
        metric = at(root, path)
    except KeyError:
        return None
    return metric.lstrip("+-") if isinstance(metric, str) else None


def _choosing(value: Any, metric: str | None) -> Any:
    """Of splits by name those that a metric is of; of anything else, all."""
    if metric is None or not isinstance(value, Mapping):
        return value
    chosen = metric.partition("/")[0].removesuffix("_ema")  # as ``train.best`` has it
    return {name: split for name, split in value.items() if name == chosen}


def _same(value: Any, default: Any) -> bool:
    """Whether a value is a default; 1, 1.0 and True are not the same."""
    try:
        return json.dumps(value, sort_keys=True) == json.dumps(essence(default), sort_keys=True)
    except ConfigError:  # a library's own marker for "not given"
        return False
