"""A set with masks that needs no files: discs, squares and triangles."""

import numpy as np

from opsin.data.examples import SPLITS, Arrays, Examples, materialize, require_split
from opsin.ranges import Count, Seed, SetSize


def shapes(split: str, *, n: SetSize = 256, size: Count = 64, seed: Seed = 0) -> Examples:
    """Bright shapes on a dark striped background, under noise, with exact masks.

    Each image has one to four shapes, later ones on top, turned, placed and coloured at random; its
    class, background 0, disc 1, square 2 or triangle 3, is the form alone, as colours and areas are
    drawn alike for all (as wide as a disc with a radius of 0.1 to 0.22 images). A pixel has the
    class of the shape that its centre lies in. Gaussian noise has a standard deviation of 0.08 of
    the range. Example i does not depend on ``n``.

    Args:
        split: "train" or "test", independent draws of ``n`` examples each.
        n: number of examples.
        size: height and width, in pixels.
        seed: at least 0.

    Returns:
        Examples with ``image``, uint8 [size, size, 3], and ``mask``, uint8 [size, size].

    Raises:
        DataError: if ``split`` is neither "train" nor "test".
    """
    require_split("shapes", split)
    image = np.empty((n, size, size, 3), np.uint8)
    mask = np.empty((n, size, size), np.uint8)
    for index in range(n):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        image[index], mask[index] = _draw(rng, size)
    names = ("background", "disc", "square", "triangle")
    return Examples(Arrays({"image": image, "mask": mask}), names)


def _draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One image [size, size, 3] and its mask [size, size]."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    mask = np.zeros((size, size), np.uint8)
    turn, phase = rng.uniform(0, 2 * np.pi, 2)
    stripes = np.cos(2 * np.pi * rng.uniform(2, 6) * (np.cos(turn) * x + np.sin(turn) * y) + phase)
    image = rng.uniform(0.1, 0.4, 3) + 0.1 * stripes[..., None]
    for _ in range(rng.integers(1, 5)):
        kind, radius = rng.integers(1, 4), rng.uniform(0.1, 0.22)
        (left, top), angle = rng.uniform(0.1, 0.9, 2), rng.uniform(0, 2 * np.pi)
        u = np.cos(angle) * (x - left) + np.sin(angle) * (y - top)
        v = np.cos(angle) * (y - top) - np.sin(angle) * (x - left)
        if kind == 1:
            inside = u**2 + v**2 <= radius**2
        elif kind == 2:
            inside = np.maximum(abs(u), abs(v)) <= radius * np.sqrt(np.pi) / 2
        else:
            sides = [np.cos(a) * u + np.sin(a) * v for a in 2 * np.pi * np.arange(3) / 3]
            inside = np.maximum.reduce(sides) <= radius * np.sqrt(np.pi / np.sqrt(27))
        mask[inside] = kind
        image[inside] = rng.uniform(0.55, 1, 3)
    image += 0.08 * rng.standard_normal(image.shape)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8), mask


def cells(split: str, *, n: SetSize = 256, size: Count = 64, seed: Seed = 0) -> Examples:
    """``shapes`` in grey with two classes: "membrane" (background) and "cell" (a shape)."""
    arrays = materialize(shapes(split, n=n, size=size, seed=seed))
    grey = np.round(arrays["image"].mean(axis=-1, keepdims=True)).astype(np.uint8)
    mask = np.minimum(arrays["mask"], 1)
    return Examples(Arrays({"image": grey, "mask": mask}), ("membrane", "cell"))
