"""Image classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from opsin.losses.classification import cross_entropy_loss
from opsin.losses.regularization import l2_loss
from opsin.metrics import classification
from opsin.metrics.state import Mean, Metric
from opsin.pictures.kinds import Confusion, Curve, Labels, Preview
from opsin.ranges import CountOrZero, NonNegative
from opsin.train.tasks.auxiliary import initial_variables, training_logits, with_auxiliary
from opsin.train.tasks.checks import check_logits, require_entry
from opsin.train.tasks.task import Aux, Batch, Look, Task


@dataclass(frozen=True)
class Classify(Task):
    """Learns one class an image.

    Attributes:
        model: ``model(images, train=…) -> logits [batch, classes]``.
        loss_function: ``(logits, labels) -> [batch]``; labels are integers, or soft after mixup.
        l2: weight of ½‖kernels‖² in the loss (decay by the optimiser is the usual way).
        auxiliary_weight: of the losses of auxiliary heads, which the model may have in training.
        more_metrics: what else is evaluated: functions ``(logits, labels, valid) -> state``, such
            as ``metrics.classification.ranking`` for AUROC and average precision.
        groups: ``(name, classes)`` pairs; ``accuracy_<name>`` is that over the images of these
            classes, as for the head and the tail of a long-tailed set.
    """

    model: nn.Module
    loss_function: Callable[[Array, Array], Float[Array, " batch"]] = cross_entropy_loss
    l2: NonNegative = 0.0
    auxiliary_weight: NonNegative = 0.3
    more_metrics: tuple[Callable[[Array, Array, Array], Metric], ...] = field(
        default=(), metadata={"identity": "evaluation", "counts_with": "loop.keep_best"}
    )
    groups: tuple[tuple[str, tuple[CountOrZero, ...]], ...] = field(
        default=(), metadata={"identity": "evaluation", "counts_with": "loop.keep_best"}
    )

    curves: ClassVar = (Curve(("loss", "nll"), logarithmic=True), Curve(("accuracy",)))
    progress: ClassVar = ("loss", "accuracy")

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Raises SettingError unless the model has one output a class."""
        check_logits(self.model, class_names, lambda: look()["train"]["image"])

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of the model.

        Raises:
            SettingError: if the data have no labels.
        """
        require_entry(batch, "label", 'such as "digits" or "folder:PATH"')
        return initial_variables(self.model, key, batch["image"])

    def loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """Mean loss over the batch, plus those of auxiliary heads and the L2 term, if any."""
        logits, heads, mutable = training_logits(self.model, params, mutable, batch["image"], key)
        labels = batch["label"]
        unreduced = self.loss_function(logits, labels)
        if unreduced.shape != labels.shape[:1]:
            raise ValueError(
                f"task.loss_function gives {list(unreduced.shape)} for {len(labels)} images: it "
                "gives one loss an image, without their mean"
            )
        losses = (jnp.mean(self.loss_function(head, labels)) for head in heads)
        total, terms = with_auxiliary(jnp.mean(unreduced), losses, self.auxiliary_weight)
        metrics: dict[str, Metric] = {"accuracy": classification.accuracy(logits, labels)}
        metrics |= {name: Mean.from_values(term[None]) for name, term in terms.items()}
        if self.l2:
            penalty = l2_loss(params)
            metrics["data_loss"] = Mean.from_values(unreduced)
            metrics["l2_loss"] = Mean.from_values(penalty[None])
            total += self.l2 * penalty
        metrics["loss"] = Mean.from_values(jnp.broadcast_to(total, unreduced.shape))
        return total, Aux(mutable, metrics)

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """Accuracy, NLL, calibration and the confusion matrix over the valid images."""
        logits = self.logits(params, mutable, batch["image"])
        labels, valid = batch["label"], batch["valid"]
        classes = logits.shape[-1]
        metrics: dict[str, Metric] = {
            "accuracy": classification.accuracy(logits, labels, valid),
            "nll": classification.negative_log_likelihood(logits, labels, valid),
            "ece": classification.calibration(logits, labels, valid=valid),
            "confusion": classification.confusion_matrix(logits, labels, classes, valid),
        }
        if classes > 5:
            metrics["top5"] = classification.top_k_accuracy(logits, labels, valid, k=5)
        for name, members in self.groups:
            inside = valid & jnp.isin(labels, jnp.asarray(members))
            metrics[f"accuracy_{name}"] = classification.accuracy(logits, labels, inside)
        for metric in self.more_metrics:
            name = getattr(metric, "func", metric).__name__  # of a partial, that of its function
            metrics[name] = metric(logits, labels, valid)
        return metrics

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Preview]:
        """Images with their true and predicted class."""
        predictions = jnp.argmax(self.logits(params, mutable, batch["image"]), axis=-1)
        return {"predictions": Preview(batch["image"], batch["label"], predictions)}

    def charts(self, states: Mapping[str, Any]) -> dict[str, Confusion]:
        """The confusion matrix."""
        return {"confusion": Confusion(np.asarray(states["confusion"].counts))}

    def predict(
        self, params: PyTree, mutable: PyTree, images: Float[Array, "batch height width channels"]
    ) -> Labels:
        """The probability of each class."""
        return Labels(jax.nn.softmax(self.logits(params, mutable, images)))

    def logits(
        self, params: PyTree, mutable: PyTree, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """What the model gives for normalised images."""
        return cast(Array, self.model.apply({"params": params, **mutable}, images, train=False))
