"""XLA's options, of which the other fast tests take none: see tests/conftest.py."""

import jax
import numpy as np
import pytest

from opsin.train.compiler import compiler_options, quick_options


@pytest.fixture
def optimized():
    """As users compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("options", [compiler_options, quick_options])
def test_xla_knows_the_options_of_a_run(options, optimized):
    chosen = options("cpu")
    assert chosen
    compiled = jax.jit(lambda x: 2 * x + 1).lower(np.arange(3.0)).compile(compiler_options=chosen)
    np.testing.assert_array_equal(compiled(np.arange(3.0)), [1, 3, 5])
    assert options("tpu") == {}


def test_what_runs_once_is_not_optimized_where_nothing_is():
    assert jax.config.read("jax_disable_most_optimizations")
    assert quick_options("cpu") == {}
