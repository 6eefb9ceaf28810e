"""Color of one image: luma, brightness, contrast, saturation and hue.

Functions take one image [height, width, channels], float in [0, 1]; ``jax.vmap`` makes it a batch.
They follow Pillow's ``ImageEnhance``, on which torchvision's augmentations and the published
numbers rest.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def grayscale(image: Float[Array, "height width channels"]) -> Float[Array, "height width 1"]:
    """Luma of an RGB image (ITU-R BT.601, as Pillow's mode "L"); a grey image is returned as is.

    Raises:
        ValueError: the image has neither 1 nor 3 channels.
    """
    channels = image.shape[-1]
    if channels == 1:
        return image
    if channels != 3:
        raise ValueError(f"an image with 1 or 3 channels is needed, got {channels}")
    # Not a matrix product, which a TPU would compute in bfloat16.
    red, green, blue = jnp.split(image, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def blend(image: Array, degenerate: ArrayLike, factor: ArrayLike) -> Array:
    """``degenerate`` at factor 0, exactly ``image`` at 1, extrapolated above; clipped to [0, 1]."""
    return jnp.clip(factor * image + (1 - factor) * degenerate, 0, 1)


def adjust_brightness(
    image: Float[Array, "height width channels"], factor: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Blends with black: 0 gives black, 1 the image. Clipped to [0, 1]."""
    return blend(image, 0.0, factor)


def adjust_contrast(
    image: Float[Array, "height width channels"], factor: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Blends with the mean luma: 0 gives plain grey, 1 the image. Clipped to [0, 1]."""
    return blend(image, jnp.mean(grayscale(image)), factor)


def adjust_saturation(
    image: Float[Array, "height width channels"], factor: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Blends with the luma: 0 gives a grey image, 1 the image. Identity on one channel."""
    if image.shape[-1] == 1:
        return image
    return blend(image, grayscale(image), factor)


def adjust_hue(
    image: Float[Array, "height width channels"], turn: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Turns the hue by ``turn`` of a full circle, in HSV. Identity on one channel."""
    if image.shape[-1] == 1:
        return image
    # Imported where it is used: it takes a tenth of a second, which a mistyped command should not.
    import dm_pix

    return jnp.asarray(dm_pix.adjust_hue(image, jnp.asarray(turn)))
