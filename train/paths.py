"""Leaves of trees by path: ``backbone/stage1/kernel``, ``optimizer.learning_rate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
from jaxtyping import PyTree


def flatten(tree: PyTree) -> dict[str, Any]:
    """Nested dicts as one: ``/``-joined path → leaf."""
    return dict(traverse_util.flatten_dict(tree, sep="/"))


def unflatten(flat: Mapping[str, Any]) -> PyTree:
    """The inverse of ``flatten``."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def json_leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested JSON by dotted path; what is empty is a leaf."""
    if isinstance(tree, dict) and (tree or not path):
        items = tree.items()
    elif isinstance(tree, list) and tree:
        items = ((str(index), value) for index, value in enumerate(tree))
    else:
        return {path: tree}
    flat = {}
    for name, value in items:
        flat |= json_leaves(value, f"{path}.{name}" if path else name)
    return flat
