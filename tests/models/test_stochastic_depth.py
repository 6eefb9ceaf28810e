import flax.linen as nn
import jax
import numpy as np

from opsin.models.layers import StochasticDepth
from tests.drawn import normal


class Twice(nn.Module):
    """Two layers, to see whether they draw alike."""

    @nn.compact
    def __call__(self, x, *, train):
        return [StochasticDepth(0.25)(x, train=train) for _ in range(2)]


def test_rows_are_kept_whole_by_their_own_draw_and_weighted_to_the_same_mean():
    x = normal(4000, 2, 1, 2)

    @jax.jit
    def run(x, key, other):
        one = Twice().apply({}, x, train=True, rngs={"dropout": key})
        two = Twice().apply({}, x, train=True, rngs={"dropout": other})
        return one, two[0], Twice().apply({}, x, train=False)[0]

    (first, second), other, evaluated = jax.tree.map(
        np.asarray, run(x, jax.random.key(0), jax.random.key(1))
    )
    np.testing.assert_array_equal(evaluated, x)
    masks = []
    for y in (first, second, other):
        gone = (y == 0).all((1, 2, 3))
        np.testing.assert_allclose(y[~gone], x[~gone] / 0.75, rtol=1e-6)
        assert abs(gone.mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
        # As often after a row that is gone as after one that is not: neighbours are independent.
        assert abs(gone[1:][gone[:-1]].mean() - 0.25) < 4 * (0.25 * 0.75 / 1000) ** 0.5
        masks.append(gone)
    for a, b in ((0, 1), (0, 2)):  # of two layers, of two keys
        both = (masks[a] & masks[b]).mean()
        assert abs(both - 0.0625) < 4 * (0.0625 * 0.9375 / 4000) ** 0.5


def test_nothing_is_drawn_where_nothing_can_be_dropped():
    x = normal(3, 4)  # tokens without places
    np.testing.assert_array_equal(StochasticDepth(0.0).apply({}, x, train=True), x)
    np.testing.assert_array_equal(StochasticDepth(0.9).apply({}, x), x)
