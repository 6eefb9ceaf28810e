"""What is measured once, after the last step, because it is too dear to be measured on the way.

Each is a frozen dataclass that a task takes among its ``final``. Before training it is asked to
``check(task, sets)``; after it, it is called as ``(task, params, mutable, sets, prepare, track)
-> {"split/metric": number}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from data.examples import Examples, labels, materialize
from data.selection import per_class, select
from data.sources import open_source
from losses.likelihoods import Likelihood
from losses.variational import bits_per_dim
from metrics.generative import generator_metrics
from train.batches import over_batches
from train.extractor import Extractor
from train.linear_probe import linear_probe
from train.sampling import sample_images
from train.tasks.generative import Generative
from train.tasks.task import Batch, Prepare, SettingError, Track


class Weighing(Protocol):
    """A task whose latent draws estimate the likelihood of an image."""

    @property
    def num_classes(self) -> int | None:
        """Classes that the model is told; None if it is not."""
        ...

    @property
    def likelihood(self) -> Likelihood:
        """Of an image given its latents."""
        ...

    def log_weights(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""], samples: int
    ) -> Float[Array, "samples batch"]:
        """log p(x, z) − log q(z | x) of so many draws z."""
        ...


class Coding(Protocol):
    """A task that gives each image a vector."""

    def latents(
        self, params: PyTree, mutable: PyTree, batch: Batch
    ) -> Float[Array, "batch latent"]:
        """One vector an image."""
        ...


@dataclass(frozen=True)
class ImportanceNLL:
    """−log p(x) by importance samples: ``nll``, nats, and of bytes ``nll_bits_per_dim``.

    Burda et al., 2016, arXiv:1509.00519, section 5: the bound of 5,000 samples, close to the
    likelihood itself. An image draws from its own key, which its place in the set gives it.

    Attributes:
        samples: draws for each image; a multiple of ``at_once``.
        at_once: draws that are in memory together.
        images: the first of the split; None takes all.
        batch: images that are in memory together.
        split: of the data.
    """

    samples: int = 5000
    at_once: int = 250
    images: int | None = None
    batch: int = 32
    split: str = "test"

    def check(self, task: Weighing, sets: Mapping[str, Examples]) -> None:
        """Raises SettingError if the samples do not divide, or there is no such split."""
        if self.at_once < 1 or self.samples < 1 or self.samples % self.at_once:
            raise SettingError(
                f"ImportanceNLL: samples={self.samples} is no multiple of at_once={self.at_once}"
            )
        split_of(sets, self.split)

    def __call__(
        self,
        task: Weighing,
        params: PyTree,
        mutable: PyTree,
        sets: Mapping[str, Examples],
        prepare: Prepare,
        track: Track,
    ) -> dict[str, float]:
        """The estimate; of a conditional model it is that of log p(x | class), and called so."""
        arrays = first_examples(split_of(sets, self.split), self.images)

        def likelihoods(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Array:
            def one(image: Batch, index: Array) -> Array:
                single = jax.tree.map(lambda x: x[None], image)
                key = jax.random.fold_in(jax.random.key(0), index)

                def add(total: Array, part: Array) -> tuple[Array, None]:
                    drawn = jax.random.fold_in(key, part)
                    weights = task.log_weights(params, mutable, single, drawn, self.at_once)
                    return jnp.logaddexp(total, jax.nn.logsumexp(weights)), None

                parts = jnp.arange(self.samples // self.at_once)
                total, _ = jax.lax.scan(add, jnp.float32(-jnp.inf), parts)
                return total - jnp.log(self.samples)

            return jax.vmap(one)(prepare(batch), indices)

        found = over_batches(
            likelihoods,
            (params, mutable),
            arrays,
            batch=self.batch,
            track=track,
            what=f"likelihood, {self.samples} draws",
        )
        nll = -np.mean(found, dtype=np.float64)
        bits = bits_per_dim(jnp.asarray(nll), arrays["image"][0].size)
        name = f"{self.split}/{'nll' if task.num_classes is None else 'nll_given_class'}"
        numbers = {name: float(nll), f"{name}_draws": float(self.samples)}
        if task.likelihood.support != "real":  # a density says nothing of the bytes
            numbers[f"{name}_bits_per_dim"] = float(bits)
        return numbers


@dataclass(frozen=True)
class SampleQuality:
    """How near samples are to real images in the features of a network.

    ``fd_<net>``, ``kd_<net>``, ``is_<net>``, precision, recall, density and coverage of as many
    samples as real images (see ``metrics.generative``), and the same as ``floor_…`` of images of
    ``floor_split`` in their place: what a perfect generator would reach. A
    conditional model is asked for all classes in turn, and ``sample_accuracy`` is the share of
    samples in which the network sees the class that was asked for.

    Attributes:
        extractor: the network.
        samples: number of samples; real images are as many, or all there are.
        source: of the real images, as for ``data.source``; None takes those of the run.
        split: that samples are compared to.
        floor_split: that gives the floor.
        diverged_above: the Fréchet distance above which a run counts as ``diverged``, 1 or 0, which
            is the share of them in a table; None leaves that out.
        seed: of the samples.
    """

    extractor: Extractor
    samples: int = 10_000
    source: str | Callable[[str], Examples] | None = None
    split: str = "test"
    floor_split: str = "train"
    diverged_above: float | None = None
    seed: int = 0

    def check(self, task: Generative, sets: Mapping[str, Examples]) -> None:
        """Looks at what will be read.

        Raises:
            SettingError: if there is no such split, or the network is for other images.
            WeightsError: if the network cannot be read.
        """
        *_, image = self.extractor.open()
        read = [(split, self._open(sets, split)) for split in (self.split, self.floor_split)]
        # Those that are made are as large as those that are trained on.
        for split, examples in (*read, *sets.items()):
            found = np.shape(examples.records[0]["image"])
            if found != image:
                raise SettingError(
                    f"SampleQuality: the extractor {self.extractor.name} is for images "
                    f"{list(image)}, and those of {split!r} are {list(found)}: leave out what is "
                    "measured in the end with task.final=(), or give it an extractor of such "
                    "images (opsin export)"
                )

    def __call__(
        self,
        task: Generative,
        params: PyTree,
        mutable: PyTree,
        sets: Mapping[str, Examples],
        prepare: Prepare,
        track: Track,
    ) -> dict[str, float]:
        """Raises WeightsError if the network cannot be read, or is for other images."""
        extract = self.extractor.load()
        classes = task.num_classes
        asked = None if classes is None else np.arange(self.samples) % classes
        real, _ = extract(self._images(sets, self.split))
        other, other_probabilities = extract(self._images(sets, self.floor_split))
        images = sample_images(
            task, params, mutable, self.samples, seed=self.seed, labels=asked, track=track
        )
        made, probabilities = extract(images)
        name = self.extractor.name
        found = generator_metrics(name, real, made, probabilities)
        floors = generator_metrics(name, real, other, other_probabilities)
        found |= {f"floor_{metric}": value for metric, value in floors.items()}
        if asked is not None:
            found["sample_accuracy"] = float(np.mean(probabilities.argmax(axis=-1) == asked))
        if self.diverged_above is not None:
            found["diverged"] = float(found[f"fd_{name}"] > self.diverged_above)
        return {f"{self.split}/{metric}": value for metric, value in found.items()}

    def _open(self, sets: Mapping[str, Examples], split: str) -> Examples:
        return split_of(sets, split) if self.source is None else open_source(self.source, split)

    def _images(self, sets: Mapping[str, Examples], split: str) -> np.ndarray:
        return first_examples(self._open(sets, split), self.samples)["image"]


@dataclass(frozen=True)
class LatentClassifier:
    """Accuracy of a logistic regression on latents, and on pixels, that few labels teach.

    ``latent_accuracy_<n>`` and ``pixel_accuracy_<n>`` for n labelled images of each class: the
    mean over ``repeats`` draws of them. Both classifiers see standardised inputs, and choose the
    weight of their L2 penalty by cross-validation on the labelled images alone.

    Attributes:
        labels_per_class: numbers of labelled images.
        repeats: draws of the labelled images.
        train_split: that they are drawn from.
        split: that is classified.
    """

    labels_per_class: tuple[int, ...] = (5, 10, 50)
    repeats: int = 5
    train_split: str = "train"
    split: str = "test"

    def check(self, task: Coding, sets: Mapping[str, Examples]) -> None:
        """Looks at the labels.

        Raises:
            SettingError: if there is no such split, or the model itself is told the class.
            DataError: if a class has fewer images than are asked for, or there are no classes.
        """
        if getattr(task, "num_classes", None) is not None:
            raise SettingError(
                "LatentClassifier: the model is told the class, and its latents would tell it "
                "again: set task.model.num_classes=None"
            )
        split_of(sets, self.split)
        per_class(labels(split_of(sets, self.train_split)), n=max(self.labels_per_class))

    def __call__(
        self,
        task: Coding,
        params: PyTree,
        mutable: PyTree,
        sets: Mapping[str, Examples],
        prepare: Prepare,
        track: Track,
    ) -> dict[str, float]:
        """The mean accuracies over the draws."""

        def encode(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Array:
            del indices
            return task.latents(params, mutable, prepare(batch))

        inputs: dict[str, dict[str, np.ndarray]] = {}
        for split in (self.train_split, self.split):
            arrays = materialize(split_of(sets, split))
            count = len(arrays["image"])
            inputs[split] = {
                "latent": over_batches(
                    encode,
                    (params, mutable),
                    arrays,
                    batch=min(count, 500),
                    track=track,
                    what=f"latents of {split}",
                ),
                "pixel": arrays["image"].reshape(count, -1) / 255,
            }
        truth = {split: labels(split_of(sets, split)) for split in inputs}
        found: dict[str, list[float]] = {}
        draws = [(n, seed) for n in self.labels_per_class for seed in range(self.repeats)]
        for n, seed in track(draws, "classifiers of latents and pixels"):
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


def first_examples(examples: Examples, count: int | None) -> dict[str, np.ndarray]:
    """At most so many examples, in memory."""
    if count is None or count >= len(examples.records):
        return materialize(examples)
    return materialize(select(examples, np.arange(count)))


def split_of(sets: Mapping[str, Examples], split: str) -> Examples:
    """One of the sets. Raises SettingError if it is not there."""
    if split not in sets:
        raise SettingError(f"there is no split {split!r} to measure: data have {', '.join(sets)}")
    return sets[split]
