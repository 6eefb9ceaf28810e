"""Vector quantisation: vectors named by the nearest of a book of codes, and how the book learns.

van den Oord, Vinyals and Kavukcuoglu, 2017, "Neural discrete representation learning",
arXiv:1711.00937.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from opsin.ops import mapped


class EmaCodebook(NamedTuple):
    """Codes, and the moving averages that they are means of; float32.

    Attributes:
        codes: e, one a row.
        counts: N, of the vectors that a code is nearest to, in one batch.
        sums: m, of these vectors.
    """

    codes: Float[Array, "codes d"]
    counts: Float[Array, " codes"]
    sums: Float[Array, "codes d"]


def nearest_codes(
    z: Float[Array, "*batch d"], codebook: Float[Array, "codes d"]
) -> Int[Array, "*batch"]:
    """The index of the code at the least Euclidean distance (eq. 1), the first of equals; int32.

    Distances are float32 and come of a product of matrices, [batch, codes] in size.

    Raises:
        ValueError: if vectors and codes differ in size.
    """
    if z.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"codes of size {codebook.shape[-1]} for vectors of size {z.shape[-1]}")
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    # An offset common to all codes moves no boundary, and would cost digits.
    centre = jnp.mean(codebook, axis=0)
    z, codebook = z - centre, codebook - centre
    products = jnp.matmul(z, codebook.T, precision=lax.Precision.HIGHEST)
    distances = jnp.sum(jnp.square(codebook), axis=1) - 2 * products  # without z², alike for all
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def straight_through(
    z: Float[Array, "*batch d"], codes: Float[Array, "*batch d"]
) -> Float[Array, "*batch d"]:
    """Exactly ``codes``; the gradient goes to ``z``, whole, and not to ``codes`` (section 3.2)."""
    return lax.stop_gradient(codes) + (z - lax.stop_gradient(z))


def ema_update(
    book: EmaCodebook,
    z: Float[Array, "*batch d"],
    indices: Int[Array, "*batch"],
    *,
    decay: float,
    epsilon: float = 1e-5,
) -> EmaCodebook:
    """The codes moved towards the means of their vectors (appendix A.1).

    N ← γN + (1 - γ)n, m ← γm + (1 - γ)Σz, e ← m / N, for the n vectors of this batch that have the
    code. With a decay γ of 0 and no smoothing it is a step of Lloyd's algorithm: a code without
    vectors stays.

    Args:
        book: the codes and their averages.
        z: the vectors of a batch.
        indices: the code of each vector.
        decay: γ.
        epsilon: of the Laplace smoothing that the authors' code divides by in place of N:
            (N + ε) / (ΣN + Kε) ΣN for K codes. It matters to codes that go unused for so long that
            N comes down to it: they shrink to zero.
    """
    z = z.reshape(-1, z.shape[-1]).astype(jnp.float32)
    chosen = jax.nn.one_hot(indices.reshape(-1), book.codes.shape[0])
    counts = jnp.sum(chosen, axis=0)
    # Not a scatter, whose order, and so rounding, a GPU leaves to chance.
    sums = jnp.matmul(chosen.T, z, precision=lax.Precision.HIGHEST)
    counts, sums = mapped.total((counts, sums))
    counts = decay * book.counts + (1 - decay) * counts
    sums = decay * book.sums + (1 - decay) * sums
    total = jnp.sum(counts)
    smooth = (counts + epsilon) / (total + counts.size * epsilon) * total
    used = counts > 0
    codes = jnp.where(used[:, None], sums / jnp.where(used, smooth, 1)[:, None], book.codes)
    return EmaCodebook(codes, counts, sums)


def restart_dead(
    key: Key[Array, ""],
    book: EmaCodebook,
    z: Float[Array, "*batch d"],
    *,
    threshold: float,
) -> EmaCodebook:
    """Codes that are used less than ``threshold`` times a batch become vectors of this batch.

    Each takes one at random, with a count of 1 (Dhariwal et al., 2020, arXiv:2005.00341, section
    3.1: "random restarts"). The others stay as they are.

    Args:
        key: of the draw.
        book: the codes and their averages.
        z: the vectors of a batch.
        threshold: the moving average of the counts below which a code is dead.
    """
    z = z.reshape(-1, z.shape[-1]).astype(jnp.float32)
    z, key = mapped.gather(z), mapped.shared_key(key)  # every replica restarts the same codes
    fresh = z[jax.random.randint(key, book.counts.shape, 0, z.shape[0])]
    dead = book.counts < threshold
    return EmaCodebook(
        codes=jnp.where(dead[:, None], fresh, book.codes),
        counts=jnp.where(dead, 1.0, book.counts),
        sums=jnp.where(dead[:, None], fresh, book.sums),
    )
