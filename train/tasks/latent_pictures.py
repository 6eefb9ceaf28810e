"""What the latents of an autoencoder hold, as rows of images."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from opsin.pictures.kinds import Panels

Images = Float[Array, "n height width channels"]
Latents = Float[Array, "n latent"]
Labels = Int[Array, " n"] | None
Decode = Callable[[Latents, Labels], Images]


def square(images: Images) -> Panels:
    """As many images as fill a square, in rows."""
    side = math.isqrt(len(images))
    return Panels(images[: side * side].reshape(side, side, *images.shape[1:]))


def reconstructions(
    images: Images,
    reconstructed: Images,
    corrupted: Images | None = None,
    codes: Images | None = None,
) -> Panels:
    """Ten images above what is left of them after coding."""
    rows = {"image": images, "corrupted": corrupted, "code": codes, "reconstruction": reconstructed}
    shown = {name: row[:10] for name, row in rows.items() if row is not None}
    return Panels(jnp.stack(list(shown.values())), rows=tuple(shown))


def latent_pictures(
    decode: Decode, images: Images, latents: Latents, labels: Labels
) -> dict[str, Panels]:
    """Interpolation and arithmetic of latents, where there are enough images."""
    pictures = {}
    if len(images) >= 2:
        pictures["interpolation"] = interpolation(decode, latents, labels)
    if len(images) >= 3:
        pictures["arithmetic"] = arithmetic(decode, images, latents, labels)
    return pictures


def interpolation(decode: Decode, latents: Latents, labels: Labels, *, steps: int = 9) -> Panels:
    """Straight lines between the latents of neighbouring images, five at most."""
    count = min(5, len(latents) // 2)
    ends = latents[: 2 * count].reshape(count, 2, 1, -1)
    share = jnp.linspace(0, 1, steps)[:, None]
    lines = ends[:, 0] * (1 - share) + ends[:, 1] * share
    asked = None if labels is None else jnp.repeat(labels[: 2 * count : 2], steps)
    images = decode(lines.reshape(count * steps, -1), asked)
    return Panels(images.reshape(count, steps, *images.shape[1:]))


def arithmetic(decode: Decode, images: Images, latents: Latents, labels: Labels) -> Panels:
    """a − b + c of the latents of three images, next to the images themselves."""
    count = min(5, len(images) // 3)
    a, b, c = (latents[i : 3 * count : 3] for i in range(3))
    made = decode(a - b + c, None if labels is None else labels[: 3 * count : 3])
    three = images[: 3 * count].reshape(count, 3, *images.shape[1:])
    return Panels(
        jnp.concatenate([three, made[:, None]], axis=1), columns=("a", "b", "c", "a - b + c")
    )


def latent_grid(decode: Decode, label: Int[Array, ""] | None, *, side: int = 15) -> Panels:
    """Two latent dimensions, laid out by the quantiles of their prior.

    Kingma & Welling, 2014, arXiv:1312.6114, Fig. 4.
    """
    values = jax.scipy.stats.norm.ppf((jnp.arange(side) + 0.5) / side)
    latents = jnp.stack(jnp.meshgrid(values, values), axis=-1).reshape(side * side, 2)
    images = decode(latents, None if label is None else jnp.full(side * side, label))
    return Panels(images.reshape(side, side, *images.shape[1:]))
