"""Fast stand-ins for initialisers, whose compilation would take most of the time of a test."""

from typing import Any

import jax
import numpy as np


def drawn_variables(task: Any, batch: Any) -> tuple[Any, Any]:
    """Parameters and mutable variables of a task, of NumPy: none is zero, scales are positive.

    Their shapes are those of ``task.init``, which is traced, and neither compiled nor run.
    """
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        inputs = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 100  # a bias is small
        return rng.normal(0, inputs**-0.5, leaf.shape).astype(leaf.dtype)

    shapes = dict(jax.eval_shape(task.init, jax.random.key(0), batch))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return variables.pop("params"), variables
