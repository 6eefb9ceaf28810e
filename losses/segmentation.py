"""Losses of segmentation that see an image as a whole: the overlap of regions, and boundaries.

Losses of single pixels are those of ``losses.classification``: ``cross_entropy_loss`` and
``focal_loss`` take logits and labels of any shape. The losses here share their arguments and
results:

- ``logits`` [batch, *pixels, classes] become probabilities by a softmax. A single class is the
  foreground: its logit goes through a sigmoid, and labels are 0 and 1.
- ``labels`` [batch, *pixels] are integers. One outside the classes gives NaN: a wrong label map
  must not pass.
- ``where`` [batch, *pixels], the pixels that count. The others might as well be cropped away: they
  change neither value nor gradient, whatever their logits and labels hold.
- ``classes``, the places on the last axis of the logits that are averaged, all if None. With two
  classes FP of one is FN of the other, so that over both, alpha and beta all but cancel: take the
  foreground, ``classes=(1,)``.
- The result is float32 [batch], the mean over the classes; each has a loss of its own first.
- A class that no counted label of an image names is skipped there; an image with no class left has
  loss 0 and gradient 0. Of the foreground alone, then, empty images teach nothing. ``smooth`` > 0
  counts absent classes too, and an absent class costs its false positives.
- ValueError is raised for shapes that do not fit, for labels that are no integers, and for options
  outside their range.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from opsin.imaging.distance import distance_transform
from opsin.losses.reduction import weighted_mean
from opsin.ops.labels import or_nan
from opsin.ranges import CountOrZero, NonNegative, Positive

_LEAST = 1e-12  # pixels, or a share of them, below which a region counts as empty


class MaskLoss(Protocol):
    """A loss of masks, of pixels ``[batch, *pixels]`` or of images ``[batch]``."""

    def __call__(self, logits: Array, labels: Array, /, *, where: Array | None) -> Array:
        """Losses, unreduced; ``where`` says which pixels count."""
        ...


def tversky_loss(
    logits: Float[Array, "batch *pixels classes"],
    labels: Integer[Array, "batch *pixels"],
    *,
    alpha: NonNegative,
    beta: NonNegative,
    smooth: NonNegative = 0.0,
    classes: tuple[CountOrZero, ...] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, "batch"]:
    """1 − TI with the Tversky index TI = TP / (TP + α FP + β FN), in [0, 1].

    TP = Σ p t, FP = Σ p (1 − t) and FN = Σ (1 − p) t over the pixels of an image. α weighs false
    positives and β false negatives, as in Salehi et al., 2017, arXiv:1706.05721, eq. 3; others
    swap them. β above α asks for recall: (0, 1) is 1 − recall, (1, 0) is 1 − precision, which is
    not defined, and 0 here, once no pixel is predicted any more.

    Args:
        logits: see the module, as for ``labels``, ``classes`` and ``where``.
        labels: integers.
        alpha: α ≥ 0.
        beta: β ≥ 0; not both are 0.
        smooth: s ≥ 0 in pixels, added to TP. Above 0 absent classes count, at α FP / (α FP + s).
        classes: those that are averaged.
        where: the pixels that count.
    """
    return jax.vmap(weighted_mean)(
        *_tversky_losses(logits, labels, alpha, beta, smooth, classes, where)
    )


def dice_loss(
    logits: Float[Array, "batch *pixels classes"],
    labels: Integer[Array, "batch *pixels"],
    *,
    squared: bool = False,
    smooth: NonNegative = 0.0,
    classes: tuple[CountOrZero, ...] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, "batch"]:
    """1 − D with the Dice coefficient D = 2 Σ p t / (Σ p + Σ t), in [0, 1]: Tversky's at ½, ½.

    Args:
        logits: see the module, as for ``labels``, ``classes`` and ``where``.
        labels: integers.
        squared: with Σ p² + Σ t² below instead (Milletari et al., 2016, arXiv:1606.04797,
            section 3).
        smooth: s ≥ 0 in pixels; the fraction becomes (2 Σ p t + 2 s) / (Σ p + Σ t + 2 s). Above 0
            absent classes count.
        classes: those that are averaged.
        where: the pixels that count.
    """
    if not squared:
        return tversky_loss(
            logits, labels, alpha=0.5, beta=0.5, smooth=smooth, classes=classes, where=where
        )
    p, t, _ = class_probabilities(logits, labels, classes, where)
    errors = 0.5 * _over_pixels((p - t) ** 2)
    return jax.vmap(weighted_mean)(*_ratios(errors, _over_pixels(p * t), _over_pixels(t), smooth))


def jaccard_loss(
    logits: Float[Array, "batch *pixels classes"],
    labels: Integer[Array, "batch *pixels"],
    *,
    smooth: NonNegative = 0.0,
    classes: tuple[CountOrZero, ...] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, "batch"]:
    """1 − J with the Jaccard index (IoU) J = TP / (TP + FP + FN), in [0, 1]: Tversky's at 1, 1.

    J = D / (2 − D) of the Dice coefficient D. ``losses.lovasz`` extends J to probabilities in the
    way that is convex.

    Args:
        logits: see the module, as for ``labels``, ``classes`` and ``where``.
        labels: integers.
        smooth: as for ``tversky_loss``.
        classes: those that are averaged.
        where: the pixels that count.
    """
    return tversky_loss(
        logits, labels, alpha=1.0, beta=1.0, smooth=smooth, classes=classes, where=where
    )


def focal_tversky_loss(
    logits: Float[Array, "batch *pixels classes"],
    labels: Integer[Array, "batch *pixels"],
    *,
    alpha: NonNegative,
    beta: NonNegative,
    gamma: Positive = 4 / 3,
    smooth: NonNegative = 0.0,
    classes: tuple[CountOrZero, ...] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, "batch"]:
    """(1 − TI)^(1/γ) of each class, in [0, 1].

    Abraham & Khan, 2018, arXiv:1810.07842, with their γ: the exponent is its inverse, and
    they take γ in [1, 3], best 4/3. Some libraries call the exponent γ. Their α weighs false
    negatives; here it is β, as for ``tversky_loss``, so that their α = 0.7, β = 0.3 is
    ``alpha=0.3, beta=0.7``. They sum over the classes; here it is the mean.

    Args:
        logits: see the module, as for ``labels``, ``classes`` and ``where``.
        labels: integers.
        alpha: α ≥ 0, of false positives.
        beta: β ≥ 0, of false negatives; not both are 0.
        gamma: γ > 0; 1 is ``tversky_loss``.
        smooth: as for ``tversky_loss``.
        classes: those that are averaged.
        where: the pixels that count.
    """
    if gamma <= 0.0:
        raise ValueError(f"gamma must be above 0, not {gamma}")
    losses, counted = _tversky_losses(logits, labels, alpha, beta, smooth, classes, where)
    # x^(1/γ) has an infinite slope at 0 for γ > 1. Below the floor it is a straight line.
    floor = jnp.maximum(losses, jnp.finfo(jnp.float32).eps)
    return jax.vmap(weighted_mean)(losses * floor ** (1.0 / gamma - 1.0), counted)


def generalized_dice_loss(
    logits: Float[Array, "batch *pixels classes"],
    labels: Integer[Array, "batch *pixels"],
    *,
    classes: tuple[CountOrZero, ...] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, "batch"]:
    """1 − 2 Σ_k w_k Σ p t / Σ_k w_k Σ (p + t) with w_k = 1 / (Σ t)², in [0, 1].

    One ratio over all classes, in which a large region weighs no more than a small one: Sudre et
    al., 2017, arXiv:1707.03237, section 2.1. Absent classes have no weight.

    Args:
        logits: see the module, as for ``labels``, ``classes`` and ``where``.
        labels: integers.
        classes: those that are summed over.
        where: the pixels that count.
    """
    p, t, _ = class_probabilities(logits, labels, classes, where)
    volume = _over_pixels(t)  # [B, K]
    weights = jnp.where(volume != 0.0, 1.0 / jnp.maximum(volume, 1.0) ** 2, 0.0)
    errors = jnp.sum(weights * _over_pixels(p * (1.0 - t) + (1.0 - p) * t), axis=-1)
    overlap = 2.0 * jnp.sum(weights * _over_pixels(p * t), axis=-1)
    losses, _ = _ratios(errors, overlap, jnp.sum(weights, axis=-1), 0.0)
    return losses


def boundary_loss(
    logits: Float[Array, "batch height width classes"],
    labels: Integer[Array, "batch height width"],
    *,
    classes: tuple[CountOrZero, ...] | None = None,
    where: Bool[Array, "batch height width"] | None = None,
) -> Float[Array, "batch"]:
    """Mean over the pixels of φ p, with φ the signed distance to the boundary of the true region.

    Outside the region φ is the distance in pixels to the nearest pixel of the class; inside it is
    minus the distance to the nearest counted pixel of another one. Kervadec et al., 2019,
    arXiv:1812.07032, eq. 5, divided by the number of counted pixels. It is negative for a good
    segmentation, and far from one it is flat: they add it to a region loss, with a weight that
    grows. A class with no boundary, absent or alone in the image, is skipped. The distances are
    those of the labels as they come, augmented, and computed anew: about 40 ms a class and image of
    512×512 pixels on one core of a CPU.

    Args:
        logits: see the module, as for ``labels``, ``classes`` and ``where``; images of two axes
            only.
        labels: integers.
        classes: those that are averaged. Over both of two classes, gradients are those of one.
        where: the pixels that count.
    """
    p, t, keep = class_probabilities(logits, labels, classes, where)
    if p.ndim != 4:
        raise ValueError(
            f"boundary_loss needs logits [batch, height, width, classes], not {p.ndim}"
        )
    inside = jnp.moveaxis(t == 1.0, -1, 1)  # [B, K, H, W]
    outside = keep[:, None] & ~inside
    bounded = jnp.any(inside, axis=(-2, -1)) & jnp.any(outside, axis=(-2, -1))  # [B, K]
    to_inside, to_outside = (
        jnp.where(bounded[..., None, None], jax.vmap(jax.vmap(distance_transform))(mask), 0.0)
        for mask in (inside, outside)
    )
    # Ignored pixels have distances too, but no probability.
    moments = _over_pixels(jnp.moveaxis(to_inside - to_outside, 1, -1) * p)  # [B, K]
    pixels = jnp.maximum(jnp.sum(keep, axis=(1, 2)), 1)
    return jnp.sum(moments, axis=-1) / (pixels * jnp.maximum(jnp.sum(bounded, axis=-1), 1))


def combined_loss(
    logits: Float[Array, "batch *pixels classes"],
    labels: Integer[Array, "batch *pixels"],
    *,
    terms: tuple[tuple[NonNegative, MaskLoss], ...],
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, "batch"]:
    """Weighted sum of losses, such as cross-entropy and Dice.

    It is a loss of images: weights of pixels (``data.border_weights``) do not reach its terms.

    Args:
        logits: as the terms want them.
        labels: as the terms want them.
        terms: pairs of a weight and a loss, called as ``loss(logits, labels, where=where)``; bind
            other options with ``functools.partial``. A loss of pixels is averaged over the counted
            pixels of each image first; it is 0 if there are none.
        where: the pixels that count.

    Raises:
        ValueError: no terms, or a loss that is neither [batch] nor [batch, *pixels].
    """
    if not terms:
        raise ValueError("terms is empty; give at least one (weight, loss)")
    total = jnp.zeros(len(labels), jnp.float32)
    for weight, loss in terms:
        values = loss(logits, labels, where=where)
        if values.shape == labels.shape:
            counted = jnp.ones(labels.shape, bool) if where is None else where
            values = jax.vmap(weighted_mean)(values, counted)
        if values.shape != total.shape:
            raise ValueError(f"{loss} gives {values.shape} for labels {labels.shape}")
        total += weight * values
    return total


def class_probabilities(
    logits: Float[Array, "batch *pixels classes"],
    labels: Integer[Array, "batch *pixels"],
    classes: tuple[int, ...] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> tuple[
    Float[Array, "batch *pixels chosen"],
    Float[Array, "batch *pixels chosen"],
    Bool[Array, "batch *pixels"],
]:
    """What all losses of the module begin with; see there for the arguments.

    Returns:
        Probabilities and one-hot labels of the chosen classes, and the pixels that count. Both are
        0 at the other pixels, and NaN at those whose label is no class.

    Raises:
        ValueError: see the module.
    """
    if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{labels.dtype} labels {labels.shape} do not fit logits {logits.shape}")
    keep = jnp.ones(labels.shape, bool) if where is None else where
    if keep.shape != labels.shape:
        raise ValueError(f"where {keep.shape} must have the shape of labels {labels.shape}")
    number = logits.shape[-1]
    chosen = tuple(range(number)) if classes is None else tuple(classes)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(number)):
        raise ValueError(f"classes {chosen} must be some of the {number} of the logits, each once")
    # What goes in is masked, not only the loss: backwards, zero times NaN is NaN.
    counted = keep[..., None]
    logits = jnp.where(counted, logits.astype(jnp.float32), 0.0)
    p = jax.nn.sigmoid(logits) if number == 1 else jax.nn.softmax(logits)
    labels = labels.astype(jnp.int32)
    own = jnp.ones(1, jnp.int32) if number == 1 else jnp.arange(number)
    t = (labels[..., None] == own).astype(jnp.float32)
    p, t = (jnp.where(counted, or_nan(x, labels, max(number, 2)), 0.0) for x in (p, t))
    if classes is not None:  # as slices: a gather, and its scatter backwards, are slow on a CPU
        p, t = (jnp.stack([x[..., k] for k in chosen], axis=-1) for x in (p, t))
    return p, t, keep


def _over_pixels(values: Array) -> Array:
    """Sums over all axes but the first and the last."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim - 1)))


