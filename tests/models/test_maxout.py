import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.maxout import Maxout, maxout
from tests.drawn import normal


def test_it_is_the_largest_of_the_linear_pieces(randomise):
    x = normal(2, 3, 4)
    model = Maxout(5, pieces=3)
    variables = randomise(model, x)
    maps = variables["params"]["maps"]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 3 * 5 * (4 + 1)
    pieces = np.stack([x @ maps["kernel"][:, j::3] + maps["bias"][j::3] for j in range(3)])
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), pieces.max(0), atol=1e-6)


@pytest.mark.parametrize(
    ("slopes", "function"),
    [((1, -1), np.abs), ((1, 0), lambda x: np.maximum(x, 0))],
    ids=["absolute", "relu"],
)
def test_two_pieces_are_the_absolute_value_and_relu_exactly(slopes, function):
    x = np.array([[-3.5], [-1e-30], [0.0], [2.25], [1e30]], np.float32)
    maps = {"kernel": np.float32([slopes]), "bias": np.zeros(2, np.float32)}
    y = jax.jit(Maxout(1).apply)({"params": {"maps": maps}}, x)
    np.testing.assert_array_equal(y, function(x))


def test_the_gradient_goes_to_the_largest_piece_alone():
    x = normal(2, 3, 6)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(maxout(x, 2)))))(x)
    pairs = x.reshape(2, 3, 3, 2)
    largest = pairs == pairs.max(-1, keepdims=True)
    np.testing.assert_allclose(
        slope, np.where(largest, np.cos(pairs), 0).reshape(x.shape), rtol=1e-6
    )


def test_pieces_that_do_not_divide_are_named():
    for pieces in (0, 4):
        with pytest.raises(ValueError, match=f"{pieces} pieces do not divide 6 channels"):
            maxout(normal(2, 6), pieces)
