"""Augmentation on the device: how functions ``(key, batch) -> batch`` are applied."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from opsin.ops.keys import row_keys
from opsin.ranges import Probability

Batch = dict[str, Array]


Augmentation = Callable[[Key[Array, ""], Batch], Batch]


def apply(key: Key[Array, ""], batch: Batch, augmentations: Sequence[Augmentation]) -> Batch:
    """Applies the augmentations in order, the n-th with the key ``fold_in(key, n)``.

    Raises:
        ValueError: one of them gives another number of examples than it was given.
    """
    rows = len(batch["image"])
    for position, augmentation in enumerate(augmentations):
        batch = augmentation(jax.random.fold_in(key, position), batch)
        for name, entry in batch.items():
            if entry.shape[:1] != (rows,):
                raise ValueError(
                    f"data.augment.{position} gives {name} {list(entry.shape)} for {rows} examples:"
                    " an augmentation keeps their number"
                )
    return batch


def map_images(
    function: Callable[[Key[Array, ""], Array], Array], key: Key[Array, ""], batch: Batch
) -> Batch:
    """Replaces each image by ``function(fold_in(key, row), image)``.

    Raises:
        ValueError: the images are not float [batch, height, width, channels].
    """
    images = float_images(batch)
    return {**batch, "image": jax.vmap(function)(row_keys(key, len(images)), images)}


def float_images(batch: Batch) -> Array:
    """The images of a batch.

    Raises:
        ValueError: they are not float [batch, height, width, channels].
    """
    images = batch["image"]
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            "images must be float [batch, height, width, channels] in [0, 1] (see scale), "
            f"got {images.dtype} {list(images.shape)}"
        )
    return images


def one_by_one(
    function: Callable[[Key[Array, ""], Batch], PyTree], keys: Key[Array, " rows"], batch: Batch
) -> PyTree:
    """What ``function`` gives for each example as a batch of one, with a key of its own.

    Its arrays are [1, …], and the result's [rows, …]: the other examples have no say in a row.
    """

    def one(key: Array, example: Batch) -> PyTree:
        single = jax.tree.map(lambda x: x[None], example)
        return jax.tree.map(lambda x: x[0], function(key, single))

    return jax.vmap(one)(keys, batch)


def check_ascending(name: str, option: str, ends: tuple[float, float]) -> None:
    """Raises ValueError, in the name of an augmentation, for ends in the wrong order."""
    if ends[0] > ends[1]:
        raise ValueError(f"{name}: {option} is a range, from least to greatest, not {ends}")


def random_apply(
    key: Key[Array, ""], batch: Batch, *, augmentation: Augmentation, probability: Probability
) -> Batch:
    """Applies ``augmentation`` to each example with ``probability``.

    The other examples keep all their entries. It is computed for the whole batch.

    Raises:
        ValueError: an entry of the batch would change its shape or type (a crop of another size,
            labels that become soft).
    """
    key_choice, key_augmentation = jax.random.split(key)
    augmented = augmentation(key_augmentation, batch)
    before, after = (
        {name: f"{entry.dtype} {list(entry.shape)}" for name, entry in entries.items()}
        for entries in (batch, augmented)
    )
    for name in before | after:
        if before.get(name) != after.get(name):
            raise ValueError(
                f"random_apply: {name} would change from {before.get(name)} to {after.get(name)}, "
                "which some rows of a batch cannot; apply this augmentation to all of them"
            )
    rows = row_keys(key_choice, len(batch["image"]))
    chosen = jax.vmap(jax.random.bernoulli, (0, None))(rows, probability)
    return {
        name: jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, batch[name])
        for name, new in augmented.items()
    }


def scale(batch: Batch) -> Batch:
    """Turns uint8 images into float32 in [0, 1].

    Raises:
        ValueError: the images are not uint8 (scaled already, perhaps).
    """
    if batch["image"].dtype != jnp.uint8:
        raise ValueError(f"scale: uint8 images are needed, got {batch['image'].dtype}")
    return {**batch, "image": jnp.asarray(batch["image"], jnp.float32) / 255}


def normalize(batch: Batch, mean: float | Sequence[float], std: float | Sequence[float]) -> Batch:
    """Subtracts ``mean`` and divides by ``std``, one number or one a channel, in units of [0, 1].

    Raises:
        ValueError: a standard deviation is not positive, or there are neither one nor as many
            numbers as channels.
    """
    if np.any(np.asarray(std) <= 0):
        raise ValueError(f"normalize: std must be positive, got {std}")
    images = float_images(batch)
    for name, numbers in (("mean", mean), ("std", std)):
        if np.size(numbers) not in (1, images.shape[-1]):
            raise ValueError(
                f"normalize: {name} has {np.size(numbers)} numbers, "
                f"images {images.shape[-1]} channels"
            )
    centred = images - jnp.asarray(mean, images.dtype)
    return {**batch, "image": centred / jnp.asarray(std, images.dtype)}
