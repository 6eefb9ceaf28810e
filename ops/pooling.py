"""Smaller images out of larger ones, without aliasing."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from opsin.ops.convolution.dispatch import convolve


def blur_pool(
    x: Float[Array, "batch height width channels"], *, taps: int = 3, stride: int = 2
) -> Float[Array, "batch rows columns channels"]:
    """Every ``stride``-th pixel of the image, blurred before: H / stride rows of H, rounded up.

    The filter is the outer product of two rows of Pascal's triangle, over its sum: (1, 2, 1) / 4
    for 3 taps. The image is reflected at its border. Zhang, 2019, "Making convolutional networks
    shift-invariant again", arXiv:1904.11486, section 3.2. A max-pool becomes one of stride 1 and
    this; a strided convolution one of stride 1, its activation and this.

    Args:
        x: the image.
        taps: length of the filter; 1 does not blur. Of an even one, the further tap looks down and
            to the right.
        stride: rows, and columns, from one pixel that is kept to the next.

    Raises:
        ValueError: taps or a stride below one.
    """
    if taps < 1 or stride < 1:
        raise ValueError(f"taps and stride are at least 1; got {taps} and {stride}")
    binomial = np.array([math.comb(taps - 1, k) for k in range(taps)]) / 2.0 ** (taps - 1)
    kernel = np.broadcast_to(
        np.outer(binomial, binomial)[..., None, None], (taps, taps, 1, x.shape[3])
    )
    margin = ((taps - 1) // 2, taps // 2)
    return convolve(
        jnp.pad(x, ((0, 0), margin, margin, (0, 0)), mode="reflect"),
        jnp.asarray(kernel, x.dtype),
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )
