"""Augmentations: pure functions of a key and a batch, run on the device inside the training step.

`f(key, batch, *, options) -> batch`. A batch is a dict with `image`, float [batch, height, width,
channels] in [0, 1], and `label`, int [batch] or, once mixed, float [batch, classes]; all other
entries pass through untouched. What moves pixels is in `data.geometry`.

Image i draws from `fold_in(key, i)`, whatever the batch size and the number of devices. A pipeline
is a tuple of functions, options bound by `functools.partial`, for `apply`. Options are Python
numbers; a bad one raises ValueError when the step is traced.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ops.image import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    rectangle,
)

Batch = dict[str, Array]
Augmentation = Callable[[PRNGKeyArray, Batch], Batch]


def apply(key: PRNGKeyArray, batch: Batch, augmentations: Sequence[Augmentation]) -> Batch:
    """Applies the augmentations in order, the n-th with the key `fold_in(key, n)`."""
    for position, augmentation in enumerate(augmentations):
        batch = augmentation(jax.random.fold_in(key, position), batch)
    return batch


def map_images(
    function: Callable[[PRNGKeyArray, Array], Array], key: PRNGKeyArray, batch: Batch
) -> Batch:
    """Replaces each image by `function(fold_in(key, row), image)`.

    Raises:
      ValueError: the images are not float [batch, height, width, channels].
    """
    images = float_images(batch)
    return {**batch, "image": jax.vmap(function)(row_keys(key, len(images)), images)}


def float_images(batch: Batch) -> Array:
    """The images of a batch.

    Raises:
      ValueError: they are not float [batch, height, width, channels].
    """
    images = batch["image"]
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            "images must be float [batch, height, width, channels] in [0, 1] (see scale), "
            f"got {images.dtype} {list(images.shape)}"
        )
    return images


def row_keys(key: PRNGKeyArray, rows: int) -> PRNGKeyArray:
    """One key for each row of a batch, whatever their number: `fold_in(key, row)`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def scale(batch: Batch) -> Batch:
    """Turns uint8 images into float32 in [0, 1].

    Raises:
      ValueError: the images are not uint8 (scaled already, perhaps).
    """
    if batch["image"].dtype != jnp.uint8:
        raise ValueError(f"scale: uint8 images are needed, got {batch['image'].dtype}")
    return {**batch, "image": jnp.asarray(batch["image"], jnp.float32) / 255}


def normalize(batch: Batch, mean: float | Sequence[float], std: float | Sequence[float]) -> Batch:
    """Subtracts `mean` and divides by `std`, one number or one a channel, in units of [0, 1].

    Raises:
      ValueError: a standard deviation is not positive, or there are neither one nor as many numbers
        as channels.
    """
    if np.any(np.asarray(std) <= 0):
        raise ValueError(f"normalize: std must be positive, got {std}")
    images = float_images(batch)
    for name, numbers in (("mean", mean), ("std", std)):
        if np.size(numbers) not in (1, images.shape[-1]):
            raise ValueError(
                f"normalize: {name} has {np.size(numbers)} numbers, "
                f"images {images.shape[-1]} channels"
            )
    centred = images - jnp.asarray(mean, images.dtype)
    return {**batch, "image": centred / jnp.asarray(std, images.dtype)}


