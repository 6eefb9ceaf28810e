"""Classification of several views of each image (test-time augmentation), or of recoded images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from opsin.analysis.batches import over_batches
from opsin.analysis.classifiers import (
    Classifier,
    classification_numbers,
    labelled_split,
    mean_probabilities,
    predictor,
)
from opsin.analysis.sets import split_of
from opsin.data.augment import Batch
from opsin.data.examples import Examples, materialize
from opsin.data.images import recoded
from opsin.ranges import Count
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError

Images = Float[Array, "batch height width channels"]
Views = Callable[[Images], Float[Array, "views batch _ _ _"]]
"""From images, as the network sees them, to views of each."""


def mirror_views(images: Images) -> Float[Array, "2 batch height width channels"]:
    """Each image and its mirror image."""
    return jnp.stack([images, images[:, :, ::-1]])


def shift_views(
    images: Images, *, by: Count = 1, mirrored: bool = True
) -> Float[Array, "views batch height width channels"]:
    """Each image, and moved ``by`` pixels along one diagonal, as they are and mirrored: six views.

    Borders are reflected. Jordan, 2024, arXiv:2404.00498, section 3.5, whose mean gives the image
    in its place half of the weight. Digits and letters read otherwise in a mirror: without
    ``mirrored`` there are three views.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (by, by), (by, by), (0, 0)), "reflect")
    places = [(by, by), (0, 0), (2 * by, 2 * by)]
    moved = (padded[:, y : y + height, x : x + width] for y, x in places)
    return jnp.concatenate([mirror_views(x) if mirrored else x[None] for x in moved])


def ten_crops(images: Images, *, size: Count) -> Float[Array, "10 batch {size} {size} channels"]:
    """Corners and centre of each image, as they are and mirrored.

    Krizhevsky et al., 2012, section 4.1.

    Raises:
        ValueError: a crop is larger than the images.
    """
    height, width = images.shape[1:3]
    down, across = height - size, width - size
    if min(down, across) < 0:
        raise ValueError(f"ten_crops: size={size} does not fit images of {height}x{width} pixels")
    places = [(0, 0), (0, across), (down, 0), (down, across), (down // 2, across // 2)]
    crops = [mirror_views(images[:, y : y + size, x : x + size]) for y, x in places]
    return jnp.concatenate(crops)


@dataclass(frozen=True)
class AveragedViews:
    """Accuracy, NLL and ECE of the mean probabilities over views of each image.

    Test-time augmentation. They are ``accuracy_tta``, ``nll_tta`` and ``ece_tta``. ``nll_one_view``
    is the mean NLL of a single view, which that of the mean is never above (Jensen's inequality).

    Attributes:
        views: of the images as the network sees them.
        batch: images that are in memory together, with all their views.
        split: of the data.
    """

    views: Views = mirror_views
    batch: Count = field(default=250, metadata={"identity": False})
    split: str = "test"

    def check(self, task: Any, sets: Mapping[str, Examples]) -> None:
        """Looks at the data.

        Raises:
            SettingError: for a task that is no classification, no such split, or views that do not
                fit the images.
            DataError: if the images have no classes.
        """
        examples = labelled_split(self, task, sets, self.split)
        image = np.shape(examples.records[0]["image"])
        try:
            jax.eval_shape(self.views, jax.ShapeDtypeStruct((1, *image), jnp.float32))
        except (TypeError, ValueError) as error:
            raise SettingError(f"AveragedViews: {error}") from error

    def __call__(self, subject: Subject[Classifier]) -> dict[str, float]:
        """The four numbers."""
        arrays = materialize(split_of(subject.sets, self.split))

        def predictions(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Any:
            del indices
            prepared = subject.prepare(batch)
            views = self.views(prepared["image"])
            logits = jax.vmap(partial(subject.task.logits, params, mutable))(views)
            nll = optax.softmax_cross_entropy_with_integer_labels
            single = jax.vmap(nll, (0, None))(logits, batch["label"])
            return mean_probabilities(logits), jnp.mean(single, axis=0)

        means, single = over_batches(
            predictions, subject, arrays, batch=self.batch, what="views of images"
        )
        found = {
            f"{name}_tta": x for name, x in classification_numbers(means, arrays["label"]).items()
        }
        found["nll_one_view"] = float(np.mean(single))
        return {f"{self.split}/{name}": value for name, value in found.items()}


@dataclass(frozen=True)
class Recoded:
    """Accuracy on images that were coded as JPEG, with chroma of half the size: what that costs.

    For quality 75 it is ``accuracy_jpeg75``. Of images that are decoded JPEGs it says what coding
    them once more takes away.

    Attributes:
        qualities: of the code, from 1 to 95.
        batch: images that are in memory together.
        split: of the data.
    """

    qualities: tuple[Count, ...] = (75, 95)
    batch: Count = field(default=500, metadata={"identity": False})
    split: str = "test"

    def check(self, task: Any, sets: Mapping[str, Examples]) -> None:
        """Looks at the data.

        Raises:
            SettingError: for a task that is no classification, no such split, a quality above 95,
                or images that JPEG does not code.
            DataError: if the images have no classes.
        """
        examples = labelled_split(self, task, sets, self.split)
        if not self.qualities or max(self.qualities) > 95:
            raise SettingError(
                f"Recoded: qualities={self.qualities} are from 1 to 95, one at least"
            )
        channels = np.shape(examples.records[0]["image"])[-1]
        if channels not in (1, 3):
            raise SettingError(f"Recoded: JPEG codes 1 or 3 channels, and images have {channels}")

    def __call__(self, subject: Subject[Classifier]) -> dict[str, float]:
        """The accuracy at each quality."""
        arrays = materialize(split_of(subject.sets, self.split))

        predictions, found = predictor(subject), {}
        for quality in self.qualities:
            with ThreadPoolExecutor() as pool:
                coded = list(pool.map(partial(recoded, quality=quality), arrays["image"]))
            logits = over_batches(
                predictions,
                subject,
                {**arrays, "image": np.stack(coded)},
                batch=self.batch,
                what=f"JPEG of quality {quality}",
            )
            name = f"{self.split}/accuracy_jpeg{quality}"
            found[name] = classification_numbers(logits, arrays["label"])["accuracy"]
        return found
