"""Losses of regression: of images, boxes or any numbers, one loss for each.

All are unreduced. Entries that ``where`` leaves out have loss 0 and gradient 0, whatever they hold;
average the others with ``losses.reduction.weighted_mean``. Shapes must be equal: a column against a
row would be broadcast to a matrix of wrong pairs.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Num

from opsin.ranges import Positive


def absolute_error_loss(
    predictions: Num[Array, "*shape"],
    targets: Num[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
) -> Num[Array, "*shape"]:
    """|p − t|, whose mean is least at the median. The gradient where p = t is 0.

    Returns:
        float32 losses.

    Raises:
        ValueError: shapes that differ.
    """
    predictions, targets = _masked(predictions, targets, where)
    errors = predictions - targets
    return errors * jnp.sign(errors)  # jnp.abs has the gradient 1 at 0


def squared_error_loss(
    predictions: Num[Array, "*shape"],
    targets: Num[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
) -> Num[Array, "*shape"]:
    """(p − t)², without the ½ that some write; its mean is least at the mean.

    Returns:
        float32 losses.

    Raises:
        ValueError: shapes that differ.
    """
    return optax.losses.squared_error(*_masked(predictions, targets, where))


def squared_log_error_loss(
    predictions: Num[Array, "*shape"],
    targets: Num[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
) -> Num[Array, "*shape"]:
    """(log(1 + p) − log(1 + t))², for counts and sizes: it measures ratios, not differences.

    Args:
        predictions: numbers above −1, such as the result of ``jax.nn.softplus``.
        targets: numbers above −1.
        where: entries that count.

    Returns:
        float32 losses; NaN where either number is −1 or below.

    Raises:
        ValueError: shapes that differ.
    """
    predictions, targets = _masked(predictions, targets, where)
    loss = optax.losses.squared_error(jnp.log1p(predictions), jnp.log1p(targets))
    return jnp.where((predictions > -1.0) & (targets > -1.0), loss, jnp.nan)


def huber_loss(
    predictions: Num[Array, "*shape"],
    targets: Num[Array, "*shape"],
    *,
    delta: Positive = 1.0,
    where: Bool[Array, "*shape"] | None = None,
) -> Num[Array, "*shape"]:
    """½ e² for errors |e| up to δ, and δ (|e| − ½ δ) beyond: a gradient of at most δ.

    Huber, 1964, Robust Estimation of a Location Parameter, Ann. Math. Statist. 35(1).

    Args:
        predictions: any numbers.
        targets: any numbers.
        delta: δ > 0, where the parabola goes over into straight lines.
        where: entries that count.

    Returns:
        float32 losses.

    Raises:
        ValueError: shapes that differ, or ``delta`` not above 0.
    """
    if delta <= 0.0:
        raise ValueError(f"delta must be above 0, not {delta}")
    return optax.losses.huber_loss(*_masked(predictions, targets, where), delta=delta)


def smooth_l1_loss(
    predictions: Num[Array, "*shape"],
    targets: Num[Array, "*shape"],
    *,
    beta: Positive = 1.0,
    where: Bool[Array, "*shape"] | None = None,
) -> Num[Array, "*shape"]:
    """½ e² / β for errors |e| up to β, and |e| − ½ β beyond: a gradient of at most 1.

    It is ``huber_loss`` with δ = β, divided by β; the two agree at 1. Towards β = 0 it becomes the
    absolute error. Girshick, 2015, arXiv:1504.08083, eq. 3, where β is 1.

    Args:
        predictions: any numbers.
        targets: any numbers.
        beta: β > 0, where the parabola goes over into straight lines.
        where: entries that count.

    Returns:
        float32 losses.

    Raises:
        ValueError: shapes that differ, or ``beta`` not above 0.
    """
    if beta <= 0.0:
        raise ValueError(f"beta must be above 0, not {beta}")
    return huber_loss(predictions, targets, delta=beta, where=where) / beta


def _masked(predictions: Array, targets: Array, where: Array | None) -> tuple[Array, Array]:
    """Both in float32, and 0 where an entry does not count: all losses are 0 there."""
    shape = predictions.shape
    if targets.shape != shape:
        raise ValueError(f"targets {targets.shape} must have the shape of predictions {shape}")
    pair = predictions.astype(jnp.float32), targets.astype(jnp.float32)
    if where is None:
        return pair
    if where.shape != shape:
        raise ValueError(f"where {where.shape} must have the shape of predictions {shape}")
    # What goes in is masked, not what comes out: backwards, zero times NaN is NaN.
    return jnp.where(where, pair[0], 0.0), jnp.where(where, pair[1], 0.0)
