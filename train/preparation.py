"""From a batch of a source to what a model sees, and back to what people do."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Key

from opsin.data import augment
from opsin.data.augment import Batch
from opsin.pictures.kinds import Picture
from opsin.train.experiment import Data


def augmented(key: Key[Array, ""], batch: Batch, *, data: Data) -> Batch:
    """A batch as a model sees it in training."""
    batch = augment.apply(key, augment.scale(batch), data.augment)
    return augment.normalize(batch, data.mean, data.std)


def prepared(batch: Batch, *, data: Data) -> Batch:
    """A batch as a model sees it outside training: uint8 images scaled and normalised."""
    return augment.normalize(augment.scale(batch), data.mean, data.std)


def unnormalized(picture: Picture, data: Data) -> Picture:
    """A picture of images as they were before they were normalised."""
    return replace(picture, images=picture.images * jnp.asarray(data.std) + jnp.asarray(data.mean))
