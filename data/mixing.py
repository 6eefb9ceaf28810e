"""Augmentations that erase parts of images or mix images of a batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from opsin.data.augment import Batch, float_images, map_images
from opsin.imaging.warp import rectangle
from opsin.ops.keys import row_keys
from opsin.ops.labels import one_hot
from opsin.ranges import Count, Positive, Probability


def cutout(
    key: Key[Array, ""],
    batch: Batch,
    *,
    size: Count,
    fill: Probability | Sequence[Probability] = 0.0,
) -> Batch:
    """Sets a square to ``fill``; its centre is any pixel, what lies outside the image is cut off.

    DeVries & Taylor, 2017, arXiv:1708.04552, section 3.2. The authors fill with the mean of the
    data; ``fill`` is one number or one a channel.

    Raises:
        ValueError: the size is not positive or larger than the image.
    """
    height, width = float_images(batch).shape[1:3]
    if not 0 < size <= min(height, width):
        raise ValueError(f"cutout: size must be in [1, {min(height, width)}], got {size}")

    def cut(key: Key[Array, ""], image: Array) -> Array:
        square = _random_rectangle(key, height, width, jnp.array([size, size]))
        return jnp.where(square[..., None], jnp.asarray(fill, image.dtype), image)

    return map_images(cut, key, batch)


def _random_rectangle(key: Key[Array, ""], height: int, width: int, size: Array) -> Array:
    """The mask [height, width] of a rectangle centred on any pixel, clipped at the border."""
    centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    return rectangle(height, width, corner=centre - size // 2, size=size)


def mixup(
    key: Key[Array, ""],
    batch: Batch,
    *,
    alpha: Positive,
    num_classes: Count | None = None,
    per_example: bool = False,
) -> Batch:
    """Averages each image and its label with those of another: row i with i - 1, 0 with the last.

    Zhang et al., 2018, arXiv:1710.09412, section 2: lambda ~ Beta(alpha, alpha) is the share of the
    image itself. The batch is taken to be in random order.

    Args:
        key: the key of the batch.
        batch: see the module.
        alpha: greater than 0; 1 makes lambda uniform, towards 0 images stay nearly pure.
        num_classes: needed for integer labels, which become one-hot.
        per_example: one lambda for each image, not one for the batch.

    Raises:
        ValueError: ``num_classes`` is missing or not that of soft labels.
    """
    images, labels = float_images(batch), _soft_labels(batch, num_classes)

    def draw(key: Key[Array, ""]) -> Array:
        return jax.random.beta(key, alpha, alpha, dtype=images.dtype)

    share = jax.vmap(draw)(row_keys(key, len(images) if per_example else 1))
    return {
        **batch,
        "image": _mix(images, share[:, None, None, None]),
        "label": _mix(labels, share[:, None]),
    }


def cutmix(
    key: Key[Array, ""],
    batch: Batch,
    *,
    alpha: Positive,
    num_classes: Count | None = None,
    per_example: bool = False,
) -> Batch:
    """Pastes a rectangle of the image before it into each image and mixes the labels by area.

    Yun et al., 2019, arXiv:1905.04899, eqs. 1 and 2: the sides are sqrt(1 - lambda) of the image's,
    lambda ~ Beta(alpha, alpha), the centre is any pixel. The rectangle is rounded down to whole
    pixels and clipped at the border; the labels follow the area that is truly pasted.

    Arguments, partners and errors as in ``mixup``; ``per_example`` draws a rectangle for each
    image.
    """
    images, labels = float_images(batch), _soft_labels(batch, num_classes)
    height, width = images.shape[1:3]

    def draw(key: Key[Array, ""]) -> Array:
        key_share, key_centre = jax.random.split(key)
        side = jnp.sqrt(1 - jax.random.beta(key_share, alpha, alpha))
        size = jnp.floor(side * jnp.array([height, width])).astype(jnp.int32)
        return _random_rectangle(key_centre, height, width, size)

    pasted = jax.vmap(draw)(row_keys(key, len(images) if per_example else 1))  # [1 or B, H, W]
    kept = 1 - pasted.astype(images.dtype)
    return {
        **batch,
        "image": _mix(images, kept[..., None]),
        "label": _mix(labels, jnp.mean(kept, axis=(1, 2))[:, None]),
    }


def _mix(values: Array, share: Array) -> Array:
    return share * values + (1 - share) * jnp.roll(values, 1, axis=0)


def _soft_labels(batch: Batch, num_classes: int | None) -> Array:
    labels = batch["label"]
    if labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
        if num_classes is None:
            raise ValueError("mixing integer labels needs num_classes")
        return one_hot(labels, num_classes)
    if labels.ndim != 2 or num_classes not in (None, labels.shape[1]):
        raise ValueError(
            "labels must be int [batch] or float [batch, num_classes], "
            f"got {labels.dtype} {list(labels.shape)} and num_classes={num_classes}"
        )
    return labels
