"""Fast stand-ins for initialisers, whose compilation would take most of the time of these tests."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def randomise():
    """A function (module, *inputs) -> variables, none of them zero, variances positive.

    They are NumPy's: what a test computes from them costs no compilation.
    """

    def randomised(module, *inputs):
        rng = np.random.default_rng(0)

        def draw(leaf):
            if leaf.ndim == 1:
                values = rng.uniform(0.5, 1.5, leaf.shape)
            else:
                values = rng.normal(0, (leaf.size / leaf.shape[-1]) ** -0.5, leaf.shape)
            return np.asarray(values, leaf.dtype)

        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return jax.tree.map(draw, shapes)

    return randomised
