"""Losses of classification: of images, pixels or anchors, whatever axes the logits lead with.

All are unreduced. ``jnp.mean`` is the empirical risk; its 1/m is no ornament, for it fixes the step
size and the balance against a regulariser. Where entries are left out, average with
``losses.reduction.weighted_mean``.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer, Num

from opsin.ops.labels import one_hot
from opsin.ranges import Label, NonNegative, Probability


def cross_entropy_loss(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"] | Float[Array, "*batch classes"],
    *,
    smoothing: Probability = 0.0,
    class_weights: Float[Array, "classes"] | Sequence[NonNegative] | None = None,
    ignore_label: Label | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Softmax cross-entropy Σ_k w_k t_k (−log p_k) in nats; −log p_y for an integer label y.

    The gradient with respect to the logits is p − t (without weights). For soft labels the loss is
    H(t) + KL(t ‖ p).

    With ``class_weights``, ``jnp.mean`` keeps one fixed scale for every batch. PyTorch divides each
    batch by its own sum of weights instead:
    ``weighted_mean(cross_entropy_loss(logits, labels), class_weights[labels])``.

    Args:
        logits: unnormalised log-probabilities; −inf takes a class out (without smoothing).
        labels: classes as integers, or one distribution over the classes per entry (mixup,
            distillation).
        smoothing: s in [0, 1]; the target becomes (1 − s) t + s / K (Szegedy et al., 2016,
            arXiv:1512.00567, section 7).
        class_weights: w_k ≥ 0, one per class, applied after smoothing; 1 if None.
        ignore_label: entries with this integer label have loss 0 and gradient 0.
        where: entries that count; the others have loss 0 and gradient 0, whatever their logits and
            labels hold.

    Returns:
        float32 losses. A label outside [0, classes) that is not ignored gives NaN: a wrong label
        map must not pass.

    Raises:
        ValueError: shapes that do not fit, ``smoothing`` outside [0, 1], or ``ignore_label`` with
            soft labels.
    """
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"smoothing must lie in [0, 1], not {smoothing}")
    logits, targets, keep = _masked(logits, labels, ignore_label, where)
    targets = optax.smooth_labels(targets, smoothing)
    if class_weights is not None:
        targets *= _per_class("class_weights", class_weights, logits.shape[-1])
    return jnp.where(keep, optax.safe_softmax_cross_entropy(logits, targets), 0.0)


