"""Tone of one image: histograms and levels, as in Pillow's ``ImageOps``.

Functions take one image [height, width, channels], float in [0, 1].
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int


def autocontrast(
    image: Float[Array, "height width channels"],
) -> Float[Array, "height width channels"]:
    """Stretches each channel to [0, 1]; a channel of one value stays."""
    low = jnp.min(image, axis=(0, 1))
    span = jnp.max(image, axis=(0, 1)) - low
    return jnp.where(span > 0, (image - low) / jnp.where(span > 0, span, 1), image)


def equalize(image: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
    """Flattens the histogram of each channel, in 256 levels, as ``PIL.ImageOps.equalize``.

    A channel with fewer than 255 pixels below its brightest level stays, as in Pillow.
    """

    def equalize_channel(channel: Array) -> Array:
        levels = _to_levels(channel)  # [H, W]
        darker = jnp.searchsorted(jnp.sort(levels.ravel()), jnp.arange(256))  # pixels below each
        step = darker[jnp.max(levels)] // 255
        table = jnp.minimum((step // 2 + darker) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[levels] / 255, channel)

    return jax.vmap(equalize_channel, in_axes=-1, out_axes=-1)(image)


def posterize(
    image: Float[Array, "height width channels"], bits: ArrayLike
) -> Float[Array, "height width channels"]:
    """Keeps the ``bits`` highest bits, a whole number from 0 to 8, of each of the 256 levels."""
    step = jnp.exp2(8 - jnp.asarray(bits, image.dtype)).astype(jnp.int32)
    return _to_levels(image) // step * step / 255


def _to_levels(image: Array) -> Int[Array, "..."]:
    # Rounded, not truncated: k / 255 * 255 may fall just below k.
    return jnp.round(image * 255).astype(jnp.int32)


def solarize(
    image: Float[Array, "height width channels"], threshold: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Inverts the values that are not below ``threshold``."""
    return jnp.where(image < threshold, image, 1 - image)
