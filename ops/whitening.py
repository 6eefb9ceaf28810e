"""Filters that whiten patches of images: a first layer that is computed and not learned."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from opsin.ranges import Count, NonNegative


def whitening_filters(
    images: Float[Array, "n height width channels"], *, size: Count = 2, epsilon: NonNegative = 5e-4
) -> Float[Array, "{size} {size} channels filters"]:
    """Projections of patches onto their principal axes, each divided by its root mean square.

    Jordan, 2024, arXiv:2404.00498, section 3.2. With the eigenvectors v and eigenvalues λ of
    E[p pᵀ] of all patches p of size × size pixels, filters are v / sqrt(λ + epsilon), from the
    smallest λ on, and then their negatives: 2 · size² · channels in all. What the first half gives
    has the second moments of the identity matrix, but for epsilon. No mean is subtracted.

    Args:
        images: scaled as the network sees them.
        size: side of a patch.
        epsilon: added to the eigenvalues.
    """
    channels = images.shape[3]
    patches = lax.conv_general_dilated_patches(
        images, (size, size), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    patches = patches.reshape(-1, channels, size, size).transpose(0, 2, 3, 1)
    flat = patches.reshape(len(patches), -1)
    moments = jnp.matmul(flat.T, flat, precision=lax.Precision.HIGHEST) / len(flat)
    values, vectors = jnp.linalg.eigh(moments)
    filters = vectors / jnp.sqrt(jnp.maximum(values, 0) + epsilon)
    filters = filters.reshape(size, size, channels, -1)
    return jnp.concatenate([filters, -filters], axis=-1)
