"""Augmentations that change colors and add blur or noise."""

from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jaxtyping import Array, Key

from opsin.data.augment import (
    Batch,
    apply,
    check_ascending,
    float_images,
    map_images,
    random_apply,
)
from opsin.imaging.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
)
from opsin.imaging.filters import gaussian_filter
from opsin.ranges import NonNegative, Positive, Probability, Share


def color_jitter(
    key: Key[Array, ""],
    batch: Batch,
    *,
    brightness: NonNegative = 0.0,
    contrast: NonNegative = 0.0,
    saturation: NonNegative = 0.0,
    hue: Annotated[float, Interval(ge=0, le=0.5)] = 0.0,
) -> Batch:
    """Changes brightness, contrast, saturation and hue, in a random order for each image.

    As torchvision's ColorJitter. A strength s draws a factor uniformly from [max(0, 1 - s), 1 + s]
    (see ``imaging.color``), ``hue`` a turn from [-hue, hue] of a full circle; 0 leaves the step
    out. Saturation and hue leave an image of one channel as it is.
    """
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

    def jitter(key: Key[Array, ""], image: Array) -> Array:
        key_amount, key_order = jax.random.split(key)
        amounts = jax.random.uniform(
            key_amount, (len(steps),), minval=jnp.array(low), maxval=jnp.array(high)
        )

        def step(image: Array, index: Array) -> tuple[Array, None]:
            return jax.lax.switch(index, functions, image, amounts[index]), None

        return jax.lax.scan(step, image, jax.random.permutation(key_order, len(steps)))[0]

    return map_images(jitter, key, batch)


def random_grayscale(key: Key[Array, ""], batch: Batch, *, probability: Probability = 0.2) -> Batch:
    """Replaces every channel of an image by its luma with ``probability``.

    See ``imaging.color.grayscale``.

    Raises:
        ValueError: images have neither 1 nor 3 channels.
    """

    def drain(key: Key[Array, ""], image: Array) -> Array:
        return jnp.where(jax.random.bernoulli(key, probability), grayscale(image), image)

    return map_images(drain, key, batch)


def color_distortion(
    key: Key[Array, ""], batch: Batch, *, strength: Annotated[float, Interval(ge=0, le=2.5)] = 1.0
) -> Batch:
    """Colour jitter with probability 0.8, then grey with probability 0.2.

    Chen et al., 2020, arXiv:2002.05709, appendix A: brightness, contrast and saturation of 0.8
    ``strength``, hue of 0.2 ``strength``. Strength 0 leaves the grey alone.
    """
    s = 0.8 * strength
    jitter = partial(color_jitter, brightness=s, contrast=s, saturation=s, hue=0.2 * strength)
    sometimes = partial(random_apply, augmentation=jitter, probability=0.8)
    return apply(key, batch, (sometimes, partial(random_grayscale, probability=0.2)))


def gaussian_blur(
    key: Key[Array, ""],
    batch: Batch,
    *,
    probability: Probability = 0.5,
    sigma: tuple[Positive, Positive] = (0.1, 2.0),
    kernel_share: Share = 0.1,
) -> Batch:
    """Blurs each image with ``probability``; borders are mirrored.

    See ``imaging.filters.gaussian_filter``.

    Chen et al., 2020, arXiv:2002.05709, appendix A.

    Args:
        key: the key of the batch.
        batch: see the module.
        probability: of each image to be blurred.
        sigma: least and greatest standard deviation in pixels, drawn uniformly.
        kernel_share: size of the kernel as a share of the shorter side, in (0, 1]. The kernel has
            an odd number of pixels, at least 3: at 0.1 that is 3 for a side of 32 and 23 for 224.

    Raises:
        ValueError: the range of sigma is empty.
    """
    check_ascending("gaussian_blur", "sigma", sigma)
    radius = max(int(kernel_share * min(float_images(batch).shape[1:3]) / 2), 1)

    def blur(key: Key[Array, ""], image: Array) -> Array:
        key_choice, key_sigma = jax.random.split(key)
        deviation = jax.random.uniform(key_sigma, minval=sigma[0], maxval=sigma[1])
        blurred = gaussian_filter(image, deviation, radius=radius)
        return jnp.where(jax.random.bernoulli(key_choice, probability), blurred, image)

    return map_images(blur, key, batch)


def gaussian_noise(key: Key[Array, ""], batch: Batch, *, std: NonNegative) -> Batch:
    """Adds normal noise to every pixel and channel; values may leave [0, 1].

    Vincent et al., 2010, "Stacked denoising autoencoders", JMLR 11, section 3.3.

    Args:
        key: of the draw.
        batch: with ``image`` float [batch, height, width, channels] in [0, 1].
        std: standard deviation, at least 0.

    Raises:
        ValueError: if the images are not float.
    """

    def add(key: Key[Array, ""], image: Array) -> Array:
        return image + std * jax.random.normal(key, image.shape, image.dtype)

    return map_images(add, key, batch)
