"""Measurements of diffusion models: a likelihood bound, other samplers, and inpainting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from opsin.analysis.batches import over_batches
from opsin.analysis.checks import check_task
from opsin.analysis.sets import Choice, some_examples, split_of
from opsin.data.examples import Examples, labels
from opsin.losses.variational import bits_per_dim
from opsin.ops.diffusion.sampling import Sampling
from opsin.ops.keys import keys_at
from opsin.ranges import Count, Depth, Seed, SetSize, Steps
from opsin.train.extractor import Extractor
from opsin.train.measurements import Measurement, Subject, check_measurements
from opsin.train.settings import SettingError
from opsin.train.tasks.generative import Inpainter
from opsin.train.tasks.task import Batch

DIFFUSION = "a diffusion model"


@runtime_checkable
class DiffusionTask(Inpainter, Protocol):
    """A task whose model takes noise away step by step; ``train.tasks.diffuse`` says more."""

    @property
    def num_classes(self) -> int | None:
        """The number of classes of a conditional model; None if it is unconditional."""
        ...

    def with_sampling(self, **changes: Any) -> DiffusionTask:
        """The task with other fields of its ``Sampling``, if it may sample so."""
        ...

    def bound_times(self, steps: int | None) -> np.ndarray:
        """The times of a variational bound, if there is one."""
        ...

    def bound(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        keys: Key[Array, " batch"],
        steps: int | None,
    ) -> Float[Array, " batch"]:
        """The variational bound of −log p(x) in nats."""
        ...

    def check_inpainting(self, resamplings: int) -> None:
        """Raises SettingError if it cannot fill in parts of images."""
        ...


@dataclass(frozen=True)
class VariationalBound:
    """An upper bound of −log p(x): ``bound_bits_per_dim``, and ``bound`` in nats.

    Ho et al., 2020, arXiv:2006.11239, eq. 5, with one draw for each image and step. For a
    class-conditional model it bounds log p(x | class): ``bound_given_class``, ….

    Attributes:
        steps: of the bound; None takes all that the process has, which is the tightest.
        images: of the split; None takes all.
        choice: which images, if not all; see ``analysis.sets.Choice``.
        batch: images that are in memory together.
        split: of the data.
    """

    steps: Steps | None = None
    images: SetSize | None = None
    choice: Choice = "drawn"
    batch: Count = field(default=64, metadata={"identity": False})
    split: str = "test"

    def check(self, task: DiffusionTask, sets: Mapping[str, Examples]) -> None:
        """Raises SettingError for another task, no such split, or no bound of this process."""
        check_task(self, task, DiffusionTask, DIFFUSION)
        split_of(sets, self.split)
        task.bound_times(self.steps)

    def __call__(self, subject: Subject[DiffusionTask]) -> dict[str, float]:
        """The bound, a mean over the images."""
        task = subject.task
        arrays = some_examples(split_of(subject.sets, self.split), self.images, self.choice)

        def bounds(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Array:
            keys = keys_at(jax.random.key(0), indices)
            return task.bound(params, mutable, subject.prepare(batch), keys, self.steps)

        found = over_batches(
            bounds,
            subject,
            arrays,
            batch=self.batch,
            what="variational bound",
        )
        bound = np.mean(found, dtype=np.float64)
        bits = bits_per_dim(jnp.asarray(bound), arrays["image"][0].size)
        name = f"{self.split}/{'bound' if task.num_classes is None else 'bound_given_class'}"
        return {name: float(bound), f"{name}_bits_per_dim": float(bits)}


@dataclass(frozen=True)
class SampledBy:
    """Another measurement, with samples that are made in another way than the task says.

    It compares several ways of sampling from one network.

    Attributes:
        sampling: in place of the task's own.
        measurement: what is measured.
        name: prefix of the metrics: ``test/fd_lenet`` becomes ``test/<name>_fd_lenet``; empty for
            none.
    """

    sampling: Sampling
    measurement: Measurement
    name: str = ""

    def check(self, task: DiffusionTask, sets: Mapping[str, Examples]) -> None:
        """Raises SettingError for a way that the model does not allow, and as the measurement."""
        check_task(self, task, DiffusionTask, DIFFUSION)
        check_measurements([self.measurement], self._other(task), sets)

    def __call__(self, subject: Subject[DiffusionTask]) -> dict[str, float]:
        """The numbers by their new names."""
        found = self.measurement(replace(subject, task=self._other(subject.task)))
        front = f"{self.name}_" if self.name else ""
        split_and_name = ((key.partition("/"), value) for key, value in found.items())
        return {f"{split}/{front}{name}": value for (split, _, name), value in split_and_name}

    def _other(self, task: DiffusionTask) -> DiffusionTask:
        return task.with_sampling(**vars(self.sampling))


@dataclass(frozen=True)
class Inpainting:
    """How well the lower half of an image is filled in, without knowing its class.

    ``inpainted_accuracy`` is the share of images in which a classifier then sees the true class,
    ``inpainted_mse`` the mean squared error of the pixels of the lower half, in [0, 1], and
    ``known_accuracy`` the accuracy of the classifier on the complete images.

    Attributes:
        extractor: the classifier.
        resamplings: how often each step is done; see ``ops.diffusion.inpainting``.
        images: of the split.
        choice: of so many images; see ``analysis.sets.Choice``.
        batch: images that are in memory together.
        split: of the data, with labels.
        seed: of what is filled in.
    """

    extractor: Extractor
    resamplings: Depth = 1
    images: SetSize = 512
    choice: Choice = "drawn"
    batch: Count = field(default=128, metadata={"identity": False})
    split: str = "test"
    seed: Seed = 0

    def check(self, task: DiffusionTask, sets: Mapping[str, Examples]) -> None:
        """Compares the task and its images to the classifier.

        Raises:
            SettingError: for another task, a sampler that cannot take steps back, no such split, or
                other images than the classifier's.
            WeightsError: if the classifier cannot be read.
            DataError: if the images have no classes.
        """
        check_task(self, task, DiffusionTask, DIFFUSION)
        task.check_inpainting(self.resamplings)
        *_, image = self.extractor.open()
        examples = split_of(sets, self.split)
        labels(examples)
        found = np.shape(examples.records[0]["image"])
        if found != image:
            raise SettingError(
                f"Inpainting: the extractor {self.extractor.name} is for images {list(image)}, "
                f"and those of {self.split!r} are {list(found)}"
            )

    def __call__(self, subject: Subject[DiffusionTask]) -> dict[str, float]:
        """The measures, means over the images."""
        task = subject.task
        extract = self.extractor.load()
        arrays = some_examples(split_of(subject.sets, self.split), self.images, self.choice)
        height = arrays["image"].shape[1]
        mask = jnp.arange(height)[:, None, None] < height // 2

        def fill(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Array:
            keys = keys_at(jax.random.key(self.seed), indices)
            classes = task.num_classes
            none = None if classes is None else jnp.full(len(indices), classes)
            known = subject.prepare(batch)["image"]
            return task.inpaint(params, mutable, keys, none, known, mask, self.resamplings)

        made = over_batches(
            fill,
            subject,
            arrays,
            batch=self.batch,
            what="inpainting",
        )
        made = np.clip(made, 0, 1)
        truth = arrays["image"].astype(np.float32) / 255
        below = (slice(None), slice(height // 2, None))

        def accuracy(images: np.ndarray) -> float:
            return float(np.mean(extract(images)[1].argmax(axis=-1) == arrays["label"]))

        return {
            f"{self.split}/inpainted_accuracy": accuracy(made),
            f"{self.split}/inpainted_mse": float(np.mean(np.square(made[below] - truth[below]))),
            f"{self.split}/known_accuracy": accuracy(truth),
        }
