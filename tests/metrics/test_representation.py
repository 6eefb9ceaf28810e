"""Embeddings whose place on the sphere is known, and loops over all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.neighbors import KNeighborsClassifier

from opsin.metrics.representation import alignment, knn_accuracy, spread, uniformity
from opsin.metrics.state import Metric, to_host

BATCH, WIDTH = 8, 5

compiled_alignment = jax.jit(alignment)
compiled_uniformity = jax.jit(uniformity)
compiled_spread = jax.jit(spread)


def embeddings(images, seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    return (1.0 + 3.0 * rng.normal(size=(images, width))).astype(np.float32)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def batches(*arrays):
    """Of BATCH images each, the last one filled up with NaN, with a mask of those that count."""
    for start in range(0, len(arrays[0]), BATCH):
        rows = [x[start : start + BATCH] for x in arrays]
        missing = BATCH - len(rows[0])
        padded = [np.pad(x, [(0, missing), (0, 0)], constant_values=np.nan) for x in rows]
        yield *padded, np.arange(BATCH) < len(rows[0])


def merged(state, *arrays):
    parts = [to_host(state(*batch)) for batch in batches(*arrays)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


@pytest.mark.parametrize("images", [1, 8, 21])
def test_alignment_is_the_mean_squared_distance(images):
    a, b = embeddings(images), embeddings(images, seed=1)
    wanted = np.mean([np.sum((x - y) ** 2) for x, y in zip(unit(a), unit(b), strict=True)])
    assert merged(compiled_alignment, a, b).compute()[""] == pytest.approx(wanted, rel=1e-6)


def test_alignment_of_equal_opposite_and_orthogonal_views():
    x = np.eye(WIDTH, dtype=np.float32)
    for other, wanted in ((7.0 * x, 0.0), (-2.0 * x, 4.0), (np.roll(x, 1, axis=0), 2.0)):
        value = merged(compiled_alignment, x, other).compute()[""]
        assert value == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("images", [2, 8, 21])
def test_uniformity_is_over_the_pairs_of_each_batch(images):
    x = embeddings(images)
    terms = []
    for start in range(0, images, BATCH):
        rows = unit(x)[start : start + BATCH]
        terms += [
            np.exp(-2 * np.sum((rows[i] - rows[j]) ** 2))
            for i in range(len(rows))
            for j in range(i)
        ]
    state = merged(compiled_uniformity, x)
    assert state.pairs == len(terms)
    assert state.compute()[""] == pytest.approx(np.log(np.mean(terms)), rel=1e-5)


def test_uniformity_of_a_point_of_opposite_points_and_of_an_orthonormal_set():
    axes = np.eye(WIDTH, dtype=np.float32)
    opposite = np.stack([2.0 * axes[0], -0.5 * axes[0]])
    for x, wanted in ((np.ones_like(axes), 0.0), (opposite, -8.0), (3.0 * axes, -4.0)):
        value = merged(compiled_uniformity, x).compute()[""]
        assert value == pytest.approx(wanted, abs=1e-5)
    assert np.isnan(merged(compiled_uniformity, axes[:1]).compute()[""])  # no pair


@pytest.mark.parametrize("images", [1, 8, 77])
def test_spread_is_that_of_the_singular_values_of_all(images):
    x = embeddings(images)
    points = unit(x)
    centred = points - points.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    shares = singular[singular > 1e-6] / max(singular.sum(), 1e-6)
    numbers = merged(compiled_spread, x).compute()
    entropy = -np.sum(shares * np.log(shares))
    assert numbers["embedding_rank"] == pytest.approx(np.exp(entropy), rel=1e-4)
    std = np.sqrt(WIDTH) * np.mean(points.std(axis=0))
    assert numbers["embedding_std"] == pytest.approx(std, rel=1e-4, abs=3e-4)


def test_a_narrow_cone_keeps_its_directions():
    """Second moments of 1, whose rounding would hide variances of 1e-6 but for the centring."""
    x = 1.0 + 0.01 * embeddings(512, width=32)
    singular = np.linalg.svd(unit(x) - unit(x).mean(axis=0), compute_uv=False)[:-1]
    shares = singular / singular.sum()
    wanted = np.exp(-np.sum(shares * np.log(shares)))
    state = to_host(compiled_spread(x[:256])).merge(to_host(compiled_spread(x[256:])))
    assert state.compute()["embedding_rank"] == pytest.approx(wanted, rel=1e-3)


def test_spread_of_an_orthonormal_set_with_both_signs_is_full():
    """Without the other sign its mean is not 0, and one dimension is lost to it."""
    axes = np.eye(WIDTH, dtype=np.float32)
    both = merged(compiled_spread, np.concatenate([3.0 * axes, -axes])).compute()
    assert both["embedding_rank"] == pytest.approx(WIDTH, rel=1e-5)
    assert both["embedding_std"] == pytest.approx(1.0, rel=1e-5)
    one = merged(compiled_spread, axes).compute()
    assert one["embedding_rank"] == pytest.approx(WIDTH - 1, rel=1e-5)
    assert one["embedding_std"] == pytest.approx(np.sqrt(1 - 1 / WIDTH), rel=1e-5)


def test_collapse_to_a_line_and_to_a_point():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=64)
    signs = rng.choice([-1.0, 1.0], 512)
    line = compiled_spread((signs[:, None] * direction).astype(np.float32)).compute()
    assert line["embedding_rank"] == pytest.approx(1.0, abs=1e-6)
    assert 0.5 < line["embedding_std"] < 1.0
    scales = rng.uniform(0.1, 10.0, 512)  # of no matter on the sphere
    point = compiled_spread((scales[:, None] * direction).astype(np.float32)).compute()
    assert point["embedding_rank"] == 1.0
    assert point["embedding_std"] == pytest.approx(0.0, abs=3e-4)


def test_no_images_and_broken_ones_are_nan():
    x, everything = np.ones((BATCH, WIDTH), np.float32), np.ones(BATCH, bool)
    broken = x.copy()
    broken[3] = np.nan
    states: list[Metric] = []
    for y, valid in ((x, ~everything), (broken, everything)):
        states += [
            compiled_alignment(x, y, valid),
            compiled_uniformity(y, valid),
            compiled_spread(y, valid),
        ]
    for state in states:
        numbers = state.compute()
        assert all(np.isnan(value) for value in numbers.values()), state
        assert all(type(value) is float for value in numbers.values())


def test_a_zero_vector_is_at_the_centre():
    axes = np.eye(WIDTH, dtype=np.float32)[:3]
    x = axes * np.array([[0.0], [1.0], [1.0]], np.float32)
    assert merged(compiled_alignment, x, axes).compute()[""] == pytest.approx(1 / 3)
    wanted = np.log((2 * np.exp(-2.0) + np.exp(-4.0)) / 3)
    assert merged(compiled_uniformity, x).compute()[""] == pytest.approx(wanted)


def test_eight_devices_give_the_states_of_one():
    x, y = embeddings(16), embeddings(16, seed=1)
    valid = np.arange(16) < 13
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put((x, y, valid), NamedSharding(mesh, PartitionSpec("data")))

    @jax.jit
    def states(x, y, valid):
        return alignment(x, y, valid), uniformity(x, valid), spread(x, valid)

    one, eight = states(x, y, valid), states(*sharded)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    assert int(eight[1].pairs) == 13 * 12 // 2


def test_shapes_that_do_not_fit_are_named():
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(3, 3\) must come from the same images"):
        alignment(x, x[:3])
    for metric in (uniformity, spread):
        with pytest.raises(ValueError, match="one entry per example"):
            metric(x, jnp.ones(3, bool))


# Nearest neighbours.


def clouds(images, seed, classes=4):
    """Classes that overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    centres = np.random.default_rng(0).normal(size=(classes, 6))
    points = centres[labels] + 0.9 * rng.normal(size=(images, 6))
    return points.astype(np.float32), labels.astype(np.int32)


