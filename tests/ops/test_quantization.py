"""Vector quantisation against brute force, k-means and closed forms, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from opsin.ops import quantization
from opsin.ops.mapped import REPLICAS
from opsin.ops.quantization import EmaCodebook

# Compiled, which takes less time here than to run operation by operation.
nearest_codes = jax.jit(quantization.nearest_codes)
ema_update = jax.jit(quantization.ema_update, static_argnames=("decay", "epsilon"))
restart_dead = jax.jit(quantization.restart_dead, static_argnames="threshold")


@pytest.fixture(scope="module")
def vectors():
    """64 vectors of size 3 around four centres, as floats that 1/64 divides."""
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0, 0], [8, 0, 0], [0, 8, 0], [0, 0, 8]])
    z = centres[np.arange(64) % 4] + rng.normal(0, 0.5, (64, 3))
    return np.float32(np.round(z * 64) / 64)


@pytest.fixture(scope="module")
def book(vectors):
    """Five codes, four of them near the centres, one that nothing is near to."""
    codes = np.concatenate([vectors[:4] + 1, np.full((1, 3), -50.0, np.float32)])
    counts = np.float32([3.0, 1.0, 2.0, 5.0, 0.5])
    return EmaCodebook(codes, counts, codes * counts[:, None])


def assert_close(one: EmaCodebook, other: EmaCodebook, atol: float = 1e-5) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), ()])
@pytest.mark.parametrize(("codes", "size"), [(1, 4), (9, 1), (6, 4)])
def test_nearest_codes_are_those_of_all_distances(shape, codes, size):
    rng = np.random.default_rng(codes)
    z = rng.normal(size=(*shape, size)).astype(np.float32)
    book = rng.normal(size=(codes, size)).astype(np.float32)
    indices = nearest_codes(z, book)
    expected = cdist(z.reshape(-1, size), book).argmin(axis=1).reshape(shape)
    np.testing.assert_array_equal(indices, expected)
    assert indices.dtype == jnp.int32


def test_of_codes_equally_near_the_first_is_taken():
    book = np.float32([[1.0], [-1.0], [1.0], [-1.0]])
    np.testing.assert_array_equal(
        nearest_codes(np.float32([[0.0], [-2.0], [2.0]]), book), [0, 1, 0]
    )


def test_an_offset_common_to_all_costs_no_digits(vectors, book):
    offset = np.float32(2.0**15)
    far = nearest_codes(vectors + offset, book.codes + offset)
    np.testing.assert_array_equal(far, nearest_codes(vectors, book.codes))


def test_distances_are_float32_whatever_comes_in():
    book = np.float32([[1.001], [1.0], [0.999]])  # all the same number in bfloat16
    np.testing.assert_array_equal(nearest_codes(np.ones((1, 1), jnp.bfloat16), book), [1])


def test_no_intermediate_has_the_size_of_all_differences(vectors, book):
    jaxpr = jax.make_jaxpr(quantization.nearest_codes)(vectors, book.codes).jaxpr
    sizes = [out.aval.size for equation in jaxpr.eqns for out in equation.outvars]  # pyright: ignore
    assert max(sizes) == 64 * 5 < 64 * 5 * 3


def test_vectors_and_codes_of_different_sizes_are_named():
    with pytest.raises(ValueError, match="codes of size 3 for vectors of size 4"):
        nearest_codes(np.zeros((2, 4)), np.zeros((5, 3)))


def test_straight_through_is_the_codes_with_the_gradient_of_the_vectors():
    z, codes, cotangent = np.random.default_rng(0).standard_normal((3, 4, 2), np.float32)

    @jax.jit
    def value_and_slopes(z, codes):
        value, pull = jax.vjp(quantization.straight_through, z, codes)
        return value, *pull(cotangent)

    value, to_z, to_codes = value_and_slopes(z * np.float32(1e4), codes)
    np.testing.assert_array_equal(value, codes)
    np.testing.assert_array_equal(to_z, cotangent)
    np.testing.assert_array_equal(to_codes, np.zeros((4, 2)))


def test_an_update_is_the_moving_averages_divided_by_the_smoothed_count(vectors, book):
    decay, epsilon = 0.75, 0.5
    indices = np.asarray(nearest_codes(vectors, book.codes))
    counts, sums = decay * book.counts, decay * book.sums
    for z, index in zip(vectors, indices, strict=True):
        counts[index] += (1 - decay) * 1
        sums[index] += (1 - decay) * z
    smooth = (counts + epsilon) / (counts.sum() + 5 * epsilon) * counts.sum()
    got = ema_update(book, vectors, indices, decay=decay, epsilon=epsilon)
    assert_close(got, EmaCodebook(sums / smooth[:, None], counts, sums))
    np.testing.assert_allclose(smooth.sum(), np.asarray(got.counts).sum(), rtol=1e-6)


def test_without_decay_and_smoothing_it_is_one_step_of_lloyd(vectors, book):
    indices = np.asarray(nearest_codes(vectors, book.codes))
    assert set(indices) == {0, 1, 2, 3}
    codes = np.asarray(ema_update(book, vectors, indices, decay=0.0, epsilon=0.0).codes)
    means = [vectors[indices == code].mean(axis=0) for code in range(4)]
    np.testing.assert_allclose(codes[:4], means, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(codes[4], book.codes[4])  # unused: it stays
    step = KMeans(4, init=book.codes[:4], n_init=1, max_iter=1).fit(vectors)
    np.testing.assert_allclose(codes[:4], step.cluster_centers_, rtol=1e-6, atol=1e-6)


def test_the_averages_converge_to_the_centres_of_k_means(vectors, book):
    def step(_, book):
        indices = nearest_codes(vectors, book.codes)
        return ema_update(book, vectors, indices, decay=0.9)

    start = EmaCodebook(*(leaf[:4] for leaf in book))
    learned = jax.jit(lambda book: jax.lax.fori_loop(0, 200, step, book))(start)
    centres = KMeans(4, n_init=5, random_state=0).fit(vectors).cluster_centers_
    order = cdist(learned.codes, centres).argmin(axis=1)
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_allclose(learned.codes, centres[order], atol=1e-4)
    np.testing.assert_allclose(learned.counts, [16] * 4, rtol=1e-4)


def test_a_code_whose_averages_came_down_to_zero_stays_finite(vectors, book):
    alive = np.float32([1, 1, 1, 1, 0])
    gone = EmaCodebook(book.codes, alive * book.counts, alive[:, None] * book.sums)
    got = ema_update(gone, vectors, nearest_codes(vectors, book.codes), decay=0.9)
    np.testing.assert_array_equal(np.asarray(got.codes)[4], book.codes[4])
    assert all(np.isfinite(leaf).all() for leaf in got)


def test_dead_codes_become_vectors_of_the_batch_and_live_ones_stay(vectors, book):
    threshold = 1.5  # codes 1 and 4 are below it
    restarted = [
        restart_dead(jax.random.key(k), book, vectors, threshold=threshold) for k in (3, 4)
    ]
    got, other = jax.tree.map(np.asarray, restarted)
    dead, live = [1, 4], [0, 2, 3]
    for leaf, old in zip(got, book, strict=True):
        np.testing.assert_array_equal(leaf[live], old[live])
    assert (cdist(got.codes[dead], vectors).min(axis=1) == 0).all()
    np.testing.assert_array_equal(got.sums[dead], got.codes[dead])
    np.testing.assert_array_equal(got.counts[dead], [1, 1])
    assert not np.array_equal(got.codes[dead], other.codes[dead])


def test_with_a_threshold_of_zero_nothing_restarts(vectors, book):
    unused = book._replace(counts=np.zeros(5, np.float32))
    got = restart_dead(jax.random.key(3), unused, vectors, threshold=0.0)
    for leaf, old in zip(got, unused, strict=True):
        np.testing.assert_array_equal(leaf, old)


def learn(key, book, z):
    """An update with a restart of codes 1 and 4, which few vectors are near to."""
    indices = quantization.nearest_codes(z, book.codes)
    book = quantization.ema_update(book, z, indices, decay=0.9)
    return quantization.restart_dead(key, book, z, threshold=2.6)


@pytest.fixture(scope="module")
def learned(vectors, book):
    return jax.jit(learn)(jax.random.key(3), book, vectors)


@pytest.mark.proofs
def test_jit_changes_nothing(learned, vectors, book):
    assert_close(learn(jax.random.key(3), book, vectors), learned)
    assert set(np.flatnonzero(np.asarray(learned.counts) == 1)) == {1, 4}


def test_eight_devices_learn_what_one_does_under_jit(learned, vectors, book):
    sharding = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
    got = jax.jit(learn)(jax.random.key(3), book, jax.device_put(vectors, sharding))
    assert_close(got, learned)


@pytest.mark.parametrize("own_keys", [pytest.param(False, marks=pytest.mark.proofs), True])
def test_eight_devices_learn_what_one_does_under_pmap(learned, vectors, book, own_keys):
    keys = jax.vmap(jax.random.key)(3 + own_keys * np.arange(8))
    mapped = jax.pmap(learn, axis_name=REPLICAS, in_axes=(0, None, 0))
    got = jax.tree.map(np.asarray, mapped(keys, book, vectors.reshape(8, 8, 3)))
    for device in range(8):
        assert_close(jax.tree.map(lambda leaf, device=device: leaf[device], got), learned)
