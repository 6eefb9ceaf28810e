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
        name: modernized(_experiment_level(value) if name == "task" else value)
        for name, value in resolved.items()
        if not (name == "axis_name" and value is None)
    }
    weights = _weights(resolved.get("task"))
    return fields if weights is None else fields | {"weights": weights}


def _experiment_level(task: Any) -> Any:
    """A task without the fields that are the experiment's now."""
    if not isinstance(task, Mapping):
        return task
    return {name: value for name, value in task.items() if name not in ("final", "weights")}


def _weights(task: Any) -> dict[str, Any] | None:
    """The weights of an experiment whose task had them."""
    weights = task.get("weights") if isinstance(task, Mapping) else None
    if weights is None:
        return None
    return {**weights, "part": "backbone" if task["type"].endswith(":Classify") else ""}
