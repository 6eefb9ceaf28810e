"""Metrics of segmentation, from the predictions and labels of one batch to a state that merges.

``valid`` says which pixels count: in the batch (no padding) and not ignored, ``labels != 255``.
A state counts one batch; merged on the host (see ``metrics.state``), states hold a set of any size.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from opsin.imaging.components import components
from opsin.imaging.morphology import thin
from opsin.metrics.classification import ConfusionMatrix, confusion_matrix
from opsin.metrics.state import Mean, Metric, Sum, valid_or_all
from opsin.ranges import Count, NonNegative


@flax.struct.dataclass
class SegmentationMatrix(ConfusionMatrix):
    """How many pixels of each true class were taken for each class."""

    def compute(self) -> dict[str, float]:
        """Macro averages, ``accuracy``, and the IoU of each class, ``iou/0``, ….

        The macro averages are ``miou``, ``dice``, ``precision_macro`` and ``recall_macro``.
        Pixels of all images are counted together, and each macro average is the plain mean over the
        classes. IoU = TP / (TP + FP + FN), Dice = 2 TP / (2 TP + FP + FN). A class neither true nor
        predicted anywhere has no entry and takes no part in the means; 0/0 is 0 otherwise (a class
        that is never predicted has precision 0). Accuracy is the share of right pixels. All are NaN
        without pixels.
        """
        per_class = self.per_class()
        dice = per_class["f1"]
        measures = {
            ("miou", "iou"): dice / (2 - dice),
            ("dice", "dice"): dice,
            ("precision_macro", "precision"): per_class["precision"],
            ("recall_macro", "recall"): per_class["recall"],
        }
        counts = np.asarray(self.counts, np.int64)
        pixels = counts.sum()
        means = {"accuracy": float(np.trace(counts) / pixels) if pixels else np.nan}
        single = {}
        for (mean, name), values in measures.items():
            present = {f"{name}/{i}": float(v) for i, v in enumerate(values) if not np.isnan(v)}
            means[mean] = sum(present.values()) / len(present) if present else np.nan
            single |= present
        return {**means, **single}


def segmentation_matrix(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    valid: Bool[Array, "batch height width"] | None = None,
) -> SegmentationMatrix:
    """Counts pairs of true and predicted class over pixels.

    Args:
        logits: the largest counts, of equal ones the first; with a NaN, the pixel is an error.
        labels: true classes. A pixel with another label than 0, …, classes - 1 is an error of the
            nearest class: a wrong label map must not pass.
        valid: pixels that count.

    Raises:
        ValueError: shapes that do not fit.
    """
    labels, classes = labels.astype(jnp.int32), logits.shape[-1]
    nearest = jnp.clip(labels, 0, classes - 1)
    # A NaN is an error wherever it falls.
    logits = jnp.where((labels == nearest)[..., None], logits, jnp.nan)
    return SegmentationMatrix(confusion_matrix(logits, nearest, classes, valid).counts)


def boundary_f1(
    predictions: Integer[Array, "batch height width"],
    labels: Integer[Array, "batch height width"],
    valid: Bool[Array, "batch height width"] | None = None,
    *,
    num_classes: Count,
    tolerance: NonNegative,
) -> Mean:
    """How well the outlines of the classes agree: the BF score, in [0, 1].

    Csurka et al., 2013, "What is a good evaluation measure for semantic segmentation?", BMVC,
    section 3. Exactly, here: a boundary pixel of a class is a pixel of that class with another
    class above, below, left or right of it. Precision is the share of predicted boundary pixels
    with a true one of that class at most ``tolerance`` away (Euclidean, between centres of pixels),
    recall the share of true ones with a predicted one so near, and F1 their harmonic mean. F1 is
    averaged over the classes with a boundary in truth or prediction (0 where only one of them has
    it), and that over images; an image without any boundary is left out. Neither the border of the
    image nor pixels that are not valid have or make a boundary.

    Args:
        predictions: predicted classes.
        labels: true classes.
        valid: pixels that count.
        num_classes: classes 0, …, num_classes - 1 are scored.
        tolerance: in pixels; the paper takes 0.75 % of the image's diagonal.

    Raises:
        ValueError: shapes that do not fit, or a negative tolerance.
    """
    _check_maps(predictions, labels)
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    valid = valid_or_all(valid, labels.shape)
    found = _boundary(predictions, valid, num_classes)
    true = _boundary(labels, valid, num_classes)

    # A scan over the pixels of a disc: dilating each class would take `num_classes` times as much.
    reach = int(tolerance)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = rows**2 + columns**2 <= tolerance**2
    offsets = np.stack([rows[near], columns[near]], axis=1) + reach
    sides = ((0, 0), (reach, reach), (reach, reach))
    padded_found, padded_true = (jnp.pad(x, sides, constant_values=-1) for x in (found, true))

    def match(matched: tuple[Array, Array], offset: Array) -> tuple[tuple[Array, Array], None]:
        start = (0, offset[0], offset[1])
        beside_found = jax.lax.dynamic_slice(padded_found, start, found.shape)
        beside_true = jax.lax.dynamic_slice(padded_true, start, true.shape)
        return (matched[0] | (found == beside_true), matched[1] | (true == beside_found)), None

    nothing = jnp.zeros(labels.shape, bool)
    (right, recalled), _ = jax.lax.scan(match, (nothing, nothing), jnp.asarray(offsets))

    def share(hits: Array, boundary: Array) -> tuple[Array, Array]:
        """Share of each class's boundary that was hit, and whether it has any: [batch, classes]."""
        own = boundary[..., None] == jnp.arange(num_classes)  # [batch, height, width, classes]
        pixels = jnp.sum(own, axis=(1, 2))
        hit = jnp.sum(own & hits[..., None], axis=(1, 2))
        return hit / jnp.maximum(pixels, 1), pixels > 0

    precision, has_found = share(right, found)
    recall, has_true = share(recalled, true)
    total = precision + recall
    f1 = 2 * precision * recall / jnp.where(total == 0, 1.0, total)
    scored = jnp.sum(has_found | has_true, axis=1)
    return Mean.from_values(jnp.sum(f1, axis=1) / jnp.maximum(scored, 1), scored > 0)


