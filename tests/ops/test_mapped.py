"""What is mapped over the replicas of a batch is known where it is traced, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.layers import batch_norm
from opsin.ops import mapped
from opsin.ops.mapped import REPLICAS

X = np.arange(8, dtype=np.float32).reshape(4, 2)
MAPS = {
    "vmap": lambda f: jax.vmap(f, axis_name=REPLICAS),
    "pmap": lambda f: jax.pmap(f, axis_name=REPLICAS),
    "shard_map": lambda f: jax.shard_map(
        lambda x: f(x[0])[None],
        mesh=jax.make_mesh((4,), (REPLICAS,), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=jax.P(REPLICAS),
        out_specs=jax.P(REPLICAS),
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_over_the_axis_means_sums_rows_and_places_are_those_of_all(name):
    def all_of_it(x):
        parts = mapped.mean(x), mapped.total(x), mapped.gather(x)
        return jnp.concatenate([*parts, jnp.stack([mapped.index(), mapped.size()])])

    expected = [[*X.mean(0), *X.sum(0), *X.reshape(-1), i, 4] for i in range(4)]
    run = MAPS[name](all_of_it)
    np.testing.assert_array_equal((run if name == "pmap" else jax.jit(run))(X), expected)


def test_elsewhere_everything_is_as_it_was():
    def assert_untouched(x):
        assert not mapped.is_mapped()
        assert mapped.mean(x) is x
        assert mapped.total(x) is x
        assert mapped.gather(x) is x
        assert (mapped.index(), mapped.size()) == (0, 1)
        key = jax.random.key(0)
        assert mapped.own_key(key) is key
        assert mapped.shared_key(key) is key
        return x

    assert_untouched(X)
    jax.jit(assert_untouched)(X)
    jax.vmap(assert_untouched, axis_name="another")(X)


def test_a_function_that_jit_has_cached_outside_is_traced_anew_inside_and_back():
    """One jitted function, called outside, inside and outside of the axis: nothing leaks."""
    mean = jax.jit(mapped.mean)
    np.testing.assert_array_equal(mean(X[0]), X[0])
    np.testing.assert_array_equal(MAPS["vmap"](mean)(X), np.broadcast_to(X.mean(0), X.shape))
    np.testing.assert_array_equal(mean(X[0]), X[0])
    np.testing.assert_array_equal(jax.vmap(mean)(X), X)


def test_after_an_error_inside_nothing_is_mapped():
    def fail(x):
        assert mapped.is_mapped()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        MAPS["vmap"](fail)(X)
    assert not mapped.is_mapped()


def test_replicas_have_keys_of_their_own_and_one_that_they_share():
    def draw(x):
        del x
        key = mapped.own_key(jax.random.key(0))
        return jnp.stack([jax.random.uniform(k) for k in (key, mapped.shared_key(key))])

    own, shared = np.asarray(jax.jit(MAPS["vmap"](draw))(X)).T
    assert len(set(own.tolist())) == 4
    assert set(shared.tolist()) == {float(own[0])}


def test_gradients_of_gathered_rows_return_to_their_replica():
    """Σ over replicas of a loss that all compute of all rows: each row's gradient is of all."""
    weights = np.arange(1, 9, dtype=np.float32)

    def loss(x):
        return jnp.sum(weights * mapped.gather(x) ** 2) / mapped.size()

    found = jax.jit(MAPS["vmap"](jax.grad(loss)))(X)
    np.testing.assert_allclose(found, 2 * weights.reshape(4, 2) * X)


def test_a_norm_that_jit_has_cached_knows_its_replicas():
    norm = batch_norm(train=True)
    x = np.repeat(X[:, None], 3, axis=1)  # [replicas, places, channels]
    variables = jax.jit(norm.init)(jax.random.key(0), x[0])
    run = jax.jit(lambda x: norm.apply(variables, x, mutable=["batch_stats"])[0])
    alone = run(x[0])
    np.testing.assert_allclose(alone, 0, atol=1e-6)  # all places of a replica are equal
    together = np.asarray(MAPS["vmap"](run)(x))
    np.testing.assert_allclose(together.mean((0, 1)), 0, atol=1e-6)
    assert np.abs(together[0]).min() > 1
