import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from opsin.metrics.latent import ACTIVE, ActiveUnits, CodeUsage, active_units, code_usage
from opsin.metrics.state import to_host

BATCH, UNITS, CODES = 8, 5, 6

compiled_units = jax.jit(active_units)
compiled_usage = jax.jit(code_usage, static_argnums=1)


def merged(state, arrays):
    """The state of all rows, from batches of BATCH of which the last is padded with nonsense."""
    total = None
    for start in range(0, len(arrays), BATCH):
        rows = arrays[start : start + BATCH]
        padded = np.full((BATCH, *arrays.shape[1:]), 3, arrays.dtype)
        if np.issubdtype(arrays.dtype, np.floating):
            padded[:] = np.nan
        padded[: len(rows)] = rows
        part = to_host(state(padded, np.arange(BATCH) < len(rows)))
        total = part if total is None else total.merge(part)
    assert total is not None
    return total


@pytest.mark.parametrize("examples", [1, 8, 77])
def test_activity_is_the_variance_of_the_means(examples):
    scales = np.sqrt(ACTIVE) * np.array([0.0, 0.5, 0.9, 2.0, 30.0])
    means = 1.5 + scales * stats.norm.rvs(size=(examples, UNITS), random_state=0)
    means = means.astype(np.float32)
    state = merged(compiled_units, means)
    expected = means.astype(np.float64).var(axis=0)
    np.testing.assert_allclose(state.activity(), expected, rtol=1e-5, atol=5e-6)
    assert state.compute() == {"": float((expected > ACTIVE).sum())}


def test_many_examples_do_not_blur_the_threshold():
    """A million examples far from zero, of which float32 sums would leave no variance."""
    rng = np.random.default_rng(1)
    means = (20.0 + 0.15 * rng.normal(size=(128, UNITS))).astype(np.float32)
    batch = to_host(compiled_units(means))
    total = ActiveUnits(*(8192 * x for x in (batch.total, batch.squares, batch.count)))
    np.testing.assert_allclose(total.activity(), means.astype(np.float64).var(axis=0), atol=1e-3)
    assert total.compute() == {"": 5.0}


def test_no_examples_and_broken_ones_are_nan():
    means = np.ones((BATCH, UNITS), np.float32)
    assert np.isnan(compiled_units(means, np.zeros(BATCH, bool)).compute()[""])
    assert np.isnan(active_units(jnp.array([[jnp.nan, 1.0], [0.0, 0.0]])).compute()[""])
    with pytest.raises(ValueError, match="one entry per example"):
        active_units(jnp.ones((4, 2)), jnp.ones((4, 2), bool))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("examples", [1, 8, 21])
def test_usage_is_that_of_all_indices(shape, examples):
    rng = np.random.default_rng(2)
    indices = rng.integers(0, CODES - 1, (examples, *shape)).astype(np.int32)  # one code unused
    state = merged(lambda i, valid: compiled_usage(i, CODES, valid), indices)
    counts = np.bincount(indices.ravel(), minlength=CODES)
    np.testing.assert_array_equal(state.counts, counts)
    numbers = state.compute()
    assert numbers["perplexity"] == pytest.approx(np.exp(stats.entropy(counts)))
    assert numbers["used_codes"] == np.count_nonzero(counts)


def test_perplexity_of_even_use_and_of_one_code():
    assert CodeUsage(np.full(512, 7)).compute()["perplexity"] == pytest.approx(512)
    one = CodeUsage(np.eye(512, dtype=int)[3]).compute()
    assert one == {"perplexity": 1.0, "used_codes": 1.0}
    assert np.isnan(list(CodeUsage(np.zeros(4, int)).compute().values())).all()


def test_indices_outside_the_codebook_are_not_counted():
    state = code_usage(jnp.array([-1, 0, CODES - 1, CODES]), CODES)
    np.testing.assert_array_equal(state.counts, [1, 0, 0, 0, 0, 1])
    assert state.counts.dtype == jnp.int32
    with pytest.raises(ValueError, match="one entry per example"):
        code_usage(jnp.zeros((4, 2), jnp.int32), CODES, jnp.ones(2, bool))


def test_eight_devices_give_the_states_of_one():
    rng = np.random.default_rng(3)
    means = rng.normal(size=(BATCH, UNITS)).astype(np.float32)
    indices = rng.integers(0, CODES, (BATCH, 3)).astype(np.int32)
    valid = np.arange(BATCH) < 6
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put((means, indices, valid), sharding)
    assert len(sharded[0].sharding.device_set) == 8
    one, eight = (
        (compiled_units(m, v), compiled_usage(i, CODES, v))
        for m, i, v in ((means, indices, valid), sharded)
    )
    np.testing.assert_array_equal(eight[1].counts, one[1].counts)
    np.testing.assert_array_equal(eight[0].count, one[0].count)
    np.testing.assert_allclose(eight[0].squares, one[0].squares, rtol=1e-6)
    np.testing.assert_allclose(eight[0].total, one[0].total, rtol=1e-6)
