"""Metrics of classification, from the logits and labels of one batch to a state that merges.

Axes before the classes are free (images, pixels). ``valid`` drops padding and ignored labels,
``labels != 255``: every valid label must lie in [0, classes). Logits with a NaN never count as
right.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Integer

from opsin.metrics.state import Collected, Mean, Metric, Rows, Sum, valid_or_all
from opsin.ops.labels import known, or_nan
from opsin.ranges import Count


def accuracy(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"] | Float[Array, "*batch classes"],
    valid: Bool[Array, "*batch"] | None = None,
) -> Mean:
    """Share of entries whose largest logit is that of the label; of equal ones the first counts.

    Soft labels (mixup) stand for their most probable class.

    Raises:
        ValueError: shapes that do not fit.
    """
    return top_k_accuracy(logits, labels, valid, k=1)


def top_k_accuracy(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"] | Float[Array, "*batch classes"],
    valid: Bool[Array, "*batch"] | None = None,
    *,
    k: Count = 5,
) -> Mean:
    """Share of entries whose label is among the k largest logits; 1 if k ≥ classes.

    Equal logits rank by class index, as in ``jnp.argmax`` and ``jax.lax.top_k``, so equal logits
    for all classes score as chance does and not 1. Soft labels stand for their most probable class.

    Raises:
        ValueError: shapes that do not fit.
    """
    return Mean.from_values(_correct(logits, labels, k), valid)


def negative_log_likelihood(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    valid: Bool[Array, "*batch"] | None = None,
) -> Mean:
    """Mean of −log p_y in nats, without smoothing or weights; NaN if a label is no class.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_labels(logits, labels)
    logits = logits.astype(jnp.float32)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Mean.from_values(jnp.where(known(labels, logits.shape[-1]), values, jnp.nan), valid)


@flax.struct.dataclass
class ConfusionMatrix(Metric):
    """How often each true class was taken for each class."""

    counts: Sum  # [true, predicted], int32

    def per_class(self) -> dict[str, np.ndarray]:
        """``precision``, ``recall``, ``f1`` [classes]: 0/0 is 0; a class that never occurs, NaN."""
        counts = np.asarray(self.counts, np.int64)
        hits, true, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)

        def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
            value = numerator / np.maximum(denominator, 1)  # no hits without a denominator: 0/0 = 0
            return np.where(true + predicted > 0, value, np.nan)

        return {
            "precision": ratio(hits, predicted),
            "recall": ratio(hits, true),
            "f1": ratio(2 * hits, true + predicted),
        }

    def compute(self) -> dict[str, float]:
        """Macro averages, ``f1_micro``, and the recall of each class, ``recall/0``, ….

        The macro averages are ``precision_macro``, ``recall_macro`` and ``f1_macro``.
        As in scikit-learn with zero_division=0 and the labels that occur: 0/0 is 0 (a class that is
        never predicted has precision 0), and a class neither true nor predicted anywhere has no
        entry and takes no part in a macro average, the plain mean over classes. One label per
        example makes micro precision, recall and F1 all equal to accuracy. All are NaN without
        examples.
        """
        counts = np.asarray(self.counts, np.int64)
        examples = counts.sum()
        macro, single = {}, {}
        for kind, values in self.per_class().items():
            present = {f"{kind}/{i}": float(v) for i, v in enumerate(values) if not np.isnan(v)}
            macro[f"{kind}_macro"] = sum(present.values()) / len(present) if present else np.nan
            single |= present
        micro = float(np.trace(counts) / examples) if examples else np.nan
        return {**macro, "f1_micro": micro, **single}


