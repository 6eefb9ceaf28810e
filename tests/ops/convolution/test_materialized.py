import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.ops.convolution.materialized import materialized


def test_it_is_the_identity_under_every_transformation():
    x, tangent = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)

    def cubes(identity):
        return lambda x: jnp.sum(identity(x) ** 3)

    def transformed(f):
        return (
            f(x),
            jax.grad(f)(x),
            jax.jvp(jax.grad(f), (x,), (tangent,))[1],
            jax.vmap(jax.grad(f))(x),
            jax.grad(jax.checkpoint(f))(x),
        )

    both = jax.jit(lambda: [transformed(cubes(f)) for f in (materialized, lambda x: x)])
    for ours, plain in zip(*both(), strict=True):
        np.testing.assert_array_equal(ours, plain)
    np.testing.assert_array_equal(materialized(x), x)  # outside of a program too


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", 2), ("cuda", 0), ("tpu", 0)])
def test_a_barrier_each_way_on_a_cpu_alone(platform, barriers):
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(materialized(jnp.sin(x))))))
    text = gradient.trace(jnp.ones(4)).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("optimization_barrier") == barriers
