"""Quality of generators: how the features of made images lie among those of real ones.

Host functions in float64, of whole sets: they do not add up over batches. Features are [samples,
features], one row an image, from a trained classifier (``train.extractor``). Numbers compare only
where extractor, both numbers of samples and the real images are the same; a second set of real
images in place of the made ones gives the best that a generator can reach.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Num
from scipy.spatial.distance import cdist
from scipy.special import rel_entr

from opsin.ranges import Count

Real = Num[np.ndarray, "real features"]
Made = Num[np.ndarray, "made features"]

FEWEST = 6
"""Images of either set that all measures can be made of: the fifth neighbour of one is another."""


def generator_metrics(
    extractor: str,
    real: Real,
    made: Made,
    probabilities: Float[Array | np.ndarray, "made classes"],
) -> dict[str, float]:
    """All measures of this file, by the names that they have in logs and tables.

    ``fd_<extractor>``, ``kd_<extractor>`` and ``is_<extractor>`` are the Fréchet and kernel
    distance and the Inception Score; ``precision``, ``recall``, ``density`` and ``coverage`` those
    of ``neighbour_metrics``; ``samples`` and ``reference_samples`` the numbers of made and real
    images.

    Args:
        extractor: short name of the network, such as "lenet". The field's own names, FID, KID and
            IS, belong to the Inception network alone.
        real: features of real images.
        made: features of made images.
        probabilities: of the classes, for the made images, by the same network.

    Raises:
        ValueError: as the functions below, or probabilities of other images than the features.
    """
    if len(probabilities) != len(made):
        raise ValueError(f"{len(probabilities)} rows of probabilities for {len(made)} made images")
    return {
        f"fd_{extractor}": frechet_distance(real, made),
        f"kd_{extractor}": kernel_distance(real, made),
        **neighbour_metrics(real, made),
        f"is_{extractor}": inception_score(probabilities),
        "samples": float(len(made)),
        "reference_samples": float(len(real)),
    }


def frechet_distance(real: Real, made: Made) -> float:
    """Squared Fréchet distance of the Gaussians with the features' means and covariances; ≥ 0.

    Heusel et al., 2017, arXiv:1706.08500, eq. 6: ‖m₁ − m₂‖² + tr(C₁ + C₂ − 2 (C₁ C₂)^½). The
    covariances are unbiased, the distance is not: it grows as either set gets smaller.

    With centred features A / √(n − 1) the covariance is AᵀA, and the trace of the root is the sum
    of the singular values of A Bᵀ: nothing is squared or inverted, so sets with fewer samples than
    features are as good as any.

    Raises:
        ValueError: fewer than two samples, features of different widths, or not finite.
    """
    pair = _check_pair(real, made, at_least=2)
    means = [features.mean(axis=0) for features in pair]
    # The triangular factor has the same AᵀA, and no more rows than there are features.
    roots: list[Any] = [
        np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r")
        for features, mean in zip(pair, means, strict=True)
    ]
    singular = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False)
    apart = np.sum((means[0] - means[1]) ** 2)
    spread = np.sum(roots[0] ** 2) + np.sum(roots[1] ** 2) - 2 * np.sum(singular)
    return float(apart + max(spread, 0.0))  # rounding may leave it below


def kernel_distance(real: Real, made: Made, *, chunk: Count = 256) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (xᵀy / features + 1)³.

    Bińkowski et al., 2018, arXiv:1801.01401, their Kernel Inception Distance. The estimate is that
    of all samples at once, where the paper averages it over subsets: the expectation is the same,
    which no number of samples changes, and the variance is smaller. It can be negative; that of a
    set and itself is.

    Args:
        real: features of real images.
        made: features of made images.
        chunk: rows of the kernel matrix in memory at a time.

    Raises:
        ValueError: fewer than two samples, features of different widths, or not finite.
    """
    real, made = _check_pair(real, made, at_least=2)

    def kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
        sums = []
        for start in range(0, len(a), chunk):
            base = a[start : start + chunk] @ b.T / a.shape[1] + 1
            sums.append(np.sum(base * base * base))
        return float(np.sum(sums))

    def within(a: np.ndarray) -> float:
        own = (np.sum(a * a, axis=1) / a.shape[1] + 1) ** 3
        return (kernel_sum(a, a) - float(np.sum(own))) / (len(a) * (len(a) - 1))

    return within(real) + within(made) - 2 * kernel_sum(real, made) / (len(real) * len(made))


