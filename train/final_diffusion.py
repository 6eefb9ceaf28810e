"""What is measured of diffusion models once training has ended; see ``train.final_metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from data.augment import scale
from data.examples import Examples
from data.pipeline import eval_batches
from losses.variational import bits_per_dim
from train.extractor import Extractor
from train.final_metrics import first_examples, split_of
from train.program import jit_here
from train.sharding import beside
from train.tasks.task import Batch, SettingError, Track


class Bounding(Protocol):
    """A task that bounds the likelihood of an image."""

    def bound(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        keys: Key[Array, " batch"],
        steps: int | None,
    ) -> Float[Array, " batch"]:
        """A bound of −log p(x) in nats, of so many steps; None is the process as it was trained."""
        ...


class Painting(Protocol):
    """A task that fills in what is missing of an image."""

    @property
    def num_classes(self) -> int | None:
        """Classes that can be asked for; the label after the last is none of them."""
        ...

    def inpaint(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
        known: Float[Array, "n ..."],
        mask: Bool[Array, ...],
        resamplings: int,
    ) -> Float[Array, "n ..."]:
        """Images that are ``known`` where the mask is true."""
        ...


@dataclass(frozen=True)
class VariationalBound:
    """A bound of −log p(x) for diffusion models: ``bound_bits_per_dim``, and ``bound``, nats.

    Ho et al., 2020, arXiv:2006.11239, eq. 5, with one draw for each image and step.

    Attributes:
        steps: of the bound; None takes all that the process has, which is the tightest.
        images: the first of the split; None takes all.
        batch: images that are in memory together.
        split: of the data.
    """

    steps: int | None = None
    images: int | None = None
    batch: int = 64
    split: str = "test"

    def check(self, task: Bounding, sets: Mapping[str, Examples]) -> None:
        """Raises SettingError if there is no such split."""
        split_of(sets, self.split)

    def __call__(
        self,
        task: Bounding,
        params: PyTree,
        mutable: PyTree,
        sets: Mapping[str, Examples],
        track: Track,
    ) -> dict[str, float]:
        """The bound, a mean over the images."""
        arrays = first_examples(split_of(sets, self.split), self.images)
        count = len(arrays["image"])

        @jit_here
        def bounds(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Array:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), indices)
            return task.bound(params, mutable, scale(batch), keys, self.steps)

        found = []
        starts = track(range(0, count, self.batch), "variational bound")
        for start, batch in zip(starts, eval_batches(arrays, batch=self.batch), strict=True):
            indices = np.arange(start, start + self.batch, dtype=np.int32)
            values = bounds(params, mutable, *beside(params, (batch, indices)))
            found.append(np.asarray(values))
        bound = np.mean(np.concatenate(found)[:count], dtype=np.float64)
        bits = bits_per_dim(jnp.asarray(bound), arrays["image"][0].size)
        return {
            f"{self.split}/bound": float(bound),
            f"{self.split}/bound_bits_per_dim": float(bits),
        }


@dataclass(frozen=True)
class Inpainting:
    """How well the lower half of an image is filled in, of which the class is not told.

    ``inpainted_accuracy`` is the share in which a classifier then sees the true class,
    ``inpainted_mse`` the squared error of a pixel of the lower half in [0, 1], and
    ``known_accuracy`` what the classifier sees in the whole images.

    Attributes:
        extractor: the classifier.
        resamplings: how often each step is done; see ``ops.inpainting``.
        images: the first of the split.
        batch: images that are in memory together.
        split: of the data, with labels.
        seed: of what is filled in.
    """

    extractor: Extractor
    resamplings: int = 1
    images: int = 512
    batch: int = 128
    split: str = "test"
    seed: int = 0

    def check(self, task: Painting, sets: Mapping[str, Examples]) -> None:
        """Raises SettingError if there is no such split, or the classifier is for other images."""
        *_, image = self.extractor.open()
        found = np.shape(split_of(sets, self.split).records[0]["image"])
        if found != image:
            raise SettingError(
                f"Inpainting: the extractor {self.extractor.name} is for images {list(image)}, "
                f"and those of {self.split!r} are {list(found)}"
            )

    def __call__(
        self,
        task: Painting,
        params: PyTree,
        mutable: PyTree,
        sets: Mapping[str, Examples],
        track: Track,
    ) -> dict[str, float]:
        """The measures, means over the images."""
        extract = self.extractor.load()
        arrays = first_examples(split_of(sets, self.split), self.images)
        count, height = len(arrays["image"]), arrays["image"].shape[1]
        mask = jnp.arange(height)[:, None, None] < height // 2

        @jit_here
        def fill(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Array:
            key = jax.random.key(self.seed)
            keys = jax.vmap(partial(jax.random.fold_in, key))(indices)
            classes = task.num_classes
            none = None if classes is None else jnp.full(len(indices), classes)
            known = scale(batch)["image"]
            return task.inpaint(params, mutable, keys, none, known, mask, self.resamplings)

        parts = []
        starts = track(range(0, count, self.batch), "inpainting")
        for start, batch in zip(starts, eval_batches(arrays, batch=self.batch), strict=True):
            indices = np.arange(start, start + self.batch, dtype=np.int32)
            parts.append(np.asarray(fill(params, mutable, *beside(params, (batch, indices)))))
        made = np.clip(np.concatenate(parts)[:count], 0, 1)
        truth = arrays["image"].astype(np.float32) / 255
        below = (slice(None), slice(height // 2, None))

        def accuracy(images: np.ndarray) -> float:
            return float(np.mean(extract(images)[1].argmax(axis=-1) == arrays["label"]))

        return {
            f"{self.split}/inpainted_accuracy": accuracy(made),
            f"{self.split}/inpainted_mse": float(np.mean(np.square(made[below] - truth[below]))),
            f"{self.split}/known_accuracy": accuracy(truth),
        }
