"""Parameters by path: ``backbone/stage1/kernel``."""

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
