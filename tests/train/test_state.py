"""The moving average in closed form, streams of randomness, and parting parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from opsin.train.state import ema_decay_at, ema_update, join_frozen, split_frozen, stream


def test_ema_of_a_constant_series_is_its_closed_form():
    """e_n = d^n e_0 + (1 − d^n) c for a constant c."""
    average, target, decay = {"w": jnp.float32(5.0)}, {"w": jnp.float32(1.0)}, 0.9
    for _ in range(20):
        average = ema_update(average, target, decay)
    np.testing.assert_allclose(average["w"], decay**20 * 5 + (1 - decay**20) * 1, rtol=1e-6)


def test_ema_decay_warms_up_to_its_limit():
    decays = [float(ema_decay_at(n, 0.99)) for n in (0, 8, 90, 10_000)]
    np.testing.assert_allclose(decays, [0.1, 0.5, 0.91, 0.99], rtol=1e-6)


def test_ema_copies_integers():
    average = ema_update({"n": jnp.int32(3)}, {"n": jnp.int32(7)}, 0.9)
    assert average["n"] == 7
    assert average["n"].dtype == jnp.int32


def test_streams_differ_by_step_and_name_and_repeat():
    key = jax.random.key(0)
    draws = {
        (step, name): float(jax.random.uniform(stream(key, step, name)))
        for step in range(3)
        for name in ("loss", "augment")
    }
    assert len(set(draws.values())) == 6
    assert draws[1, "loss"] == float(jax.random.uniform(stream(key, jnp.int32(1), "loss")))


def test_parting_by_path_and_joining_are_inverse():
    params = {"a": {"kernel": 1, "bias": 2}, "b": {"kernel": 3}}
    trained, frozen = split_frozen(params, ("^a/kernel$", "^b/"))
    assert trained == {"a": {"bias": 2}}
    assert frozen == {"a": {"kernel": 1}, "b": {"kernel": 3}}
    assert join_frozen(trained, frozen) == params
