"""The shapes that a convolution ties together, and what its forms have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Part = Literal["image", "kernel", "result"]
OPERANDS: dict[Part, tuple[Part, Part]] = {
    "result": ("image", "kernel"),
    "image": ("result", "kernel"),
    "kernel": ("image", "result"),
}
"""What each of the three is computed from, in this order."""

NHWC = ("NHWC", "HWIO", "NHWC")


@dataclass(frozen=True)
class Geometry:
    """The shapes that a convolution ties together.

    Attributes:
        image: [batch, height, width, channels].
        kernel: [height, width, channels / groups, features].
        strides: of the result's places in the image.
        padding: rows above and below, columns before and after.
        dilation: of the kernel's taps in the image.
        groups: of channels that see only their own share of the features.
        precision: as ``lax.conv_general_dilated`` takes it; of the scope where None was given.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    precision: Any

    @property
    def result(self) -> tuple[int, ...]:
        """[batch, height, width, features]."""
        sides = (
            (self.image[1 + a] + sum(self.padding[a]) - self.reach(a)) // self.strides[a] + 1
            for a in (0, 1)
        )
        return (self.image[0], *(max(side, 0) for side in sides), self.kernel[3])

    @property
    def mirror(self) -> Geometry | None:
        """The convolution that takes the result to the image; None if an ordinary one does not.

        Strides, dilation and padding as wide as the kernel have no mirror.
        """
        margins = tuple(
            (taps - 1 - low, taps - 1 - high)
            for taps, (low, high) in zip(self.kernel[:2], self.padding, strict=True)
        )
        simple = self.strides == self.dilation == (1, 1)
        if not simple or any(margin < 0 for side in margins for margin in side):
            return None
        kernel = (*self.kernel[:2], self.kernel[3], self.kernel[2])
        return replace(self, image=self.result, kernel=kernel, padding=margins)

    def reach(self, axis: int) -> int:
        """From the kernel's first tap to its last, in pixels."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1


def over_places(image: Array, result: Array) -> Array:
    """[channels, features]: the sum over batch, rows and columns of every product of two."""
    # On matrices, XLA's product reads both as they lie; with more axes it transposes them first.
    image, result = (x.reshape(-1, x.shape[-1]) for x in (image, result))
    return lax.dot_general(image, result, (((0,), (0,)), ((), ())))


def over_blocks(
    gradient: Callable[[Array, Array], Array],
    images: Array,
    results: Array,
    shape: Sequence[int],
    *,
    least: float,
    fewest: int = 1,
    unroll: int = 4,
) -> Array:
    """The sum of a kernel's gradients, of that ``shape``, over blocks of images of equal size.

    What is made of a few images is still in the cache when it is read.

    Args:
        gradient: of some images and their results.
        images: [batch, …].
        results: [batch, …].
        shape: of the gradient.
        least: how many blocks there should be.
        fewest: images of a block, which goes before ``least``.
        unroll: how many blocks lie one after the other in the program.
    """
    batch = len(images)
    counts = [n for n in range(1, batch // fewest + 1) if batch % n == 0] or [1]
    blocks = next((n for n in counts if n >= least), counts[-1])
    if blocks == 1:
        return gradient(images, results)
    # A block takes its images from all over the batch: from each device, where they share it.
    images, results = (x.reshape(-1, blocks, *x.shape[1:]) for x in (images, results))

    def add(total: Array, index: Array) -> tuple[Array, None]:
        image, result = (lax.dynamic_index_in_dim(x, index, 1, False) for x in (images, results))
        # The barrier keeps blocks one behind the other where XLA could begin all of them at once.
        image, result, total = lax.optimization_barrier((image, result, total))
        return total + gradient(image, result), None

    total = varying_alike(jnp.zeros(shape, images.dtype), images, results)[0]
    return lax.scan(add, total, jnp.arange(blocks), unroll=min(unroll, blocks))[0]


def turned(kernel: Array) -> Array:
    """The kernel of the convolution that takes the result to the image."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def padded(x: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """Zeros around height and width; negative padding crops."""
    sides = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return x if not any(map(any, padding)) else lax.pad(x, jnp.zeros((), x.dtype), sides)


def varying_alike(*operands: Array) -> list[Array]:
    """Under ``jax.shard_map``: all of them varying over the mesh axes that any one varies over."""
    axes = frozenset[str]().union(*(jax.typeof(x).manual_axis_type.varying for x in operands))
    missing = [tuple(axes - jax.typeof(x).manual_axis_type.varying) for x in operands]
    return [
        lax.pcast(x, names, to="varying") if names else x
        for x, names in zip(operands, missing, strict=True)
    ]