def confusion_matrix(
    predictions: Integer[Array, "*batch"] | Float[Array, "*batch num_classes"],
    labels: Integer[Array, "*batch"],
    num_classes: int,
    valid: Bool[Array, "*batch"] | None = None,
) -> ConfusionMatrix:
    """Counts pairs of true and predicted class.

    Args:
        predictions: predicted classes, or logits, whose largest counts (of equal ones the first).
            Logits with a NaN are counted as the class after the true one: as an error, wherever it
            falls.
        labels: true classes.
        num_classes: rows and columns of the matrix; pairs outside are not counted.
        valid: entries that count.

    Raises:
        ValueError: shapes that do not fit.
    """
    labels = labels.astype(jnp.int32)
    if jnp.issubdtype(predictions.dtype, jnp.floating):
        _check_labels(predictions, labels)
        if predictions.shape[-1] != num_classes:
            raise ValueError(f"logits {predictions.shape} do not have {num_classes} classes")
        broken = jnp.isnan(predictions).any(axis=-1)
        predictions = jnp.where(broken, (labels + 1) % num_classes, predictions.argmax(axis=-1))
    elif predictions.shape != labels.shape:
        raise ValueError(f"predictions {predictions.shape} do not fit labels {labels.shape}")
    weights = valid_or_all(valid, labels.shape).astype(jnp.int32)
    counts = jnp.zeros((num_classes, num_classes), jnp.int32)
    cells = counts.at[labels, predictions]
    return ConfusionMatrix(cells.add(weights, mode="drop", wrap_negative_indices=False))


@flax.struct.dataclass
class Calibration(Metric):
    """Confidence and correctness in equal-width bins of confidence."""

    confidence: Sum  # [bins], float32: sums of the largest probability
    correct: Sum  # [bins], int32
    count: Sum  # [bins], int32

    def compute(self) -> dict[str, float]:
        """The error Σ_b n_b / n · |accuracy_b − confidence_b|, in [0, 1]; NaN without examples."""
        examples = np.asarray(self.count, np.int64).sum()
        confidence = np.asarray(self.confidence, np.float64)
        gaps = np.abs(np.asarray(self.correct, np.int64) - confidence).sum()  # n_b cancels
        return {"": float(gaps / examples) if examples else float("nan")}


def calibration(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    valid: Bool[Array, "*batch"] | None = None,
    *,
    bins: Count = 15,
) -> Calibration:
    """Expected calibration error, with ``bins`` of confidence of equal width, open on the left.

    Guo et al., 2017, arXiv:1706.04599, eq. 3. Logits with a NaN have no confidence: the error
    becomes NaN.

    Raises:
        ValueError: shapes that do not fit.
    """
    right = _correct(logits, labels, 1)
    valid = valid_or_all(valid, right.shape)
    confidence = jax.nn.softmax(logits.astype(jnp.float32)).max(axis=-1)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    return Calibration(
        confidence=jnp.zeros(bins).at[place].add(jnp.where(valid, confidence, 0.0)),
        correct=jnp.zeros(bins, jnp.int32).at[place].add((right & valid).astype(jnp.int32)),
        count=jnp.zeros(bins, jnp.int32).at[place].add(valid.astype(jnp.int32)),
    )


@flax.struct.dataclass
class Ranking(Collected):
    """Scores of each example for each class: see ``ranking``."""

    scores: Rows  # [examples, classes], float32
    labels: Rows  # [examples], int32

    def compute(self) -> dict[str, float]:
        """``auroc`` and ``average_precision``: of class 1 of two, or else means over classes.

        A class with no example has no part in either mean, one with no other example none in that
        of ``auroc``; NaN if no class is left.
        """
        scores, labels = np.asarray(self.scores), np.asarray(self.labels)
        classes = [1] if scores.shape[-1] == 2 else range(scores.shape[-1])
        measures = {"auroc": auroc, "average_precision": average_precision}
        numbers = {}
        for name, measure in measures.items():
            values = np.array([measure(scores[:, c], labels == c) for c in classes])
            defined = values[~np.isnan(values)]
            numbers[name] = float(np.mean(defined)) if len(defined) else float("nan")
        return numbers


