"""Linear filters of one image [height, width, channels]."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from opsin.imaging.color import blend


def adjust_sharpness(
    image: Float[Array, "height width channels"], factor: Float[ArrayLike, ""]
) -> Float[Array, "height width channels"]:
    """Blends with a smoothed image (3×3, centre 5, rest 1, over 13). The border pixels stay."""
    inner = image[1:-1, 1:-1]
    window_sum = jax.lax.reduce_window(
        image, jnp.zeros((), image.dtype), jax.lax.add, (3, 3, 1), (1, 1, 1), "VALID"
    )
    return blend(image, image.at[1:-1, 1:-1].set((window_sum + 4 * inner) / 13), factor)


def gaussian_filter(
    image: Float[Array, "height width channels"], sigma: Float[ArrayLike, ""], *, radius: int
) -> Float[Array, "height width channels"]:
    """Blurs along each axis by exp(-d² / 2 sigma²), |d| <= radius, scaled to sum to 1.

    Borders are mirrored at the centres of the border pixels, as by ``jnp.pad``. Any float range.

    Args:
        image: the image.
        sigma: standard deviation in pixels, greater than 0.
        radius: pixels on either side that count, at least 0.
    """
    for axis, product in ((0, "op,pwc->owc"), (1, "op,hpc->hoc")):
        side = image.shape[axis]
        padding = [(radius, radius) if n == axis else (0, 0) for n in range(3)]
        distance = np.arange(side + 2 * radius) - radius - np.arange(side)[:, None]
        weight = jnp.exp(-jnp.square(distance / jnp.asarray(sigma, image.dtype)) / 2)
        band = jnp.where(np.abs(distance) <= radius, weight, 0)  # [side, side + 2 * radius]
        # A product by a band: a convolution whose kernel differs by image is many times slower.
        image = jnp.einsum(
            product,
            band / jnp.sum(band, axis=1, keepdims=True),
            jnp.pad(image, padding, "reflect"),
            precision="highest",
        )
    return image
