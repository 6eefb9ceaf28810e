"""What measurements of classifiers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from opsin.analysis.checks import check_task
from opsin.analysis.sets import split_of
from opsin.data.augment import Batch
from opsin.data.examples import Examples, labels
from opsin.metrics import classification
from opsin.train.measurements import Subject


@runtime_checkable
class Classifier(Protocol):
    """A task that says of each image how likely each class is."""

    def logits(
        self, params: PyTree, mutable: PyTree, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """What the model gives for images as it sees them."""
        ...


def labelled_split(
    measurement: object, task: Any, sets: Mapping[str, Examples], split: str
) -> Examples:
    """The images that a measurement of a classifier is to be made on.

    Raises:
        SettingError: for a task that is no classification, or no such split.
        DataError: if the images have no classes.
    """
    check_task(measurement, task, Classifier, "a classifier")
    examples = split_of(sets, split)
    labels(examples)
    return examples


def predictor(subject: Subject[Classifier]) -> Callable[..., Float[Array, "batch classes"]]:
    """The logits of whole images, for ``over_batches``, which compiles the same one once."""

    def predictions(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Array:
        del indices
        return subject.task.logits(params, mutable, subject.prepare(batch)["image"])

    return predictions


def mean_probabilities(
    logits: Float[Array, "members batch classes"],
) -> Float[Array, "batch classes"]:
    """Logarithms of the mean probabilities of several predictions of each image."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(logits))


def classification_numbers(
    logits: Float[np.ndarray, "images classes"], truth: Int[np.ndarray, " images"]
) -> dict[str, float]:
    """``accuracy``, ``nll`` in nats and ``ece`` of predictions of a whole set."""
    given = jnp.asarray(logits), jnp.asarray(truth)
    states = {
        "accuracy": classification.accuracy(*given),
        "nll": classification.negative_log_likelihood(*given),
        "ece": classification.calibration(*given),
    }
    return {name: float(state.compute()[""]) for name, state in states.items()}