def _tversky_losses(
    logits: Array,
    labels: Array,
    alpha: float,
    beta: float,
    smooth: float,
    classes: tuple[int, ...] | None,
    where: Array | None,
) -> tuple[Array, Array]:
    """Of each image and class, and which of them count."""
    if min(alpha, beta) < 0.0 or alpha == beta == 0.0:
        raise ValueError(
            f"alpha and beta must be at least 0, and one above it, not {alpha} and {beta}"
        )
    p, t, _ = class_probabilities(logits, labels, classes, where)
    errors = alpha * _over_pixels(p * (1.0 - t)) + beta * _over_pixels((1.0 - p) * t)
    return _ratios(errors, _over_pixels(p * t), _over_pixels(t), smooth)


def _ratios(errors: Array, overlap: Array, volume: Array, smooth: float) -> tuple[Array, Array]:
    """errors / (overlap + errors + smooth), and which count; volume is 0 where a class is absent.

    It is 1 − (overlap + smooth) / (overlap + errors + smooth), but never below 0 by rounding.
    """
    if smooth < 0.0:
        raise ValueError(f"smooth must be at least 0, not {smooth}")
    counted = (volume != 0.0) | (smooth > 0.0)  # NaN counts
    below = jnp.where(counted, overlap + errors + smooth, 1.0)
    # Only with β = 0 can it vanish, where nothing is predicted: the loss and its gradient do too.
    return errors / jnp.maximum(below, _LEAST), counted
