"""How well a classifier reads the latents of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, PyTree

from opsin.analysis.batches import over_batches
from opsin.analysis.checks import check_task
from opsin.analysis.linear_probe import linear_probe
from opsin.analysis.sets import split_of
from opsin.data.examples import Examples, labels, materialize
from opsin.data.selection import per_class
from opsin.ranges import Count
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError
from opsin.train.tasks.task import Batch

LATENTS = "a model with latents (and num_classes, or None), such as an autoencoder"


@runtime_checkable
class LatentEncoder(Protocol):
    """A task that gives each image a vector."""

    @property
    def num_classes(self) -> int | None:
        """The number of classes of a model that receives the class; None of any other."""
        ...

    def latents(
        self, params: PyTree, mutable: PyTree, batch: Batch
    ) -> Float[Array, "batch latent"]:
        """One vector an image."""
        ...


@dataclass(frozen=True)
class LatentClassifier:
    """Accuracy of logistic regression on latents, and on pixels, with few labels.

    ``latent_accuracy_<n>`` and ``pixel_accuracy_<n>`` for n labelled images of each class: the
    mean over ``repeats`` draws of them. Both classifiers see standardised inputs, and choose the
    weight of their L2 penalty by cross-validation on the labelled images alone.

    Attributes:
        labels_per_class: numbers of labelled images.
        repeats: draws of the labelled images.
        train_split: they are drawn from it.
        split: it is classified.
    """

    labels_per_class: tuple[Count, ...] = (5, 10, 50)
    repeats: Count = 5
    train_split: str = "train"
    split: str = "test"

    def check(self, task: LatentEncoder, sets: Mapping[str, Examples]) -> None:
        """Looks at the labels.

        Raises:
            SettingError: if the task gives no vectors, there is no such split, or the model itself
                is conditional on the class.
            DataError: if a class has fewer images than requested, or there are no classes.
        """
        check_task(self, task, LatentEncoder, LATENTS)
        if not self.labels_per_class:
            raise SettingError("LatentClassifier: labels_per_class is empty: set (5, 10), say")
        if task.num_classes is not None:
            raise SettingError(
                "LatentClassifier: the model receives the class as input, so its latents need not "
                "hold it: set task.model.num_classes=None"
            )
        labels(split_of(sets, self.split))
        known = labels(split_of(sets, self.train_split))
        for count in self.labels_per_class:
            per_class(known, n=count)

    def __call__(self, subject: Subject[LatentEncoder]) -> dict[str, float]:
        """The mean accuracies over the draws."""

        def encode(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Array:
            del indices
            return subject.task.latents(params, mutable, subject.prepare(batch))

        inputs: dict[str, dict[str, np.ndarray]] = {}
        for split in (self.train_split, self.split):
            arrays = materialize(split_of(subject.sets, split))
            count = len(arrays["image"])
            inputs[split] = {
                "latent": over_batches(
                    encode,
                    subject,
                    arrays,
                    batch=min(count, 500),
                    what=f"latents of {split}",
                ),
                "pixel": arrays["image"].reshape(count, -1) / 255,
            }
        truth = {split: labels(split_of(subject.sets, split)) for split in inputs}
        found: dict[str, list[float]] = {}
        draws = [(n, seed) for n in self.labels_per_class for seed in range(self.repeats)]
        for n, seed in subject.track(draws, "classifiers of latents and pixels"):
            kept = per_class(truth[self.train_split], n=n, seed=seed)
            inverse = (1e-3, 1e-2, 1e-1, 1.0) if n > 1 else (1.0,)
            for kind in ("latent", "pixel"):
                accuracy, _ = linear_probe(
                    inputs[self.train_split][kind][kept],
                    truth[self.train_split][kept],
                    inputs[self.split][kind],
                    truth[self.split],
                    penalties=[1 / (c * len(kept)) for c in inverse],
                    splits=min(5, n),
                )
                found.setdefault(f"{self.split}/{kind}_accuracy_{n}", []).append(accuracy)
        return {name: float(np.mean(values)) for name, values in found.items()}
