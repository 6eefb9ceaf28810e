"""Fast stand-ins for arrays and initialisers, whose compilation would take most of a test's time.

They are NumPy's: what a test computes from them costs no compilation either.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def normal(*shape: int) -> np.ndarray:
    """Normal numbers, the same at each call."""
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def variables(init: Callable[..., Any], *inputs: Any) -> Any:
    """Variables of the shapes that ``init(key, *inputs)`` has, which is traced alone.

    None of them is zero, and all vectors are positive, as scales and variances must be.
    """
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        if leaf.ndim == 1:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values = rng.normal(0, (leaf.size / leaf.shape[-1]) ** -0.5, leaf.shape)
        return np.asarray(values, leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(init, jax.random.key(0), *inputs))
