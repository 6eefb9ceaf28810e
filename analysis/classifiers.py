"""What measurements of classifiers share."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from opsin.metrics import classification

CLASSIFIER = "a classifier"


@runtime_checkable
class Classifier(Protocol):
    """A task that says of each image how likely each class is."""

    def logits(
        self, params: PyTree, mutable: PyTree, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """What the model gives for images as it sees them."""
        ...


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