def ranking(
    logits: Float[Array, "batch classes"],
    labels: Integer[Array, " batch"],
    valid: Bool[Array, " batch"] | None = None,
) -> Ranking:
    """Scores of each class against the rest, for the areas under curves; not for training.

    They are NaN if a label is no class, and so are the areas.

    The score is log p / (1 − p), which is in the order of the probability p and does not become the
    same number for all examples that the network is sure of, as p = 1 does.

    Raises:
        ValueError: shapes that do not fit, or fewer than two classes.
    """
    _check_labels(logits, labels)
    if logits.shape[-1] < 2:
        raise ValueError(f"logits {logits.shape}: a ranking needs at least two classes")
    logits = logits.astype(jnp.float32)
    own = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=bool)
    rest = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1, keepdims=True)
    log_p = jax.nn.log_softmax(logits)
    # Only the largest probability may be near 1, where the logarithm of 1 − p needs the others.
    log_rest = jnp.log1p(-jnp.exp(jnp.where(own, -jnp.inf, log_p)))
    return Ranking(
        valid=valid_or_all(valid, labels.shape),
        scores=or_nan(jnp.where(own, logits - rest, log_p - log_rest), labels, logits.shape[-1]),
        labels=labels.astype(jnp.int32),
    )


@flax.struct.dataclass
class PairScores(Collected):
    """Scores of a real and of a generated example in each row: how well they are told apart."""

    real: Rows  # [examples], float32
    generated: Rows  # [examples], float32

    def compute(self) -> dict[str, float]:
        """The share of all pairs in which the real example has the higher score; ties count half.

        Pairs are of any two rows, so that it does not matter which example shares a row or a batch
        with which.
        """
        scores = np.concatenate([np.asarray(self.real), np.asarray(self.generated)])
        return {"": auroc(scores, np.arange(len(scores)) < len(self.real))}


def auroc(scores: Float[np.ndarray, " examples"], positive: Bool[np.ndarray, " examples"]) -> float:
    """Area under the ROC curve: the share of pairs that are in order, where a tie counts half.

    The U of Mann and Whitney over the number of pairs (Hanley & McNeil, 1982). NaN if one side has
    no example, or a score is NaN.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    """
    hits, misses = _by_score(scores, positive)
    pairs = hits.sum() * misses.sum()
    if not pairs:
        return float("nan")
    below = np.cumsum(misses[::-1])[::-1] - misses  # misses with a lower score
    return float((hits * (2 * below + misses)).sum() / (2 * pairs))


def average_precision(
    scores: Float[np.ndarray, " examples"], positive: Bool[np.ndarray, " examples"]
) -> float:
    """Mean over the positive examples of the precision down to their score, ties included.

    Σ (R_n − R_{n−1}) P_n over the distinct scores, without interpolation (as scikit-learn; that of
    PASCAL VOC interpolates). NaN if there is no positive example, or a score is NaN.

    >>> average_precision(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.8333333333333333
    """
    hits, misses = _by_score(scores, positive)
    if not hits.sum():
        return float("nan")
    precision = np.cumsum(hits) / np.cumsum(hits + misses)
    return float((hits * precision).sum() / hits.sum())


def _by_score(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many are positive and how many are not of each distinct score, from the highest on.

    Nothing if a score is NaN.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise ValueError(f"scores {scores.shape} do not fit positive {positive.shape}: [examples]")
    if np.isnan(scores).any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    distinct, place = np.unique(scores, return_inverse=True)
    counts = np.bincount(2 * place + positive, minlength=2 * len(distinct)).reshape(-1, 2)[::-1]
    return counts[:, 1], counts[:, 0]


def _correct(logits: Array, labels: Array, k: int) -> Array:
    """Whether the label is among the k largest logits."""
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if labels.shape != logits.shape:
            raise ValueError(f"soft labels {labels.shape} do not fit logits {logits.shape}")
        labels = labels.argmax(axis=-1)
    _check_labels(logits, labels)
    classes = jnp.arange(logits.shape[-1])
    own = jnp.where(classes == labels[..., None], logits, -jnp.inf).max(axis=-1, keepdims=True)
    ahead = (logits > own) | ((logits == own) & (classes < labels[..., None]))
    # Comparisons with NaN are false, so nothing would be ahead of a NaN.
    found = (ahead.sum(axis=-1) < k) & ~jnp.isnan(logits).any(axis=-1)
    return found & known(labels, len(classes))


def _check_labels(logits: Array, labels: Array) -> None:
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {labels.shape} do not fit logits {logits.shape}")
