"""Augmentations that move pixels: of the image, and alike of what belongs to its pixels.

As those of ``data.augment``, these are ``f(key, batch, *, options) -> batch``, and example i draws
from ``fold_in(key, i)``. ``image`` is sampled bilinearly, and so is ``weight`` [batch, height,
width], where a batch has one; ``mask``, int [batch, height, width], takes the nearest pixel. Where
nothing of the original is left to see, the image is 0, the weight 0 and the mask ``IGNORE``, unless
borders are mirrored. No batch with boxes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jaxtyping import Array, Key

from opsin.data.augment import Batch, check_ascending, float_images
from opsin.data.masks import IGNORE
from opsin.imaging.warp import resized_crop, warp
from opsin.ops.keys import row_keys
from opsin.ranges import Count, CountOrZero, NonNegative, Positive, Probability, Share

Border = Literal["constant", "reflect"]


@dataclass(frozen=True)
class Layer:
    """How one entry of a batch is sampled.

    Attributes:
        order: 0 for the nearest pixel, 1 for bilinear.
        outside: the value of what lies outside the image.
    """

    order: int
    outside: float


LAYERS = {"image": Layer(1, 0.0), "mask": Layer(0, IGNORE), "weight": Layer(1, 0.0)}


def map_layers(
    move: Callable[[Key[Array, ""], Array, Layer], Array], key: Key[Array, ""], batch: Batch
) -> Batch:
    """Moves the layers of each example alike: ``move(fold_in(key, row), pixels, layer)``.

    ``pixels`` are [height, width, channels]; masks and weights have one channel. Masks come as
    float32, which holds every label, and keep their type.

    Raises:
        ValueError: the images are not float [batch, height, width, channels], or another layer is
            not of their size.
    """
    images = float_images(batch)
    keys = row_keys(key, len(images))
    moved = dict(batch)
    for name in [name for name in LAYERS if name in batch]:
        pixels = images if name == "image" else batch[name][..., None]
        if pixels.shape[:3] != images.shape[:3]:
            raise ValueError(
                f"{name} {list(batch[name].shape)} does not have the size of images {images.shape}"
            )
        new = jax.vmap(lambda key, x, layer=LAYERS[name]: move(key, x, layer))(
            keys, pixels.astype(images.dtype)
        )
        moved[name] = new if name == "image" else new[..., 0].astype(batch[name].dtype)
    return moved


def random_crop(
    key: Key[Array, ""],
    batch: Batch,
    *,
    size: Count | tuple[Count, Count] | None = None,
    padding: CountOrZero = 0,
    mode: Border = "constant",
) -> Batch:
    """Pads each side by ``padding`` pixels and crops at random.

    With padding=4 and the old size, this is the recipe of He et al., 2015, arXiv:1512.03385,
    section 4.2, for CIFAR.

    Args:
        key: the key of the batch.
        batch: see the module.
        size: height and width of the crop, or one number for both; None keeps the old ones.
        padding: pixels that are added on each side first.
        mode: "constant", see the module, or "reflect" for mirrored borders.

    Raises:
        ValueError: the mode is unknown, or the crop larger than what there is.
    """
    _check_border("random_crop", mode)
    if size is None and padding == 0:
        raise ValueError("random_crop: with neither size nor padding it does nothing")
    old = float_images(batch).shape[1:3]
    height, width = (int(n) for n in np.broadcast_to(old if size is None else size, 2))
    room = [side + 2 * padding - new for side, new in zip(old, (height, width), strict=True)]
    if min(room) < 0:
        raise ValueError(
            f"random_crop: size {height}x{width} does not fit images of {old[0]}x{old[1]} pixels "
            f"with padding={padding}"
        )

    def crop(key: Key[Array, ""], pixels: Array, layer: Layer) -> Array:
        sides = ((padding, padding), (padding, padding), (0, 0))
        fill = {"constant_values": layer.outside} if mode == "constant" else {}
        padded = jnp.pad(pixels, sides, mode, **fill)
        top, left = jax.random.randint(key, (2,), 0, jnp.array(room) + 1)
        return jax.lax.dynamic_slice(padded, (top, left, 0), (height, width, pixels.shape[-1]))

    return map_layers(crop, key, batch)


def random_flip(
    key: Key[Array, ""], batch: Batch, *, probability: Probability = 0.5, vertical: bool = False
) -> Batch:
    """Mirrors each image with ``probability``, left to right or, if ``vertical``, top to bottom."""

    def flip(key: Key[Array, ""], pixels: Array, layer: Layer) -> Array:
        mirrored = pixels[::-1] if vertical else pixels[:, ::-1]
        return jnp.where(jax.random.bernoulli(key, probability), mirrored, pixels)

    return map_layers(flip, key, batch)


def random_quarter_turn(key: Key[Array, ""], batch: Batch) -> Batch:
    """Turns each image by 0, 90, 180 or 270 degrees, with equal probability.

    Raises:
        ValueError: the images are not square.
    """
    height, width = float_images(batch).shape[1:3]
    if height != width:
        raise ValueError(f"random_quarter_turn: images must be square, got {height}x{width}")

    def turn(key: Key[Array, ""], pixels: Array, layer: Layer) -> Array:
        turns = [lambda x, k=k: jnp.rot90(x, k) for k in range(4)]
        return jax.lax.switch(jax.random.randint(key, (), 0, 4), turns, pixels)

    return map_layers(turn, key, batch)


def random_resized_crop(
    key: Key[Array, ""],
    batch: Batch,
    *,
    size: Count | tuple[Count, Count] | None = None,
    scale: tuple[Share, Share] = (0.08, 1.0),
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3),
) -> Batch:
    """Crops a random part of the image and resizes it; bilinear and antialiased but for masks.

    Szegedy et al., 2014, arXiv:1409.4842, section 6. The area is uniform in ``scale``, a fraction
    of the image, the aspect ratio width / height log-uniform in ``ratio``. As in torchvision, the
    first of ten draws that fits is taken. Unlike there, the box is not rounded to whole pixels, and
    where none of the ten fits, the first is shrunk until it does (torchvision: a central crop).

    Args:
        key: the key of the batch.
        batch: see the module.
        size: the new height and width, or one number for both; None keeps the old ones.
        scale: least and greatest area, in (0, 1].
        ratio: least and greatest aspect ratio.

    Raises:
        ValueError: a range is empty.
    """
    check_ascending("random_resized_crop", "scale", scale)
    check_ascending("random_resized_crop", "ratio", ratio)
    old_size = np.array(float_images(batch).shape[1:3])
    new_size = np.broadcast_to(old_size if size is None else size, 2)

    def crop(key: Key[Array, ""], pixels: Array, layer: Layer) -> Array:
        key_area, key_ratio, key_corner = jax.random.split(key, 3)
        area = old_size.prod() * jax.random.uniform(
            key_area, (10,), minval=scale[0], maxval=scale[1]
        )
        low, high = np.log(ratio)
        aspect = jnp.exp(jax.random.uniform(key_ratio, (10,), minval=low, maxval=high))
        sides = jnp.sqrt(jnp.stack([area / aspect, area * aspect], axis=-1))  # [10, (y, x)]
        side = sides[jnp.argmax(jnp.all(sides <= old_size, axis=-1))]
        side = side * jnp.minimum(1, jnp.min(old_size / side))
        corner = jax.random.uniform(key_corner, (2,)) * (old_size - side)
        box = jnp.concatenate([corner, side])
        size = (int(new_size[0]), int(new_size[1]))
        return resized_crop(pixels, box, size=size, order=layer.order)

    return map_layers(crop, key, batch)


def random_affine(
    key: Key[Array, ""],
    batch: Batch,
    *,
    rotation: NonNegative = 0.0,
    scale: tuple[Positive, Positive] = (1.0, 1.0),
    shear: Annotated[float, Interval(ge=0, lt=90)] = 0.0,
    translation: NonNegative = 0.0,
    mode: Border = "constant",
) -> Batch:
    """Turns, scales, shears and moves each image about its centre, in one resampling.

    Args:
        key: the key of the batch.
        batch: see the module.
        rotation: the largest angle in degrees, to both sides.
        scale: least and greatest magnification, drawn log-uniformly.
        shear: the largest angle in degrees by which columns lean, to both sides.
        translation: the largest shift along each axis, as a share of the side.
        mode: "constant", see the module, or "reflect" for mirrored borders.

    Raises:
        ValueError: the range of scales is empty, or the mode unknown.
    """
    _check_border("random_affine", mode)
    check_ascending("random_affine", "scale", scale)
    height, width = float_images(batch).shape[1:3]
    size = np.array([height, width], np.float32)[:, None, None]
    centre = (size - 1) / 2
    grid = np.mgrid[:height, :width] - centre

    def move(key: Key[Array, ""], pixels: Array, layer: Layer) -> Array:
        angle, zoom, lean, *shift = jax.random.uniform(key, (5,), minval=-1, maxval=1)
        angle, lean = jnp.deg2rad(rotation) * angle, jnp.tan(jnp.deg2rad(shear) * lean)
        low, high = np.log(scale)
        zoom = jnp.exp((low + high) / 2 + (high - low) / 2 * zoom)
        y, x = grid - translation * size * jnp.stack(shift)[:, None, None]
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        y, x = (cosine * y - sine * x) / zoom, (sine * y + cosine * x) / zoom
        source = jnp.stack([y, x - lean * y]) + centre
        return warp(pixels, source, order=layer.order, mode=mode, fill=layer.outside)

    return map_layers(move, key, batch)


def random_elastic(
    key: Key[Array, ""],
    batch: Batch,
    *,
    grid: Annotated[int, Interval(ge=2, le=1000)] = 3,
    sigma: NonNegative = 10.0,
    mode: Border = "reflect",
) -> Batch:
    """Displaces the pixels of each image smoothly.

    Ronneberger et al., 2015, arXiv:1505.04597, section 3.1: displacement vectors on a coarse grid,
    each component Gaussian with standard deviation ``sigma``, are interpolated bicubically.

    Args:
        key: the key of the batch.
        batch: see the module.
        grid: places along each axis that draw a displacement, at least 2.
        sigma: in pixels.
        mode: "constant", see the module, or "reflect" for mirrored borders.

    Raises:
        ValueError: the mode is unknown.
    """
    _check_border("random_elastic", mode)
    height, width = float_images(batch).shape[1:3]

    def move(key: Key[Array, ""], pixels: Array, layer: Layer) -> Array:
        coarse = sigma * jax.random.normal(key, (2, grid, grid))
        source = jnp.mgrid[:height, :width] + jax.image.resize(coarse, (2, height, width), "cubic")
        return warp(pixels, source, order=layer.order, mode=mode, fill=layer.outside)

    return map_layers(move, key, batch)


def _check_border(name: str, mode: str) -> None:
    if mode not in ("constant", "reflect"):
        raise ValueError(f"{name}: mode must be 'constant' or 'reflect', got {mode!r}")
