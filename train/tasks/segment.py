"""Semantic segmentation: one class a pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from opsin.data.masks import IGNORE
from opsin.imaging.warp import centre_crop
from opsin.losses.classification import cross_entropy_loss
from opsin.losses.reduction import weighted_mean
from opsin.losses.segmentation import MaskLoss
from opsin.metrics.classification import accuracy, negative_log_likelihood
from opsin.metrics.segmentation import boundary_f1, foreground_rand, segmentation_matrix
from opsin.metrics.state import Mean, Metric
from opsin.pictures.kinds import Confusion, Curve, MaskPreview, Masks
from opsin.ranges import CountOrZero, NonNegative
from opsin.train.settings import SettingError
from opsin.train.tasks.auxiliary import initial_variables, training_logits, with_auxiliary
from opsin.train.tasks.checks import check_logits, require_entry
from opsin.train.tasks.task import Aux, Batch, Look, Task


@dataclass(frozen=True)
class Segment(Task):
    """Learns the class of each pixel; pixels labelled ``data.masks.IGNORE`` do not count.

    Attributes:
        model: ``model(images, train=…) -> logits [batch, height, width, classes]``; one logit is
            that of class 1 against class 0, for losses that take it (``check`` tries).
        loss_function: ``(logits, labels, where=…)`` gives ``[batch, height, width]``, averaged over
            the pixels that count, or ``[batch]``, averaged over the images with any.
        auxiliary_weight: of the losses of auxiliary heads, which the model may have in training.
        margin: pixels that the model loses at each side, where its convolutions are not padded.
        mirror: pixels of mirrored border that each image gets first: the overlap-tile strategy of
            Ronneberger et al., 2015, arXiv:1505.04597, Fig. 2. What is lost beyond them is lost to
            the labels too.
        boundary_tolerance: pixels by which a boundary may be off in ``boundary_f1``; None leaves
            that metric out.
        rand: whether to evaluate ``rand``, the score of the ISBI 2012 challenge (class 0 is the
            membrane, class 1 the cell).
    """

    model: nn.Module
    loss_function: MaskLoss = cross_entropy_loss
    auxiliary_weight: NonNegative = 0.4
    margin: CountOrZero = 0
    mirror: CountOrZero = 0
    boundary_tolerance: NonNegative | None = field(
        default=None, metadata={"identity": "evaluation", "counts_with": "loop.keep_best"}
    )
    rand: bool = field(
        default=False, metadata={"identity": "evaluation", "counts_with": "loop.keep_best"}
    )

    curves: ClassVar = (
        Curve(("loss", "nll"), logarithmic=True),
        Curve(("accuracy", "miou")),
    )
    progress: ClassVar = ("loss", "accuracy")

    @property
    def context(self) -> int:  # the border is that of the image, not of a tile
        """The pixels that are mirrored where there are none."""
        return self.mirror

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Raises SettingError unless the model has one output a class, or one for two classes.

        The one must be for a loss that takes it: a softmax over one class knows no class 1.
        """
        single = getattr(self.model, "num_classes", None) == 1
        least = 1 if len(class_names) == 2 else 0

        def framed() -> Array:
            return self._framed(look()["train"]["image"])

        check_logits(self.model, class_names, framed, least=least)
        if single and not takes_one_logit(self.loss_function):
            raise SettingError(
                "task.model.num_classes=1, and task.loss_function takes one logit a class: set "
                "task.model.num_classes=2, or a loss of one logit such as "
                "losses.lovasz:lovasz_hinge_loss"
            )
        if self.rand and len(class_names) not in (0, 2):
            raise SettingError(
                f"task.rand is for membranes and cells, the data have {len(class_names)} classes: "
                "set task.rand=False"
            )

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of the model.

        Raises:
            SettingError: if the data have no masks.
        """
        require_entry(batch, "mask", 'such as "shapes", "masks:PATH" or "tfds:camvid"')
        return initial_variables(self.model, key, self._framed(batch["image"]))

    def loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """The mean over what counts, plus that of auxiliary heads; ``weight`` multiplies pixels.

        Raises:
            ValueError: the batch has pixel weights, and the loss is not one of pixels.
        """
        images = self._framed(batch["image"])
        logits, heads, mutable = training_logits(self.model, params, mutable, images, key)
        labels, counted = self._labels(batch, logits)
        main, weight = self._mean(logits, labels, counted, batch)
        losses = (self._mean(head, labels, counted, batch)[0] for head in heads)
        total, terms = with_auxiliary(main, losses, self.auxiliary_weight)
        metrics: dict[str, Metric] = {"accuracy": accuracy(_of_classes(logits), labels, counted)}
        metrics |= {
            name: _weighted(term, weight) for name, term in {**terms, "loss": total}.items()
        }
        return total, Aux(mutable, metrics, weight)

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """IoU, Dice, precision, recall and accuracy over the pixels that count, and NLL."""
        logits = self.pixel_logits(params, mutable, batch["image"])
        labels, counted = self._labels(batch, logits)
        counted &= batch["valid"][:, None, None]
        predictions = jnp.argmax(logits, axis=-1)
        metrics: dict[str, Metric] = {
            "confusion": segmentation_matrix(logits, labels, counted),
            "nll": negative_log_likelihood(logits, labels, counted),
        }
        if self.boundary_tolerance is not None:
            metrics["boundary_f1"] = boundary_f1(
                predictions,
                labels,
                counted,
                num_classes=logits.shape[-1],
                tolerance=self.boundary_tolerance,
            )
        if self.rand:
            metrics["rand"] = foreground_rand(predictions, labels, counted)
        return metrics

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, MaskPreview]:
        """Images with their true and predicted masks."""
        logits = self.pixel_logits(params, mutable, batch["image"])
        shown = {name: centre_crop(batch[name], logits.shape[1:3]) for name in ("image", "mask")}
        predictions = jnp.argmax(logits, axis=-1)
        return {"predictions": MaskPreview(shown["image"], shown["mask"], predictions)}

    def charts(self, states: Mapping[str, Any]) -> dict[str, Confusion]:
        """The confusion matrix of the pixels."""
        return {"confusion": Confusion(np.asarray(states["confusion"].counts))}

    def predict(
        self, params: PyTree, mutable: PyTree, images: Float[Array, "batch height width channels"]
    ) -> Masks:
        """The probability of each class for each pixel; images have their border already."""
        return Masks(jax.nn.softmax(self._unframed_logits(params, mutable, images)))

    def pixel_logits(
        self, params: PyTree, mutable: PyTree, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns classes"]:
        """What the model gives for normalised images; one logit becomes two, of which one is 0."""
        return self._unframed_logits(params, mutable, self._framed(images))

    def _unframed_logits(self, params: PyTree, mutable: PyTree, images: Array) -> Array:
        variables = {"params": params, **mutable}
        return _of_classes(cast(Array, self.model.apply(variables, images, train=False)))

    def _framed(self, images: Array) -> Array:
        sides = ((0, 0), (self.mirror, self.mirror), (self.mirror, self.mirror), (0, 0))
        return jnp.pad(images, sides, "reflect") if self.mirror else images

    def _labels(
        self, batch: Batch, logits: Array
    ) -> tuple[Int[Array, "batch rows columns"], Bool[Array, "batch rows columns"]]:
        """Labels of the pixels that the logits stand for, 0 where none counts, and which count.

        Raises:
            ValueError: the logits are of another size than ``margin`` and ``mirror`` say.
        """
        given, asked = logits.shape[1:3], batch["mask"].shape[1:3]
        if any(n + 2 * (self.margin - self.mirror) != m for n, m in zip(given, asked, strict=True)):
            raise ValueError(
                f"the model gives logits of {given[0]}x{given[1]} pixels for masks of "
                f"{asked[0]}x{asked[1]}: enlarge its logits, or set task.margin to the pixels that "
                "it loses at each side"
            )
        labels = centre_crop(batch["mask"], logits.shape[1:3]).astype(jnp.int32)
        counted = labels != IGNORE
        return jnp.where(counted, labels, 0), counted

    def _mean(
        self, logits: Array, labels: Array, counted: Array, batch: Batch
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The mean loss, and what it is a mean over: the number of pixels or of images."""
        losses = self.loss_function(logits, labels, where=counted)
        if losses.ndim == 1:
            counted = counted.any(axis=(1, 2))
            if "weight" in batch:
                raise ValueError("pixel weights need a loss of pixels, [batch, height, width]")
        elif "weight" in batch:
            losses *= centre_crop(batch["weight"], logits.shape[1:3])
        return weighted_mean(losses, counted), jnp.sum(counted, dtype=jnp.float32)


def takes_one_logit(loss_function: MaskLoss) -> bool:
    """Whether a loss takes one logit for classes 0 and 1: tried on two images of four pixels."""
    logits, counted = np.ones((2, 2, 2, 1), np.float32), np.ones((2, 2, 2), bool)
    labels = np.array([[[0, 0], [0, 1]], [[1, 1], [1, 0]]], np.int32)
    try:  # as one program: operation by operation, a loss is a hundred of them
        losses = np.asarray(jax.jit(loss_function)(logits, labels, where=counted))
    except (ValueError, jax.errors.ConcretizationTypeError):  # or it looks at values
        return False
    first, second = losses.reshape(2, -1).mean(axis=1)
    return bool(np.isfinite(losses).all() and first != second)


def _of_classes(logits: Array) -> Array:
    """Logits of classes 0 and 1 from a single one; several logits are returned as they are."""
    if logits.shape[-1] > 1:
        return logits
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def _weighted(value: Array, weight: Array) -> Mean:
    """A mean that is weighted, among those of other batches, by what it is a mean over."""
    return Mean(total=value * weight, count=weight.astype(jnp.int32))
