"""RandAugment: a few operations, each drawn evenly from fourteen, all of one strength."""

from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from opsin.data.augment import Batch, map_images
from opsin.imaging.color import adjust_brightness, adjust_contrast, adjust_saturation
from opsin.imaging.filters import adjust_sharpness
from opsin.imaging.tone import autocontrast, equalize, posterize, solarize
from opsin.imaging.warp import affine_warp
from opsin.ranges import Depth, Probability


def rand_augment(
    key: Key[Array, ""],
    batch: Batch,
    *,
    layers: Depth = 2,
    magnitude: Annotated[float, Interval(ge=0, le=10)] = 9.0,
    fill: Probability = 0.5,
) -> Batch:
    """Applies ``layers`` operations to each image, each drawn evenly from ``OPERATIONS``.

    Cubuk et al., 2020, arXiv:1909.13719, figure 2. An operation with a direction takes each with
    probability 1/2. Strength grows with the magnitude for all of them: posterize and solarize,
    which weaken in the authors' code, are reversed, and enhancements go both ways, as in
    torchvision. Under ``vmap`` all fourteen are computed and one is kept.

    Args:
        key: the key of the batch.
        batch: images [batch, height, width, 1 or 3]; the rest passes through.
        layers: N of the paper, at least 1.
        magnitude: M of the paper, in [0, 10]; 10 is the upper end of AutoAugment's ranges
            (arXiv:1805.09501, appendix). Bin m of torchvision's 31 is m / 3 here.
        fill: the value of the pixels that a geometric operation uncovers.

    Raises:
        ValueError: the images have masks, which the geometric operations would not move.
    """
    if "mask" in batch:
        raise ValueError("rand_augment does not move masks; choose from data.geometry")
    operations = [partial(operation, fill=fill) for operation in OPERATIONS.values()]

    def augment(key: Key[Array, ""], image: Array) -> Array:
        key_choice, key_sign = jax.random.split(key)
        choices = jax.random.randint(key_choice, (layers,), 0, len(operations))
        levels = jax.random.rademacher(key_sign, (layers,), image.dtype) * magnitude / 10

        def step(image: Array, draw: tuple[Array, Array]) -> tuple[Array, None]:
            choice, level = draw
            return jax.lax.switch(choice, operations, image, level), None

        return jax.lax.scan(step, image, (choices, levels))[0]

    return map_images(augment, key, batch)


def _warp(image: Array, fill: float, *matrix: ArrayLike) -> Array:
    # The nearest pixel, as the authors and torchvision take it.
    return affine_warp(image, jnp.array(matrix, image.dtype).reshape(2, 3), order=0, fill=fill)


def _rotate(image: Array, level: Array, fill: float) -> Array:
    cosine, sine = jnp.cos(jnp.radians(30 * level)), jnp.sin(jnp.radians(30 * level))
    y, x = image.shape[0] / 2, image.shape[1] / 2  # the centre stays where it is
    shift_y, shift_x = y - cosine * y - sine * x, x + sine * y - cosine * x
    return _warp(image, fill, cosine, sine, shift_y, -sine, cosine, shift_x)


def _translate_y(image: Array, level: Array, fill: float) -> Array:
    return _warp(image, fill, 1, 0, level * image.shape[0] * 150 / 331, 0, 1, 0)


def _translate_x(image: Array, level: Array, fill: float) -> Array:
    return _warp(image, fill, 1, 0, 0, 0, 1, level * image.shape[1] * 150 / 331)


# `(image, level, fill) -> image`; level is the magnitude over 10 with a random sign, in [-1, 1].
# Shears keep the upper left corner. At level 0 all but autocontrast and equalize do nothing.
OPERATIONS = {
    "identity": lambda image, level, fill: image,
    "autocontrast": lambda image, level, fill: autocontrast(image),
    "equalize": lambda image, level, fill: equalize(image),
    "rotate": _rotate,
    "solarize": lambda image, level, fill: solarize(image, 256 / 255 * (1 - jnp.abs(level))),
    "color": lambda image, level, fill: adjust_saturation(image, 1 + 0.9 * level),
    "posterize": lambda image, level, fill: posterize(image, jnp.round(8 - 4 * jnp.abs(level))),
    "contrast": lambda image, level, fill: adjust_contrast(image, 1 + 0.9 * level),
    "brightness": lambda image, level, fill: adjust_brightness(image, 1 + 0.9 * level),
    "sharpness": lambda image, level, fill: adjust_sharpness(image, 1 + 0.9 * level),
    "shear_x": lambda image, level, fill: _warp(image, fill, 1, 0, 0, 0.3 * level, 1, 0),
    "shear_y": lambda image, level, fill: _warp(image, fill, 1, 0.3 * level, 0, 0, 1, 0),
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