def by_loop(bank, bank_labels, queries, labels, *, classes, k, temperature):
    right = 0
    for query, label in zip(unit(queries), labels, strict=True):
        cosines = unit(bank) @ query
        votes = np.zeros(classes)
        for i in np.argsort(-cosines)[:k]:
            votes[bank_labels[i]] += np.exp(cosines[i] / temperature)
        right += int(np.argmax(votes) == label)
    return right / len(labels)


@pytest.mark.parametrize("batch", [7, 64])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (9, 0.1), (60, 0.5)])
def test_neighbours_vote_as_in_a_loop(k, temperature, batch):
    data = (*clouds(60, 1), *clouds(40, 2))
    options = {"classes": 4, "k": k, "temperature": temperature}
    wanted = by_loop(*data, **options)
    assert 0.3 < wanted < 0.9
    assert knn_accuracy(*data, **options, batch=batch) == pytest.approx(wanted)


def test_neighbours_are_those_of_scikit_learn():
    bank, bank_labels, queries, labels = (*clouds(60, 3), *clouds(40, 4))

    def weights(distances):
        return np.exp((1 - distances) / 0.07)

    peer = KNeighborsClassifier(9, metric="cosine", weights=weights)  # pyright: ignore
    wanted = peer.fit(bank, bank_labels).score(queries, labels)
    actual = knn_accuracy(bank, bank_labels, queries, labels, classes=4, k=9, temperature=0.07)
    assert actual == pytest.approx(wanted)


def test_the_temperature_decides_whether_the_nearest_or_the_many_win():
    angles = np.array([0.1, 0.5, 0.6])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels, query = np.array([0, 1, 1]), np.array([[1.0, 0.0]])
    for temperature, nearest_wins in ((1e-4, 1.0), (0.01, 1.0), (10.0, 0.0)):
        score = knn_accuracy(
            jnp.asarray(bank, jnp.float32),
            jnp.asarray(labels),
            jnp.asarray(5.0 * query, jnp.float32),
            jnp.array([0]),
            classes=2,
            k=3,
            temperature=temperature,
        )
        assert score == nearest_wins


def test_a_broken_query_is_wrong():
    points, labels = clouds(8, 5)
    everything = {"classes": 4, "k": 1}
    assert knn_accuracy(points, labels, points, labels, **everything) == 1.0
    broken = points.copy()
    broken[2] = np.nan
    assert knn_accuracy(points, labels, broken, labels, **everything) == 7 / 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 9}, "k=9 neighbours in a bank of 8: take 1 to 8"),
        ({"k": 0}, "k=0 neighbours"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"classes": 3}, r"labels of bank must lie in \[0, 3\)"),
        ({"labels": np.full(8, -1)}, r"labels of queries must lie in \[0, 4\)"),
        ({"labels": np.zeros(7, int)}, r"a row for each label, \(7,\)"),
        ({"queries": np.ones((8, 5))}, "must come from one network"),
        (
            {"queries": np.ones((0, 6)), "labels": np.ones(0, int)},
            "have at least one row",
        ),
    ],
)
def test_what_cannot_be_asked_of_neighbours_is_named(change, message):
    points, _ = clouds(8, 6)
    labels = np.arange(8) % 4
    asked = {"bank": points, "bank_labels": labels, "queries": points, "labels": labels}
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**{**asked, "classes": 4, "k": 2, **change})