def focal_loss(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"] | Float[Array, "*batch classes"],
    *,
    gamma: NonNegative = 2.0,
    alpha: Float[Array, "classes"] | Sequence[NonNegative] | None = None,
    ignore_label: Label | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Softmax focal loss Σ_k α_k t_k (1 − p_k)^γ (−log p_k).

    For an integer label y it is −α_y (1 − p_y)^γ log p_y. The factor makes easy examples count
    less; γ = 0 is cross-entropy. Lin et al., 2017, arXiv:1708.02002, eq. 5, with softmax
    probabilities and soft labels as in Mukhoti et al., 2020, arXiv:2002.09437. For the per-class
    sigmoid of RetinaNet see ``sigmoid_focal_loss``.

    Args:
        logits: unnormalised log-probabilities; −inf takes a class out.
        labels: classes as integers, or one distribution over the classes per entry.
        gamma: focusing exponent, any real number ≥ 0.
        alpha: α_k ≥ 0, one per class; 1 if None.
        ignore_label: entries with this integer label have loss 0 and gradient 0.
        where: entries that count; the others have loss 0 and gradient 0, whatever their logits and
            labels hold.

    Returns:
        float32 losses; NaN for a label outside [0, classes) that is not ignored.

    Raises:
        ValueError: shapes that do not fit, ``gamma`` below 0, or ``ignore_label`` with soft labels.
    """
    if gamma < 0.0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    logits, targets, keep = _masked(logits, labels, ignore_label, where)
    if alpha is not None:
        targets *= _per_class("alpha", alpha, logits.shape[-1])
    log_p = jax.nn.log_softmax(logits)
    # For gamma < 1 the power has an infinite slope at p = 1. The floor lies where float32 ends:
    # log_p is rounded to 0 there, and with it the loss.
    rest = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(jnp.float32).eps)
    # 0 · log 0 is 0: a class that is taken out by −inf costs nothing where it is not the label.
    log_p = jnp.where(targets == 0.0, 0.0, log_p)
    return jnp.where(keep, -jnp.sum(targets * rest**gamma * log_p, axis=-1), 0.0)


def binary_cross_entropy_loss(
    logits: Float[Array, "*shape"],
    labels: Num[Array, "*shape"] | Bool[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """Sigmoid cross-entropy −y log p − (1 − y) log(1 − p) in nats.

    The usual loss of binary and of multi-label problems. Its gradient with respect to the logit,
    p − y, stays near ±1 where the unit is confidently wrong; that of the squared error,
    2 (p − y) p (1 − p), vanishes there.

    Args:
        logits: log-odds of the positive class, one per binary decision.
        labels: 0, 1 or a probability between them.
        where: entries that count; the others have loss 0 and gradient 0, whatever they hold.

    Returns:
        float32 losses.

    Raises:
        ValueError: shapes that differ (nothing is broadcast).
    """
    logits, targets, keep = _masked_binary(logits, labels, where)
    return jnp.where(keep, optax.sigmoid_binary_cross_entropy(logits, targets), 0.0)


def sigmoid_focal_loss(
    logits: Float[Array, "*shape"],
    labels: Num[Array, "*shape"] | Bool[Array, "*shape"],
    *,
    gamma: NonNegative = 2.0,
    alpha: NonNegative | None = 0.25,
    where: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """Focal loss of independent binary decisions, −α_t (1 − p_t)^γ log p_t, as in RetinaNet.

    Here p_t = p and α_t = α where y = 1, p_t = 1 − p and α_t = 1 − α where y = 0. With γ = 0 and no
    α it is binary cross-entropy. Lin et al., 2017, arXiv:1708.02002, eq. 5; RetinaNet sums it and
    divides by the number of matched anchors.

    Args:
        logits: log-odds of the positive class, one per binary decision.
        labels: 0, 1 or a probability between them, for which p_t and α_t are interpolated.
        gamma: focusing exponent, any real number ≥ 0.
        alpha: weight of the positive class in [0, 1]; no weights if None.
        where: entries that count; the others have loss 0 and gradient 0, whatever they hold.

    Returns:
        float32 losses.

    Raises:
        ValueError: shapes that differ (nothing is broadcast), or ``gamma`` below 0.
    """
    if gamma < 0.0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    logits, targets, keep = _masked_binary(logits, labels, where)
    loss = optax.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    return jnp.where(keep, loss, 0.0)


def finite(logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The logits, but ±1e30 for ±∞, so that 0 · log 0 is 0; a NaN stays."""
    largest = 1e30  # whose products are finite still
    return jnp.clip(logits, -largest, largest)


def _masked(
    logits: Array, labels: Array, ignore_label: int | None, where: Array | None
) -> tuple[Array, Array, Array]:
    """float32 logits and targets [..., classes], and which entries count; the others hold zeros."""
    soft = jnp.issubdtype(labels.dtype, jnp.floating)
    if labels.shape != (logits.shape if soft else logits.shape[:-1]):
        raise ValueError(f"{labels.dtype} labels {labels.shape} do not fit logits {logits.shape}")
    if soft and ignore_label is not None:
        raise ValueError("ignore_label needs integer labels; use where with soft labels")
    keep = _mask(where, logits.shape[:-1])
    labels = labels.astype(jnp.float32 if soft else jnp.int32)  # bytes cannot be compared with −1
    if ignore_label is not None:
        keep &= labels != ignore_label
    # What goes in is masked, not only the loss: backwards, the zero of an outer mask times a NaN
    # is a NaN.
    logits = jnp.where(keep[..., None], logits.astype(jnp.float32), 0.0)
    if soft:
        return logits, jnp.where(keep[..., None], labels, 0.0), keep
    return logits, one_hot(jnp.where(keep, labels, 0), logits.shape[-1]), keep


def _masked_binary(logits: Array, labels: Array, where: Array | None) -> tuple[Array, Array, Array]:
    """float32 logits and labels, 0 where an entry does not count, and the entries that do."""
    if labels.shape != logits.shape:
        raise ValueError(f"labels {labels.shape} must have the shape of logits {logits.shape}")
    keep = _mask(where, logits.shape)
    logits = jnp.where(keep, finite(logits.astype(jnp.float32)), 0.0)
    return logits, jnp.where(keep, labels.astype(jnp.float32), 0.0), keep


def _mask(where: Array | None, shape: tuple[int, ...]) -> Array:
    if where is None:
        return jnp.ones(shape, bool)
    if where.shape != shape:
        raise ValueError(f"where {where.shape} must have the shape of the losses, {shape}")
    return where


def _per_class(name: str, values: Array | Sequence[float], classes: int) -> Array:
    array = jnp.asarray(values, jnp.float32)
    if array.shape != (classes,):
        raise ValueError(f"{name} {array.shape} must hold one number for each of {classes} classes")
    return array
