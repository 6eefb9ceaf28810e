"""What earlier code wrote into a ``config.json``, in the fields of the present code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def modernized(resolved: Any) -> Any:
    """A resolved tree as the present code would have written it; its own output stays as it is.

    - ``axis_name`` was an option of every module with a norm; the mapped axis is found without it.
    - ``task.final`` held the measurements of a run. They are no part of it any more, and are left
      out: what is measured is what the experiment measures now.
    - ``task.weights`` is ``weights`` of the experiment: a classifier took the backbone of the file,
      a diffusion model all of it.
    """
    if isinstance(resolved, list):
        return [modernized(value) for value in resolved]
    if not isinstance(resolved, Mapping):
        return resolved
    fields = {
        name: modernized(_without_the_experiments_own(value) if name == "task" else value)
        for name, value in resolved.items()
        if not (name == "axis_name" and value is None)
    }
    weights = _weights(resolved.get("task"))
    return fields if weights is None else fields | {"weights": weights}


def _without_the_experiments_own(fields: Any) -> Any:
    """The fields of a task but those that are the experiment's now."""
    if not isinstance(fields, Mapping):
        return fields
    return {name: value for name, value in fields.items() if name not in ("final", "weights")}


def _weights(fields: Any) -> dict[str, Any] | None:
    """The weights of an experiment among the fields of its task."""
    weights = fields.get("weights") if isinstance(fields, Mapping) else None
    if weights is None:
        return None
    return {**weights, "part": "backbone" if fields["type"].endswith(":Classify") else ""}