def neighbour_metrics(
    real: Real, made: Made, *, k: Count = 3, density_k: Count = 5, chunk: Count = 256
) -> dict[str, float]:
    """Improved precision and recall, density and coverage.

    A set is surrounded by balls, one a sample, that reach to its k-th nearest neighbour in the set;
    what lies on the surface is inside.

    - ``precision``: share of made samples inside a ball of a real one; ``recall``: share of real
      samples inside a ball of a made one. Kynkäänniemi et al., 2019, arXiv:1904.06991, eqs. 1
      and 2.
    - ``density``: balls of real samples around a made one, on average, over ``density_k``: 1 is as
      dense as the real set, and more is possible. ``coverage``: share of balls of real samples with
      a made one inside. Naeem et al., 2020, arXiv:2002.09797, section 3. Their code leaves the
      surface out, which differs where features repeat.

    Distances are sums of squared differences, so that nothing cancels. Three times
    10,000 × 10,000 of them with 84 features take a quarter of a minute on one core and 60 MB.

    Args:
        real: features of real images.
        made: features of made images.
        k: neighbours for precision and recall.
        density_k: neighbours for density and coverage.
        chunk: samples whose distances to all others are in memory at a time.

    Raises:
        ValueError: a k below 1 or fewer than k + 1 samples, features of different widths, or not
            finite.
    """
    if min(k, density_k) < 1:
        raise ValueError(f"a k-th neighbour needs k of at least 1, got {min(k, density_k)}")
    real, made = _check_pair(real, made, at_least=max(k, density_k) + 1)
    reach, density_reach = _reach(real, (k, density_k), chunk)
    (made_reach,) = _reach(made, (k,), chunk)
    precise, balls = np.zeros(len(made)), np.zeros(len(made))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, squares in _squared_distances(made, real, chunk):
        precise[rows] = np.any(squares <= reach, axis=1)
        recalled |= np.any(squares <= made_reach[rows, None], axis=0)
        near = squares <= density_reach
        balls[rows] = np.sum(near, axis=1)
        covered |= np.any(near, axis=0)
    return {
        "precision": float(np.mean(precise)),
        "recall": float(np.mean(recalled)),
        "density": float(np.mean(balls) / density_k),
        "coverage": float(np.mean(covered)),
    }


def _reach(features: np.ndarray, ks: tuple[int, ...], chunk: int) -> np.ndarray:
    """Squared distance of each sample to its k-th nearest other one: [ks, samples]."""
    reach = np.empty((len(ks), len(features)))
    for rows, squares in _squared_distances(features, features, chunk):
        # The nearest is the sample itself, or one that is the same.
        reach[:, rows] = np.partition(squares, ks, axis=1)[:, ks].T
    return reach


def _squared_distances(
    a: np.ndarray, b: np.ndarray, chunk: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of ``a``, and their squared distances to all of ``b``."""
    for start in range(0, len(a), chunk):
        rows = slice(start, start + chunk)
        yield rows, cdist(a[rows], b, "sqeuclidean")


def inception_score(probabilities: Float[Array | np.ndarray, "samples classes"]) -> float:
    """exp of the mean of KL(p(y | x) ‖ p(y)), for the probabilities of any classifier.

    Salimans et al., 2016, arXiv:1606.03498, section 4; over all samples, where the paper averages
    over ten parts. From 1, where all images get the same probabilities, to the number of classes,
    where each gets one class for certain and all classes are equally frequent.

    Raises:
        ValueError: rows that are no probabilities (they must sum to 1 within 1e-3), or none.
    """
    rows = np.asarray(probabilities, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"probabilities must be [samples, classes], got {list(rows.shape)}")
    sums = rows.sum(axis=1, keepdims=True)
    # Written so that a NaN fails.
    if not (np.all(rows >= 0) and np.all(abs(sums - 1) <= 1e-3)):
        raise ValueError("probabilities must not be negative and must sum to 1 in each row")
    rows = rows / sums  # float32 leaves them a little off
    return float(np.exp(np.mean(np.sum(rel_entr(rows, rows.mean(axis=0)), axis=1))))


def _check_pair(real: Any, made: Any, *, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64; raises ValueError for what cannot be compared."""
    pair = []
    for name, features in (("real", real), ("made", made)):
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(
                f"{name} features must be [samples, features], got {list(features.shape)}"
            )
        if len(features) < at_least:
            raise ValueError(
                f"at least {at_least} samples are needed, but there are {len(features)} {name} ones"
            )
        if not np.isfinite(features).all():
            raise ValueError(f"{name} features have a NaN or an infinity")
        pair.append(features)
    if pair[0].shape[1] != pair[1].shape[1]:
        raise ValueError(
            f"real features have {pair[0].shape[1]} columns and made ones {pair[1].shape[1]}: "
            "they are not from the same network"
        )
    return pair[0], pair[1]