def color_jitter(
    key: PRNGKeyArray,
    batch: Batch,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Batch:
    """Changes brightness, contrast, saturation and hue, in a random order for each image.

    As torchvision's ColorJitter. A strength s draws a factor uniformly from [max(0, 1 - s), 1 + s]
    (see `ops.image`), `hue` a turn from [-hue, hue] of a full circle; 0 leaves the step out.
    Saturation and hue leave an image of one channel as it is.

    Raises:
      ValueError: a strength is negative, or the hue outside [0, 0.5].
    """
    strengths = (brightness, contrast, saturation, hue)
    if min(strengths) < 0 or hue > 0.5:
        raise ValueError(
            "color_jitter: strengths must not be negative, nor hue above 0.5, got "
            f"brightness={brightness}, contrast={contrast}, saturation={saturation}, hue={hue}"
        )
    steps = [
        (adjust_brightness, max(1 - brightness, 0), 1 + brightness),
        (adjust_contrast, max(1 - contrast, 0), 1 + contrast),
        (adjust_saturation, max(1 - saturation, 0), 1 + saturation),
        (adjust_hue, -hue, hue),
    ]
    steps = [step for step in steps if step[1] < step[2]]
    if not steps:
        return batch
    functions, low, high = zip(*steps, strict=True)

    def jitter(key: PRNGKeyArray, image: Array) -> Array:
        key_amount, key_order = jax.random.split(key)
        amounts = jax.random.uniform(
            key_amount, (len(steps),), minval=jnp.array(low), maxval=jnp.array(high)
        )

        def step(image: Array, index: Array) -> tuple[Array, None]:
            return jax.lax.switch(index, functions, image, amounts[index]), None

        return jax.lax.scan(step, image, jax.random.permutation(key_order, len(steps)))[0]

    return map_images(jitter, key, batch)


def cutout(
    key: PRNGKeyArray, batch: Batch, *, size: int, fill: float | Sequence[float] = 0.0
) -> Batch:
    """Sets a square to `fill`; its centre is any pixel, what lies outside the image is cut off.

    DeVries & Taylor, 2017, arXiv:1708.04552, section 3.2. The authors fill with the mean of the
    data; `fill` is one number or one a channel.

    Raises:
      ValueError: the size is not positive or larger than the image.
    """
    height, width = float_images(batch).shape[1:3]
    if not 0 < size <= min(height, width):
        raise ValueError(f"cutout: size must be in [1, {min(height, width)}], got {size}")

    def cut(key: PRNGKeyArray, image: Array) -> Array:
        square = _random_rectangle(key, height, width, jnp.array([size, size]))
        return jnp.where(square[..., None], jnp.asarray(fill, image.dtype), image)

    return map_images(cut, key, batch)


def gaussian_noise(key: PRNGKeyArray, batch: Batch, *, std: float) -> Batch:
    """Adds normal noise to every pixel and channel; values may leave [0, 1].

    Vincent et al., 2010, "Stacked denoising autoencoders", JMLR 11, section 3.3.

    Args:
      key: of the draw.
      batch: with `image` float [batch, height, width, channels] in [0, 1].
      std: standard deviation, at least 0.

    Raises:
      ValueError: if `std` is negative, or the images are not float.
    """
    if std < 0:
        raise ValueError(f"std={std} is negative")

    def add(key: PRNGKeyArray, image: Array) -> Array:
        return image + std * jax.random.normal(key, image.shape, image.dtype)

    return map_images(add, key, batch)


def _random_rectangle(key: PRNGKeyArray, height: int, width: int, size: Array) -> Array:
    """The mask [height, width] of a rectangle centred on any pixel, clipped at the border."""
    centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    return rectangle(height, width, corner=centre - size // 2, size=size)


def mixup(
    key: PRNGKeyArray,
    batch: Batch,
    *,
    alpha: float,
    num_classes: int | None = None,
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
      ValueError: alpha is not positive, or `num_classes` is missing or not that of soft labels.
    """
    images, labels = float_images(batch), _soft_labels(batch, num_classes)
    if alpha <= 0:
        raise ValueError(f"mixup: alpha must be positive, got {alpha}")

    def draw(key: PRNGKeyArray) -> Array:
        return jax.random.beta(key, alpha, alpha, dtype=images.dtype)

    share = jax.vmap(draw)(row_keys(key, len(images) if per_example else 1))
    return {
        **batch,
        "image": _mix(images, share[:, None, None, None]),
        "label": _mix(labels, share[:, None]),
    }


def cutmix(
    key: PRNGKeyArray,
    batch: Batch,
    *,
    alpha: float,
    num_classes: int | None = None,
    per_example: bool = False,
) -> Batch:
    """Pastes a rectangle of the image before it into each image and mixes the labels by area.

    Yun et al., 2019, arXiv:1905.04899, eqs. 1 and 2: the sides are sqrt(1 - lambda) of the image's,
    lambda ~ Beta(alpha, alpha), the centre is any pixel. The rectangle is rounded down to whole
    pixels and clipped at the border; the labels follow the area that is truly pasted.

    Arguments, partners and errors as in `mixup`; `per_example` draws a rectangle for each image.
    """
    images, labels = float_images(batch), _soft_labels(batch, num_classes)
    if alpha <= 0:
        raise ValueError(f"cutmix: alpha must be positive, got {alpha}")
    height, width = images.shape[1:3]

    def draw(key: PRNGKeyArray) -> Array:
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
        return jax.nn.one_hot(labels, num_classes)
    if labels.ndim != 2 or num_classes not in (None, labels.shape[1]):
        raise ValueError(
            "labels must be int [batch] or float [batch, num_classes], "
            f"got {labels.dtype} {list(labels.shape)} and num_classes={num_classes}"
        )
    return labels
