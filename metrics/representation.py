"""Quality of embeddings: how they spread over the sphere, and which are neighbours.

Embeddings are [batch, d] and are brought to unit length; a zero vector stays at the centre.
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer
from scipy.special import entr

from opsin.metrics.state import Mean, Metric, Sum, check_countable, valid_or_all
from opsin.ops.vectors import unit_length
from opsin.ranges import Count, Positive


def alignment(
    a: Float[Array, "batch d"],
    b: Float[Array, "batch d"],
    valid: Bool[Array, "batch"] | None = None,
) -> Mean:
    """Mean of ‖a − b‖² for two views of an image, in [0, 4]: 0 if all views are at one point.

    Wang & Isola, 2020, arXiv:2005.10242, section 4.1.1, with α = 2.

    Args:
        a: embeddings of one view.
        b: embeddings of another view of the same images.
        valid: images that count.

    Raises:
        ValueError: shapes that do not fit.
    """
    if a.shape != b.shape:
        raise ValueError(f"views {a.shape} and {b.shape} must come from the same images")
    apart = unit_length(a) - unit_length(b)
    return Mean.from_values(jnp.sum(jnp.square(apart), axis=-1), valid)


@flax.struct.dataclass
class Uniformity(Metric):
    """Pairs of images of the same batch, and the sum of e^{−2 ‖x − y‖²} over them."""

    total: Sum  # [], float32
    pairs: Sum  # [], int32

    def compute(self) -> dict[str, float]:
        """log of the mean over the pairs, in [−8, 0]; NaN without pairs."""
        pairs = int(self.pairs)
        return {"": float(np.log(self.total / pairs)) if pairs else float("nan")}


def uniformity(
    embeddings: Float[Array, "batch d"], valid: Bool[Array, "batch"] | None = None
) -> Uniformity:
    """log E e^{−2 ‖x − y‖²} over pairs of images: the lower, the more evenly they are spread.

    Wang & Isola, 2020, arXiv:2005.10242, section 4.1.2, with t = 2. It is 0 if all are at one
    point, and nears −4 for a uniform distribution as d grows. Pairs are those within a batch (under
    ``pmap``, within that of a device), each once: over a set it is the mean over all pairs that
    fell into one batch.

    Args:
        embeddings: at most 65,536, whose pairs int32 can count.
        valid: images that count.

    Raises:
        ValueError: a mask of another shape, or more pairs.
    """
    valid = valid_or_all(valid, embeddings.shape[:1])
    check_countable((len(embeddings) * (len(embeddings) - 1) // 2,))
    points = unit_length(embeddings)
    lengths = jnp.sum(jnp.square(points), axis=1)  # 1, or 0 of a zero vector
    products = jnp.matmul(points, points.T, precision="highest")
    squares = jnp.maximum(lengths[:, None] + lengths - 2.0 * products, 0.0)
    pairs = jnp.triu(valid[:, None] & valid, k=1)
    return Uniformity(
        total=jnp.sum(jnp.where(pairs, jnp.exp(-2.0 * squares), 0.0)),
        pairs=jnp.sum(pairs, dtype=jnp.int32),
    )


@flax.struct.dataclass
class Spread(Metric):
    """Sums of embeddings and of their products: how many directions they take up."""

    total: Sum  # [d], float32
    products: Sum  # [d, d], float32
    count: Sum  # [], int32

    def compute(self) -> dict[str, float]:
        """``embedding_rank``, in [1, d], and ``embedding_std``, in [0, 1].

        Both are NaN where there are no embeddings or some are not finite.

        The rank is exp(H) of the entropy H of σ / Σσ for the singular values σ of the matrix of
        embeddings, [images, d], less their mean (Roy & Vetterli, 2007, "The effective rank: a
        measure of effective dimensionality", definition 1): directions as if all took equal part.
        It is 1 for points on a line, and for a single point, which has none. The other number tells
        these apart: √d times the mean over the dimensions of the standard deviation, 1 if
        they all vary alike around 0 (as of points spread evenly over the sphere) and 0 for a
        single point (Chen & He, 2021, arXiv:2011.10566, section 4.1).

        Sums of float32 do not tell all variances from 0: below 3e-6 of the largest, or 1e-7 of the
        squared length of the mean, they are 0 in the rank. The standard deviation is exact to
        about 3e-4.
        """
        count = int(self.count) or np.nan
        mean = np.asarray(self.total, np.float64) / count
        covariance = np.asarray(self.products, np.float64) / count - np.outer(mean, mean)
        if not np.isfinite(covariance).all():
            return {"embedding_rank": np.nan, "embedding_std": np.nan}
        variances = np.linalg.eigvalsh(covariance)
        least = 3e-6 * variances[-1] + 1e-7 * (mean @ mean)
        singular = np.sqrt(np.where(variances < least, 0.0, variances))
        shares = singular / (singular.sum() or 1.0)
        deviations = np.sqrt(np.maximum(np.diagonal(covariance), 0.0))
        return {
            "embedding_rank": float(np.exp(entr(shares).sum())),
            "embedding_std": float(deviations.mean() * np.sqrt(len(mean))),
        }


def spread(
    embeddings: Float[Array, "batch d"], valid: Bool[Array, "batch"] | None = None
) -> Spread:
    """How many directions embeddings take up, and how much they vary: see ``Spread.compute``.

    Args:
        embeddings: of images; the state is [d, d].
        valid: images that count.

    Raises:
        ValueError: a mask of another shape.
    """
    valid = valid_or_all(valid, embeddings.shape[:1])
    points = jnp.where(valid[:, None], unit_length(embeddings), 0.0)
    total, count = jnp.sum(points, axis=0), jnp.sum(valid, dtype=jnp.int32)
    some = jnp.maximum(count, 1)
    # About the mean of the batch, where the sum of the products has the least to round.
    centred = jnp.where(valid[:, None], points - total / some, 0.0)
    products = jnp.matmul(centred.T, centred, precision="highest")
    return Spread(total, products + jnp.outer(total, total) / some, count)


def knn_accuracy(
    bank: Float[Array | np.ndarray, "images d"],
    bank_labels: Integer[Array | np.ndarray, "images"],
    queries: Float[Array | np.ndarray, "queries d"],
    labels: Integer[Array | np.ndarray, "queries"],
    *,
    classes: Count,
    k: Count = 200,
    temperature: Positive = 0.1,
    batch: Count = 256,
) -> float:
    """Share of queries whose class is that of most of their nearest neighbours, by weight.

    Wu et al., 2018, arXiv:1805.01978, section 3.4: the k embeddings of the bank with the largest
    cosine s vote for their class with weight e^{s/τ}. Of equally near ones the first of the bank
    are taken, of equal votes the lower class. A query never counts as right if there is a NaN among
    the votes.

    Args:
        bank: embeddings of training images.
        bank_labels: their classes.
        queries: embeddings of test images.
        labels: their classes.
        classes: how many there are.
        k: neighbours that vote.
        temperature: τ > 0.
        batch: queries whose cosines with the whole bank are in memory at a time.

    Raises:
        ValueError: shapes that do not fit, no queries, labels outside [0, classes), k below 1 or
            above the number of images in the bank, or a temperature that is not positive.
    """
    for name, points, of in (("bank", bank, bank_labels), ("queries", queries, labels)):
        if points.ndim != 2 or of.shape != points.shape[:1]:
            raise ValueError(f"{name} {points.shape} must have a row for each label, {of.shape}")
        if not len(points):
            raise ValueError(f"{name} must have at least one row")
        if np.min(of) < 0 or np.max(of) >= classes:
            raise ValueError(f"labels of {name} must lie in [0, {classes})")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank {bank.shape} and queries {queries.shape} must come from one network"
        )
    if not 1 <= k <= len(bank):
        raise ValueError(f"k={k} neighbours in a bank of {len(bank)}: take 1 to {len(bank)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    found = _neighbours_vote(bank, bank_labels, queries, temperature, classes, k, batch)
    return float(np.mean(np.asarray(found) == np.asarray(labels)))


@partial(jax.jit, static_argnames=("classes", "k", "batch"))
def _neighbours_vote(
    bank: Array,
    bank_labels: Array,
    queries: Array,
    temperature: float,
    classes: int,
    k: int,
    batch: int,
) -> Array:
    """The class of each query, or −1."""
    bank = unit_length(bank)

    def vote(query: Array) -> Array:
        cosines, nearest = jax.lax.top_k(jnp.matmul(bank, query, precision="highest"), k)
        weights = jnp.exp((cosines - cosines[0]) / temperature)  # a common factor keeps them finite
        votes = jnp.zeros(classes).at[bank_labels[nearest]].add(weights)
        return jnp.where(jnp.isnan(votes).any(), -1, jnp.argmax(votes))

    return jax.lax.map(vote, unit_length(queries), batch_size=batch)
