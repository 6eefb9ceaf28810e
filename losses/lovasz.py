"""Losses of segmentation that extend the Jaccard index by way of the Lovász extension.

The Jaccard loss of a class is a function of the set of its wrong pixels. Its Lovász extension
Δ(m) = Σ_i m_i (J(first i) − J(first i − 1)), over the errors m in falling order, with J(first i)
the loss if exactly the i largest errors were wrong, is convex in m, piecewise linear, and equal to
the Jaccard loss where all errors are 0 or 1: Berman et al., 2018, arXiv:1705.08790, eq. 8 and 9.

Arguments are those of ``losses.segmentation``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from opsin.losses.reduction import weighted_mean
from opsin.losses.segmentation import class_probabilities
from opsin.ranges import CountOrZero


def lovasz_softmax_loss(
    logits: Float[Array, "batch *pixels classes"],
    labels: Integer[Array, "batch *pixels"],
    *,
    classes: tuple[CountOrZero, ...] | None = None,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, "batch"]:
    """Lovász extension of the Jaccard loss at the errors |t − p|, in [0, 1]; ibid., eq. 11.

    One extension per image and class, then the mean over the classes that the image's labels name;
    an image without any has loss 0 and gradient 0 (``lovasz_hinge_loss`` learns from empty masks).

    Args:
        logits: see ``losses.segmentation``, as for ``labels``, ``classes`` and ``where``.
        labels: integers.
        classes: those that are averaged.
        where: the pixels that count.
    """
    p, t, _ = class_probabilities(logits, labels, classes, where)
    p, t = (jnp.moveaxis(x.reshape(len(x), -1, x.shape[-1]), -1, 1) for x in (p, t))  # [B, K, N]
    losses = _extension(jnp.abs(t - p), t)
    return jax.vmap(weighted_mean)(losses, jnp.sum(t, axis=-1) != 0.0)


def lovasz_hinge_loss(
    logits: Float[Array, "batch *pixels 1"],
    labels: Integer[Array, "batch *pixels"],
    *,
    where: Bool[Array, "batch *pixels"] | None = None,
) -> Float[Array, "batch"]:
    """Lovász extension of the foreground's Jaccard loss at the hinge errors max(0, 1 − z s), ≥ 0.

    z is the one logit and s the label as ±1. With an empty mask, J is 1 as soon as one pixel is
    wrong, and the loss is the largest error.

    Args:
        logits: one per pixel, positive for the foreground.
        labels: 0 or 1.
        where: the pixels that count; an image without any has loss 0 and gradient 0.

    Raises:
        ValueError: more than one logit per pixel, or shapes that do not fit.
    """
    if logits.shape[-1] != 1:
        raise ValueError(f"lovasz_hinge_loss needs one logit per pixel, not {logits.shape[-1]}")
    _, t, keep = class_probabilities(logits, labels, None, where)
    t, keep, z = (x.reshape(len(x), -1) for x in (t, keep, logits.astype(jnp.float32)))  # [B, N]
    z = jnp.where(keep, z, 0.0)
    return _extension(jnp.where(keep, jax.nn.relu(1.0 - z * (2.0 * t - 1.0)), 0.0), t)


def _extension(errors: Array, t: Array) -> Array:
    """Over the last axis. Ignored pixels have no error: they come last, and their steps weigh 0."""
    truth = (t == 1.0).astype(jnp.int32)
    falling, truth = jax.lax.sort((-errors, truth), num_keys=1)
    rest = 1 - truth
    total = jnp.sum(truth, axis=-1, keepdims=True)
    intersection = (total - jnp.cumsum(truth, axis=-1)).astype(jnp.float32)
    union = (total + jnp.cumsum(rest, axis=-1)).astype(jnp.float32)
    # J = 1 − intersection / union, so a missed pixel adds 1 / union, a false one intersection /
    # (union (union − 1)). Differences of J itself would be lost to rounding in large images.
    false = intersection / (jnp.maximum(union, 1.0) * jnp.maximum(union - 1.0, 1.0))
    false = jnp.where(total == 0, union == 1.0, false)  # without truth, J is 1 from the first
    steps = truth / jnp.maximum(union, 1.0) + rest * false
    return -jnp.sum(falling * steps, axis=-1)
