"""Distances against closed forms and naive loops; neighbours against a naive double loop."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.metrics.generative import (
    frechet_distance,
    generator_metrics,
    inception_score,
    kernel_distance,
    neighbour_metrics,
)

NEIGHBOURS = ("precision", "recall", "density", "coverage")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def with_moments(mean, covariance, samples=50, seed=0):
    """Features whose mean and unbiased covariance are exactly these."""
    white = normal(seed, samples, len(mean))
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T).reshape(2 * (len(mean),)))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def random_covariance(seed, size):
    root = normal(seed, size, size)
    return root @ root.T + 0.1 * np.eye(size)


def frechet_of_moments(mean, covariance, other_mean, other_covariance):
    """From features that have them."""
    mean, other_mean = np.asarray(mean, float), np.asarray(other_mean, float)
    return frechet_distance(
        with_moments(mean, covariance, samples=40),
        with_moments(other_mean, other_covariance, samples=60, seed=1),
    )


def test_frechet_in_one_dimension():
    # (m₁ − m₂)² + (s₁ − s₂)²
    value = frechet_of_moments([1.0], np.array([[4.0]]), [-2.0], np.array([[0.25]]))
    np.testing.assert_allclose(value, 9 + 1.5**2, rtol=1e-12)


def test_frechet_of_diagonal_covariances():
    s, t = np.array([1.0, 2.0, 5.0]), np.array([0.5, 2.0, 7.0])
    value = frechet_of_moments([0, 1, 2], np.diag(s**2), [0, 3, 2], np.diag(t**2))
    np.testing.assert_allclose(value, 4 + np.sum((s - t) ** 2), rtol=1e-12)


@pytest.mark.parametrize("size", [2, 7])
def test_frechet_of_full_covariances_is_that_of_the_matrix_root(size):
    m, n = normal(0, 2, size)
    c, d = random_covariance(1, size), random_covariance(2, size)
    root = scipy.linalg.sqrtm(c @ d)
    expected = np.sum((m - n) ** 2) + np.trace(c + d - 2 * np.real(root))
    np.testing.assert_allclose(frechet_of_moments(m, c, n, d), expected, rtol=1e-10)


def test_frechet_where_covariances_do_not_have_full_rank():
    # Lines in two directions of the plane, at an angle a: the root has trace s₁ s₂ |cos a|.
    a, s, t = 0.7, 3.0, 2.0
    first, second = np.array([1.0, 0.0]), np.array([np.cos(a), np.sin(a)])
    expected = s**2 + t**2 - 2 * s * t * np.cos(a)
    steps = np.linspace(-1, 1, 11)[:, None] / np.std(np.linspace(-1, 1, 11), ddof=1)
    value = frechet_distance(s * steps * first, t * steps * second)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_frechet_of_fewer_samples_than_features():
    real, made = normal(0, 5, 30), normal(1, 4, 30) + 1
    # All samples lie in a space of at most 9 dimensions: there, a small ridge makes no difference.
    basis = np.linalg.qr(np.concatenate([real, made]).T)[0]
    moments = [
        (x.mean(axis=0), np.cov(x.T) + 1e-14 * np.eye(9)) for x in (real @ basis, made @ basis)
    ]
    (m, c), (n, d) = moments
    values = np.linalg.eigvals(c @ d)
    expected = np.sum((m - n) ** 2) + np.trace(c + d) - 2 * np.sum(np.sqrt(np.abs(values)))
    np.testing.assert_allclose(frechet_distance(real, made), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(200, 8), (6, 40)])
def test_a_set_and_itself(shape):
    features = 10 + normal(0, *shape)
    shuffled = np.random.default_rng(0).permutation(features)
    scale = np.sum(np.var(features, axis=0))
    assert 0 <= frechet_distance(features, shuffled) < 1e-12 * scale
    numbers = neighbour_metrics(features, shuffled)
    assert (numbers["precision"], numbers["recall"], numbers["coverage"]) == (1, 1, 1)
    assert kernel_distance(features, features) < 0  # unbiased: the copies are closer than draws are


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(-1e3, 1e3))
def test_distances_and_neighbours_do_not_see_where_the_features_are(seed, offset):
    rng = np.random.default_rng(seed)
    real, made = rng.normal(size=(20, 5)), 0.7 * rng.normal(size=(15, 5)) + 0.3
    made[:3] = real[:3]
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    distance = frechet_distance(real, made)
    assert distance >= 0
    # A reflection of the axes is exact, so that not even ties can change.
    turned, flipped = (real @ turn, made @ turn), (-real[:, ::-1], -made[:, ::-1])
    moved = (real + offset, made + offset)
    for other in (turned, flipped, moved, (made, real)):
        np.testing.assert_allclose(frechet_distance(*other), distance, rtol=1e-8)
    value = kernel_distance(real, made)
    np.testing.assert_allclose(kernel_distance(*turned), value, rtol=1e-8, atol=1e-10)
    numbers = neighbour_metrics(real, made)
    for other in (turned, moved):
        assert neighbour_metrics(*other) == pytest.approx(numbers, abs=1e-9)
    assert neighbour_metrics(*flipped) == numbers
    swapped = neighbour_metrics(made, real)
    assert (swapped["precision"], swapped["recall"]) == (numbers["recall"], numbers["precision"])


def test_small_features_far_away_keep_their_digits():
    # Steps of 1/64 around 4096 are exact in float32; their squares are not.
    rng = np.random.default_rng(0)
    near = [rng.integers(-64, 64, (n, 6)) / 64 for n in (40, 50)]
    far = [(4096 + features).astype(np.float32) for features in near]
    np.testing.assert_allclose(frechet_distance(*far), frechet_distance(*near), rtol=1e-9)
    assert neighbour_metrics(*far) == neighbour_metrics(*near)
    as_double = kernel_distance(*(features.astype(np.float64) for features in far))
    assert kernel_distance(*far) == as_double


def naive_kernel_distance(real, made):
    def kernel(x, y):
        total = 0.0
        for a, b in zip(x, y, strict=True):
            total += a * b
        return (total / len(x) + 1) ** 3

    def within(a):
        pairs = [kernel(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(x, y) for x in real for y in made]
    return within(real) + within(made) - 2 * sum(across) / len(across)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_kernel_distance_is_that_of_the_loop(chunk):
    real, made = normal(0, 7, 4), normal(1, 5, 4) + 0.5
    value = kernel_distance(real, made, chunk=chunk)
    np.testing.assert_allclose(value, naive_kernel_distance(real, made), rtol=1e-12)


def test_kernel_distance_is_unbiased_exactly():
    # Uniform on three points each: all samples of two are equally likely.
    p, q = normal(0, 3, 2), normal(1, 3, 2) + 1
    samples = list(itertools.product(range(3), repeat=2))
    estimates = [kernel_distance(p[list(i)], q[list(j)]) for i in samples for j in samples]

    def mean_kernel(a, b):
        return np.mean((a @ b.T / 2 + 1) ** 3)

    expected = mean_kernel(p, p) + mean_kernel(q, q) - 2 * mean_kernel(p, q)
    np.testing.assert_allclose(np.mean(estimates), expected, rtol=1e-12)
    assert np.min(estimates) < expected < np.max(estimates)


def naive_neighbours(real, made, k, density_k):
    def radius(features, i, k):
        others = [np.linalg.norm(features[i] - x) for j, x in enumerate(features) if j != i]
        return sorted(others)[k - 1]

    def inside(point, features, k):
        """Which balls of the features the point lies in."""
        return [np.linalg.norm(point - x) <= radius(features, i, k) for i, x in enumerate(features)]

    return {
        "precision": np.mean([any(inside(x, real, k)) for x in made]),
        "recall": np.mean([any(inside(x, made, k)) for x in real]),
        "density": np.mean([sum(inside(x, real, density_k)) for x in made]) / density_k,
        "coverage": np.mean(np.any([inside(x, real, density_k) for x in made], axis=0)),
    }


@pytest.mark.parametrize(("k", "density_k"), [(1, 2), (3, 5), (4, 1)])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_neighbours_are_those_of_the_loop(k, density_k, chunk):
    real = normal(0, 17, 3)
    made = np.concatenate([real[:4], 0.5 * normal(1, 9, 3) + 0.8])
    found = neighbour_metrics(real, made, k=k, density_k=density_k, chunk=chunk)
    expected = naive_neighbours(real, made, k, density_k)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 < min(expected.values()) < 1
    assert len({expected["precision"], expected["recall"], expected["coverage"]}) > 1


def test_neighbours_of_integers_are_those_of_the_loop():
    # Many distances are equal, and many points are the same.
    rng = np.random.default_rng(0)
    real, made = rng.integers(0, 4, (25, 2)), rng.integers(2, 6, (20, 2))
    assert neighbour_metrics(real, made) == pytest.approx(naive_neighbours(real, made, 3, 5))


def line(*positions):
    return np.array(positions, np.float64)[:, None]


def test_made_samples_that_are_some_of_the_real_ones():
    real = line(0, 1, 2, 3, 100, 101, 102, 103)
    numbers = neighbour_metrics(real, real[:4], k=1, density_k=1)
    # Balls of radius 1: a made sample at an end lies in two, one between in three.
    assert numbers == {"precision": 1, "recall": 0.5, "density": 2.5, "coverage": 0.5}


def test_made_samples_around_the_real_ones():
    real, made = line(0, 1, 2, 3), line(-50, 0.5, 1.5, 50)
    # Radii of made samples: 50.5, 1, 1, 48.5, which reach all real ones; of real ones: 1.
    assert neighbour_metrics(real, made, k=1, density_k=1) == {
        "precision": 0.5,
        "recall": 1,
        "density": (0 + 2 + 2 + 0) / 4,
        "coverage": 0.75,
    }


def test_made_samples_elsewhere():
    numbers = neighbour_metrics(normal(0, 20, 3), normal(1, 20, 3) + 100)
    assert numbers == dict.fromkeys(NEIGHBOURS, 0.0)


def test_one_made_image_many_times():
    real = normal(0, 30, 2)
    made = np.repeat(real[:1], 10, axis=0)
    numbers = neighbour_metrics(real, made, density_k=3)
    assert numbers["precision"] == 1
    assert numbers["recall"] == 1 / 30  # its own ball has no size
    assert numbers["density"] >= 1 / 3
    assert numbers["coverage"] == pytest.approx(3 * numbers["density"] / 30)


def test_an_outlier_among_the_real_ones_raises_precision_but_hardly_density():
    # What density was made for (Naeem et al., 2020, Fig. 1).
    real = np.concatenate([normal(0, 50, 2), [[60.0, 0.0]]])
    made = normal(1, 50, 2) + np.array([30, 0])
    numbers = neighbour_metrics(real, made)
    assert numbers["precision"] == 1
    assert numbers["density"] == 1 / 5
    assert numbers["coverage"] == 1 / 51


def test_memory_grows_with_one_side_only():
    features = normal(0, 3000, 4)
    tracemalloc.start()
    neighbour_metrics(features, features)
    kernel_distance(features, features)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 3000**2 / 2  # half of one matrix of all distances


def test_inception_score_closed_forms():
    assert inception_score(np.full((7, 4), 0.25)) == 1
    assert inception_score(np.tile([0.7, 0.2, 0.1], (5, 1))) == pytest.approx(1, rel=1e-12)
    assert inception_score(np.eye(10)[np.arange(50) % 10]) == pytest.approx(10, rel=1e-12)
    assert inception_score(np.eye(10)[np.arange(50) % 3 * 2]) == pytest.approx(
        np.exp(-(17 * np.log(17 / 50) * 2 + 16 * np.log(16 / 50)) / 50)
    )
    rows = np.array([[0.9, 0.1], [0.2, 0.8]])
    mean = rows.mean(axis=0)
    expected = np.exp(np.mean([np.sum(p * np.log(p / mean)) for p in rows]))
    assert inception_score(rows) == pytest.approx(expected, rel=1e-12)
    assert inception_score(rows.astype(np.float32)) == pytest.approx(expected, rel=1e-6)
    assert inception_score(rows * [[1.0005], [0.9995]]) == pytest.approx(expected, rel=1e-12)


def test_all_of_them_have_their_names():
    real, made = normal(0, 30, 4), normal(1, 20, 4)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    numbers = generator_metrics("lenet", real, made, probabilities)
    assert numbers == {
        "fd_lenet": frechet_distance(real, made),
        "kd_lenet": kernel_distance(real, made),
        **neighbour_metrics(real, made, k=3, density_k=5),
        "is_lenet": inception_score(probabilities),
        "samples": 20,
        "reference_samples": 30,
    }
    assert all(type(value) is float for value in numbers.values())
    assert not [name for name in numbers if "fid" in name or "inception" in name]


FEATURES = normal(0, 8, 3)
NOT_A_NUMBER = np.where(np.arange(24).reshape(8, 3) == 7, np.nan, FEATURES)


@pytest.mark.parametrize("function", [frechet_distance, kernel_distance, neighbour_metrics])
@pytest.mark.parametrize(
    ("real", "made", "words"),
    [
        (FEATURES[:1], FEATURES, "samples are needed, but there are 1 real ones"),
        (FEATURES, FEATURES[:1], "samples are needed, but there are 1 made ones"),
        (FEATURES, FEATURES[:, :2], "real features have 3 columns and made ones 2"),
        (FEATURES, NOT_A_NUMBER, "made features have a NaN"),
        (np.full((8, 3), np.inf), FEATURES, "real features have a NaN or an infinity"),
        (FEATURES[0], FEATURES, r"real features must be \[samples, features\], got \[3\]"),
        (FEATURES[:, :0], FEATURES, "must be"),
    ],
)
def test_features_that_cannot_be_compared(function, real, made, words):
    with pytest.raises(ValueError, match=words) as caught:
        function(real, made)
    assert len(str(caught.value).splitlines()) == 1


def test_neighbours_need_k_others():
    assert neighbour_metrics(FEATURES, FEATURES[:6])["coverage"] > 0
    with pytest.raises(ValueError, match="at least 6 samples are needed, but there are 5 made"):
        neighbour_metrics(FEATURES, FEATURES[:5])
    with pytest.raises(ValueError, match="k of at least 1, got 0"):
        neighbour_metrics(FEATURES, FEATURES, k=0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.ones((3, 2)), "sum to 1"),
        (np.array([[1.5, -0.5]]), "negative"),
        (np.full((3, 2), np.nan), "sum to 1"),
        (np.ones(3), r"\[samples, classes\], got \[3\]"),
        (np.ones((0, 3)), "must be"),
    ],
)
def test_rows_that_are_no_probabilities(rows, words):
    with pytest.raises(ValueError, match=words):
        inception_score(rows)


def test_probabilities_must_be_of_the_made_images():
    with pytest.raises(ValueError, match="7 rows of probabilities for 8 made images"):
        generator_metrics("lenet", FEATURES, FEATURES, np.full((7, 2), 0.5))
