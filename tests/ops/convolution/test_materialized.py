import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.ops.convolution.materialized import materialized


def test_it_is_the_identity_under_every_transformation():
    x, tangent = jax.random.normal(jax.random.key(0), (2, 3, 4))

    def cubes(identity):
        return lambda x: jnp.sum(identity(x) ** 3)

    for transform in (
        lambda f: f(x),
        lambda f: jax.grad(f)(x),
        lambda f: jax.jvp(jax.grad(f), (x,), (tangent,))[1],
        lambda f: jax.jit(jax.vmap(jax.grad(f)))(x),
        lambda f: jax.grad(jax.checkpoint(f))(x),
    ):
        ours, plain = (transform(cubes(identity)) for identity in (materialized, lambda x: x))
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", 2), ("cuda", 0), ("tpu", 0)])
def test_a_barrier_each_way_on_a_cpu_alone(platform, barriers):
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(materialized(jnp.sin(x))))))
    text = gradient.trace(jnp.ones(4)).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("optimization_barrier") == barriers
