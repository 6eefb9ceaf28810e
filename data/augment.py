"""Augmentations: pure functions of a key and a batch, run on the device inside the training step.

`f(key, batch, *, options) -> batch`. A batch is a dict with `image`, float [batch, height, width,
channels] in [0, 1], and `label`, int [batch] or, once mixed, float [batch, classes]; all other
entries pass through untouched. What moves pixels is in `data.geometry`.

Image i draws from `fold_in(key, i)`, whatever the batch size and the number of devices. A pipeline
is a tuple of functions, options bound by `functools.partial`, for `apply`. Options are Python
numbers; a bad one raises ValueError when the step is traced.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ops.image import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_filter,
    grayscale,
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


def check_probability(name: str, probability: float) -> None:
    """Raises ValueError, in the name of an augmentation, if `probability` is outside [0, 1]."""
    if not 0 <= probability <= 1:
        raise ValueError(f"{name}: probability must be in [0, 1], got {probability}")


def random_apply(
    key: PRNGKeyArray, batch: Batch, *, augmentation: Augmentation, probability: float
) -> Batch:
    """Applies `augmentation` to each example with `probability`; the others keep all their entries.

    It is computed for the whole batch.

    Raises:
      ValueError: the probability is outside [0, 1], or an entry of the batch would change its shape
        or type (a crop of another size, labels that become soft).
    """
    check_probability("random_apply", probability)
    key_choice, key_augmentation = jax.random.split(key)
    augmented = augmentation(key_augmentation, batch)
    before, after = (
        {name: f"{entry.dtype} {list(entry.shape)}" for name, entry in entries.items()}
        for entries in (batch, augmented)
    )
    for name in before | after:
        if before.get(name) != after.get(name):
            raise ValueError(
                f"random_apply: {name} would change from {before.get(name)} to {after.get(name)}, "
                "which some rows of a batch cannot; apply this augmentation to all of them"
            )
    rows = row_keys(key_choice, len(batch["image"]))
    chosen = jax.vmap(jax.random.bernoulli, (0, None))(rows, probability)
    return {
        name: jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, batch[name])
        for name, new in augmented.items()
    }


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


def random_grayscale(key: PRNGKeyArray, batch: Batch, *, probability: float = 0.2) -> Batch:
    """Replaces every channel of an image by its luma (`ops.image.grayscale`) with `probability`.

    Raises:
      ValueError: the probability is outside [0, 1], or images have neither 1 nor 3 channels.
    """
    check_probability("random_grayscale", probability)

    def drain(key: PRNGKeyArray, image: Array) -> Array:
        return jnp.where(jax.random.bernoulli(key, probability), grayscale(image), image)

    return map_images(drain, key, batch)


def color_distortion(key: PRNGKeyArray, batch: Batch, *, strength: float = 1.0) -> Batch:
    """Colour jitter with probability 0.8, then grey with probability 0.2.

    Chen et al., 2020, arXiv:2002.05709, appendix A: brightness, contrast and saturation of 0.8
    `strength`, hue of 0.2 `strength`. Strength 0 leaves the grey alone.

    Raises:
      ValueError: the strength is outside [0, 2.5], where the hue leaves its range.
    """
    if not 0 <= strength <= 2.5:
        raise ValueError(f"color_distortion: strength must be in [0, 2.5], got {strength}")
    s = 0.8 * strength
    jitter = partial(color_jitter, brightness=s, contrast=s, saturation=s, hue=0.2 * strength)
    sometimes = partial(random_apply, augmentation=jitter, probability=0.8)
    return apply(key, batch, (sometimes, partial(random_grayscale, probability=0.2)))


def gaussian_blur(
    key: PRNGKeyArray,
    batch: Batch,
    *,
    probability: float = 0.5,
    sigma: tuple[float, float] = (0.1, 2.0),
    kernel_share: float = 0.1,
) -> Batch:
    """Blurs each image with `probability`; borders are mirrored (`ops.image.gaussian_filter`).

    Chen et al., 2020, arXiv:2002.05709, appendix A.

    Args:
      key: the key of the batch.
      batch: see the module.
      probability: of each image to be blurred.
      sigma: least and greatest standard deviation in pixels, drawn uniformly.
      kernel_share: size of the kernel as a share of the shorter side, in (0, 1]. The kernel has an
        odd number of pixels, at least 3: at 0.1 that is 3 for a side of 32 and 23 for 224.

    Raises:
      ValueError: the probability, sigma or the share is out of range.
    """
    check_probability("gaussian_blur", probability)
    if not 0 < sigma[0] <= sigma[1]:
        raise ValueError(f"gaussian_blur: sigma must be a positive range, got {sigma}")
    if not 0 < kernel_share <= 1:
        raise ValueError(f"gaussian_blur: kernel_share must be in (0, 1], got {kernel_share}")
    radius = max(int(kernel_share * min(float_images(batch).shape[1:3]) / 2), 1)

    def blur(key: PRNGKeyArray, image: Array) -> Array:
        key_choice, key_sigma = jax.random.split(key)
        deviation = jax.random.uniform(key_sigma, minval=sigma[0], maxval=sigma[1])
        blurred = gaussian_filter(image, deviation, radius=radius)
        return jnp.where(jax.random.bernoulli(key_choice, probability), blurred, image)

    return map_images(blur, key, batch)


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