def _boundary(classes: Array, valid: Array, num_classes: int) -> Array:
    """The class of each boundary pixel, and -1 elsewhere: int32 [batch, height, width]."""
    classes = classes.astype(jnp.int32)
    boundary = jnp.zeros(classes.shape, bool)
    for axis in (1, 2):
        size = classes.shape[axis]
        first = jax.lax.slice_in_dim(classes, 0, size - 1, axis=axis)
        second = jax.lax.slice_in_dim(classes, 1, size, axis=axis)
        both = jax.lax.slice_in_dim(valid, 0, size - 1, axis=axis)
        both &= jax.lax.slice_in_dim(valid, 1, size, axis=axis)
        edge = (first != second) & both
        for sides in ((0, 1), (1, 0)):
            boundary |= jnp.pad(edge, [sides if i == axis else (0, 0) for i in range(3)])
    known = (classes >= 0) & (classes < num_classes)
    return jnp.where(boundary & known, classes, -1)


@flax.struct.dataclass
class RandScore(Metric):
    """Ordered pairs of pixels, each with itself too, that lie in one and the same cell."""

    both: Sum  # [], float32: in truth and in prediction
    true: Sum  # [], float32: in truth
    predicted: Sum  # [], float32: in prediction

    def compute(self) -> dict[str, float]:
        """2 both / (true + predicted), in [0, 1]; NaN without cells."""
        pairs = float(self.true) + float(self.predicted)
        # Rounded sums of squares may pass each other by a millionth.
        return {"": min(2 * float(self.both) / pairs, 1.0) if pairs else float("nan")}


def foreground_rand(
    predictions: Integer[Array, "batch height width"],
    labels: Integer[Array, "batch height width"],
    valid: Bool[Array, "batch height width"] | None = None,
) -> RandScore:
    """V^Rand, the score of the ISBI 2012 challenge, for class 0 = membrane and 1 = cell; in [0, 1].

    Arganda-Carreras et al., 2015, "Crowdsourcing the creation of image segmentation algorithms for
    connectomics", Frontiers in Neuroanatomy 9:142: the foreground-restricted Rand score after
    thinning, with alpha = 1/2, which is the F-score of pairs of pixels in the same cell.

    The predicted membrane is thinned to a width of one pixel (see ``thin``), with a frame of
    membrane around the image, so that cells that meet its border stay apart. Cells are the
    4-connected components of what is left, true ones those of label 1. Only pixels of true cells
    count; those on the thinned membrane are cells of one pixel each. As in the organisers' code,
    pairs are summed over images before the score is taken. They report the best of several
    thresholds of the probability; here the prediction is one map of classes, such as the argmax.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_maps(predictions, labels)
    inside = (labels == 1) & valid_or_all(valid, labels.shape)
    frame = ((0, 0), (1, 1), (1, 1))
    membrane = thin(jnp.pad(predictions == 0, frame, constant_values=True))[:, 1:-1, 1:-1]
    true, predicted = components(inside), components(~membrane)
    inside = inside.reshape(true.shape).astype(jnp.int32)
    # Sorted, the pixels that share both cells follow one another: they get one label.
    *cells, together = jax.lax.sort((true, predicted, inside), num_keys=2)
    new = functools.reduce(jnp.logical_or, (jnp.diff(cell, axis=1) != 0 for cell in cells))
    group = jnp.pad(jnp.cumsum(new, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
    return RandScore(_pairs(group, together), _pairs(true, inside), _pairs(predicted, inside))


def _pairs(labels: Array, inside: Array) -> Array:
    """Number of ordered pairs of pixels inside, with the same label: [batch, pixels] each."""
    nothing = jnp.zeros(labels.shape, jnp.int32)
    sizes = jax.vmap(lambda zeros, label, one: zeros.at[label].add(one))(nothing, labels, inside)
    return jnp.sum(jnp.square(sizes.astype(jnp.float32)))


def _check_maps(predictions: Array, labels: Array) -> None:
    if predictions.shape != labels.shape or labels.ndim != 3:
        raise ValueError(
            f"predictions {predictions.shape} do not fit labels {labels.shape}: "
            "both must be classes [batch, height, width]"
        )
