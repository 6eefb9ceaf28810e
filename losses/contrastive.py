"""Losses that know an example by its embedding: its own views are near, all others far.

Embeddings are brought to unit length inside, so that their products are cosines; a zero vector has
cosine 0 to all and no gradient. All is computed in float32 and nothing is reduced.

The others are those of the whole batch. Under ``jit`` that is the global batch by construction.
Under ``pmap`` and ``shard_map`` over the axis ``ops.mapped.REPLICAS`` the embeddings of all
replicas are gathered, which must have equally many: the mean over the replicas of their mean
losses, and of the gradients of these, is then that of the global batch. Over an axis of another
name each would know its own examples only. Either way the loss of an example depends on the others,
and microbatches do not add up to the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Integer

from opsin.ops import mapped
from opsin.ops.vectors import unit_length
from opsin.ranges import Count, Positive

_NEVER = -1e30  # a logit whose exponential is 0; among nothing but −inf, gradients would be NaN


def nt_xent_loss(
    views: Float[Array, "views batch d"],
    *,
    temperature: Positive | Float[Array, ""],
    chunk: Count | None = None,
) -> Float[Array, "views batch"]:
    """−log(e^{p/τ} / (e^{p/τ} + Σ e^{n/τ})) for the cosines p of a positive and n of negatives.

    Chen et al., 2020, arXiv:2002.05709, eq. 1. The positive of an anchor is the other view of its
    image, its negatives are all views of all other images; the anchor itself is left out. Of more
    than two views, the loss is the mean over the positives, each alone with the negatives in its
    denominator: the anchor's other positives are not in it, so no view is pushed from its own
    image. A batch of one image has no negatives, and loss 0.

    Args:
        views: embeddings, row i of every view from image i.
        temperature: τ > 0.
        chunk: images whose anchors meet all others at a time, which makes memory linear in the
            batch; value and gradient stay the same, but products are made twice. Under ``jit`` all
            devices share in each chunk. None: all at once.

    Raises:
        ValueError: not two views or more, a temperature that is not positive, or a chunk that does
            not divide the batch (of one replica, where it is mapped).
    """
    positives, negatives = _positives_and_negatives(views, temperature, chunk)
    return _mean_over_positives(jax.nn.softplus(negatives - positives))


def decoupled_contrastive_loss(
    views: Float[Array, "views batch d"],
    *,
    temperature: Positive | Float[Array, ""],
    chunk: Count | None = None,
) -> Float[Array, "views batch"]:
    """−p/τ + log Σ e^{n/τ}: NT-Xent with no positive in the denominator (DCL).

    Yeh et al., 2022, arXiv:2110.06848, L_DC of section 3, without weights. It can be negative, and
    its gradient does not fade as the positive gets more likely than all negatives.

    Args:
        views: as of ``nt_xent_loss``, of two images or more.
        temperature: τ > 0.
        chunk: as of ``nt_xent_loss``.

    Raises:
        ValueError: as ``nt_xent_loss``, or a batch of one image, which has no negatives.
    """
    positives, negatives = _positives_and_negatives(views, temperature, chunk)
    if views.shape[1] * mapped.size() < 2:
        raise ValueError("a batch of one image has no negatives: take two images or more")
    return _mean_over_positives(negatives - positives)


def supervised_contrastive_loss(
    views: Float[Array, "views batch d"],
    labels: Integer[Array, "batch"],
    *,
    temperature: Positive | Float[Array, ""],
) -> Float[Array, "views batch"]:
    """Mean over p of −log(e^{p/τ} / Σ_a e^{a/τ}): p cosines of the label's views, a of all.

    Khosla et al., 2020, arXiv:2004.11362, eq. 2 (L_out). Positives are all other views of all
    images with the label of the anchor, and the denominator has them all, with the negatives. Of
    two views and labels that all differ it is ``nt_xent_loss``.

    Args:
        views: embeddings, row i of every view from image i.
        labels: of the images.
        temperature: τ > 0.

    Raises:
        ValueError: not two views or more, labels of other images, or a temperature that is not
            positive.
    """
    anchors = _check_views(views)
    if labels.shape != views.shape[1:2]:
        raise ValueError(f"labels {labels.shape} must be one for each image of views {views.shape}")
    _check_positive("temperature", temperature)
    keys = mapped.gather(anchors, axis=1)
    logits = _products(anchors, keys) / temperature  # [V, B, V, N]
    same_image = _rows(len(labels))[:, None] == jnp.arange(keys.shape[1])  # [B, N]
    itself = jnp.eye(len(views), dtype=bool)[:, None, :, None] & same_image[None, :, None]
    alike = labels[:, None] == mapped.gather(labels)  # [B, N]
    positive = alike[None, :, None] & ~itself
    total = jax.nn.logsumexp(jnp.where(itself, _NEVER, logits), axis=(2, 3))
    # One view of the same image at least is among them.
    return total - jnp.mean(logits, axis=(2, 3), where=positive)


def info_nce_loss(
    queries: Float[Array, "batch d"],
    keys: Float[Array, "batch d"],
    *,
    temperature: Positive | Float[Array, ""],
    negatives: Float[Array, "negatives d"] | None = None,
) -> Float[Array, "batch"]:
    """Cross-entropy, in nats, of finding the key of a query among keys by cosine / τ.

    van den Oord et al., 2018, arXiv:1807.03748, eq. 4, with f = exp(cosine / τ). The key of a query
    is that in its row. Of N keys, log N minus the mean loss is a bound of their mutual information
    with the queries from below (section 2.3).

    Args:
        queries: embeddings.
        keys: embeddings of what belongs to them; ``jax.lax.stop_gradient`` is for the caller to
            set.
        temperature: τ > 0.
        negatives: other keys, such as a queue (He et al., 2020, arXiv:1911.05722, eq. 1), in place
            of those in the other rows; each replica takes its own.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
    """
    queries, keys = _check_pair(queries, keys)
    _check_positive("temperature", temperature)
    if negatives is None:
        return _matching_loss(queries, keys, 1.0 / temperature)
    if negatives.ndim != 2 or negatives.shape[1] != keys.shape[1]:
        raise ValueError(f"negatives {negatives.shape} must be rows as keys {keys.shape} are")
    own = jnp.sum(queries * keys, axis=1, keepdims=True)
    logits = jnp.concatenate([own, _products(queries, unit_length(negatives))], axis=1)
    first = jnp.zeros(len(queries), jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits / temperature, first)


def clip_loss(
    image: Float[Array, "batch d"],
    text: Float[Array, "batch d"],
    *,
    scale: Positive | Float[Array, ""],
) -> Float[Array, "batch"]:
    """½ cross-entropy of an image's text among all texts + ½ of a text's image among all images.

    Radford et al., 2021, arXiv:2103.00020, figure 3.

    Args:
        image: embeddings of images.
        text: embeddings of texts, that of an image in its row.
        scale: one over the temperature, > 0; where it is learned, the exponential of a parameter,
            which the authors keep below 100.

    Raises:
        ValueError: shapes that differ, or a scale that is not positive.
    """
    image, text = _check_pair(image, text)
    _check_positive("scale", scale)
    return 0.5 * (_matching_loss(image, text, scale) + _matching_loss(text, image, scale))


def siglip_loss(
    image: Float[Array, "batch d"],
    text: Float[Array, "batch d"],
    *,
    scale: Positive | Float[Array, ""],
    bias: float | Float[Array, ""],
) -> Float[Array, "batch"]:
    """−Σ_j log σ(±(t cosine + b)) for an image and all texts j: + for its own text, − for others.

    Zhai et al., 2023, arXiv:2303.15343, algorithm 1, whose loss is the mean over the batch.

    Args:
        image: embeddings of images.
        text: embeddings of texts, that of an image in its row.
        scale: t > 0; the authors learn its logarithm, from t = 10.
        bias: b; the authors learn it, from −10: almost all pairs are no match.

    Raises:
        ValueError: shapes that differ, or a scale that is not positive.
    """
    image, text = _check_pair(image, text)
    _check_positive("scale", scale)
    logits = scale * _products(image, mapped.gather(text)) + bias
    match = _rows(len(image))[:, None] == jnp.arange(logits.shape[1])
    losses = optax.sigmoid_binary_cross_entropy(logits, match.astype(jnp.float32))
    return jnp.sum(losses, axis=1)


def _positives_and_negatives(
    views: Array, temperature: float | Array, chunk: int | None
) -> tuple[Array, Array]:
    """What NT-Xent compares, the cosines over τ.

    Of an anchor and each view of its image, itself included: [V, V, B]. And the logarithm of the
    sum of the exponentials of those of its negatives: [V, 1, B].
    """
    anchors = _check_views(views)
    _check_positive("temperature", temperature)
    keys = mapped.gather(anchors, axis=1)

    def log_sum_negatives(anchors: Array, rows: Array) -> Array:
        logits = _products(anchors, keys) / temperature  # [V, b, V, N]
        same_image = rows[:, None] == jnp.arange(keys.shape[1])  # [b, N]
        return jax.nn.logsumexp(jnp.where(same_image[:, None], _NEVER, logits), axis=(2, 3))

    positives = jnp.einsum("vbd,wbd->vwb", anchors, anchors, precision="highest") / temperature
    rows = _rows(anchors.shape[1])
    if chunk is None:
        negatives = log_sum_negatives(anchors, rows)
    else:
        negatives = _by_chunk(log_sum_negatives, anchors, rows, chunk)
    return positives, negatives[:, None]


def _by_chunk(
    function: Callable[[Array, Array], Array], anchors: Array, rows: Array, chunk: int
) -> Array:
    """function(anchors, rows), [V, B], for so many rows at a time, in the gradient as well."""
    count, batch, width = anchors.shape
    if chunk < 1 or batch % chunk:
        fits = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= max(chunk, 1))
        raise ValueError(f"chunk={chunk} does not divide a batch of {batch}: take chunk={fits}")
    parts = batch // chunk
    # Every parts-th row goes to one chunk: then each device has a share of all.
    anchors = jnp.moveaxis(anchors.reshape(count, chunk, parts, width), 2, 0)  # [parts, V, b, d]
    rows = rows.reshape(chunk, parts).T  # [parts, b]
    # A scan keeps the recomputation from being merged away.
    remade = jax.checkpoint(function, prevent_cse=False)
    values = lax.map(lambda part: remade(*part), (anchors, rows))  # [parts, V, b]
    return jnp.moveaxis(values, 0, 2).reshape(count, batch)


def _mean_over_positives(values: Array) -> Array:
    """[V, V, B] to [V, B]: the mean over the views of an image but the anchor itself."""
    others = ~jnp.eye(len(values), dtype=bool)
    return jnp.mean(values, axis=1, where=others[:, :, None])


def _matching_loss(queries: Array, keys: Array, scale: float | Array) -> Array:
    """Cross-entropy of finding the key in the row of a query among all keys."""
    logits = scale * _products(queries, mapped.gather(keys))
    rows = _rows(len(queries))
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows)


def _products(a: Array, b: Array) -> Array:
    """Of all vectors with all, [*a, *b], in one product of matrices."""
    return jnp.tensordot(a, b, axes=(-1, -1), precision="highest")


def _rows(batch: int) -> Array:
    """Where the examples of this replica are among those of all."""
    return mapped.index() * batch + jnp.arange(batch)


def _check_views(views: Array) -> Array:
    """At unit length."""
    if views.ndim != 3 or len(views) < 2:
        raise ValueError(f"views must be [views, batch, d] with two views or more: {views.shape}")
    return unit_length(views)


def _check_pair(a: Array, b: Array) -> tuple[Array, Array]:
    """Both at unit length."""
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} must both be [batch, d], a pair in each row")
    return unit_length(a), unit_length(b)


def _check_positive(name: str, value: float | Array) -> None:
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
