"""Translation between an image and its mask, judged by a discriminator of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from opsin.data.masks import IGNORE
from opsin.losses.adversarial import NON_SATURATING, AdversarialLoss
from opsin.metrics.segmentation import segmentation_matrix
from opsin.metrics.state import Mean, Metric
from opsin.pictures.kinds import Confusion, Curve, Panels
from opsin.ranges import NonNegative
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.settings import SettingError
from opsin.train.tasks.checks import check_range, require_entry
from opsin.train.tasks.players import (
    DISCRIMINATOR,
    GENERATOR,
    SIGNED,
    apply_network,
    by_player,
    check_whole_batch,
    pair_scores,
    pairwise_auc,
    saturation,
    signed,
    unsigned,
)
from opsin.train.tasks.task import Aux, Batch, Look, Player, Task


@dataclass(frozen=True)
class Translate(Task):
    """Learns to make one kind of image from another that lies on it pixel by pixel.

    Isola et al., 2017, arXiv:1611.07004: a discriminator sees the pair, and the generator is also
    held to the true image by the mean absolute error. Masks of two classes are images of 0 and 1;
    pixels labelled ``data.masks.IGNORE`` do not count.

    Attributes:
        generator: ``(images, train=…) -> outputs``, of as many channels as its target has.
        discriminator: ``(images, condition=…, train=…) -> logits``, [batch] or a map.
        direction: what is made of what.
        losses: of both players.
        optimizer: of the discriminator; the experiment's own is the generator's.
        l1: weight of the absolute error, a mean over pixels in [−1, 1]; the paper has 100.
        adversarial: weight of the adversarial loss; 0 leaves the absolute error alone.
    """

    input_range: ClassVar[tuple[float, float]] = SIGNED

    generator: nn.Module
    discriminator: nn.Module
    direction: Literal["mask to image", "image to mask"] = "mask to image"
    losses: AdversarialLoss = NON_SATURATING
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(adamw, learning_rate=2e-4, schedule=constant)
    )
    l1: NonNegative = 100.0
    adversarial: NonNegative = 1.0

    curves: ClassVar = (
        Curve(("accuracy", "miou")),
        Curve(("discriminator_loss", "generator_loss")),
        Curve(("discriminator_auc",)),
        Curve(("l1",), logarithmic=True),
    )

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Raises SettingError for weights that cannot be, images outside of [0, 1], other masks."""
        if len(class_names) not in (0, 2):
            raise SettingError(
                f"the task translates masks of two classes, the data have {len(class_names)}: "
                "choose another data.source"
            )
        if min(self.l1, self.adversarial) < 0 or self.l1 == self.adversarial == 0:
            raise SettingError("task.l1 and task.adversarial are at least 0, and one is above it")
        for split, batch in look().items():
            check_range(np.asarray(batch["image"]), split)
            if "mask" in batch and not np.isin(batch["mask"], (0, 1, IGNORE)).all():
                raise SettingError(
                    f"masks of {split!r} have labels other than 0, 1 and {IGNORE}, which is "
                    "ignored: choose a data.source with masks of two classes"
                )

    def check_loop(self, *, accumulate: int, pmap: bool, steps: int, epoch: Fraction) -> None:
        """Raises SettingError for losses that compare batch means, with microbatches."""
        check_whole_batch(self.losses.relative, accumulate)

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of both networks, each collection with an entry for each.

        Raises:
            SettingError: if the data have no masks, or the generator makes other channels.
        """
        require_entry(batch, "mask", 'such as "tfds:isbi2012" or "masks:PATH"')
        given, target, _ = self._pair(batch)
        keys = jax.random.split(key)
        generator = self.generator.init(keys[0], given)
        made = jax.eval_shape(lambda: self.generator.apply(generator, given)).shape  # pyright: ignore
        if made != target.shape:
            raise SettingError(
                f"task.generator makes {list(made[1:])} of images, the target is "
                f"{list(target.shape[1:])}: set task.generator.num_classes={target.shape[-1]}"
            )
        discriminator = self.discriminator.init(keys[1], target, condition=given)
        return by_player({GENERATOR: generator, DISCRIMINATOR: discriminator})

    def players(self) -> tuple[Player, ...]:
        """The discriminator, if its loss has a weight, then the generator."""
        generator = Player(self.generator_loss, GENERATOR)
        if not self.adversarial:
            return (generator,)
        return Player(self.discriminator_loss, DISCRIMINATOR, self.optimizer), generator

    def discriminator_loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """Half of its loss on true and generated pairs, as in the paper, section 3.3."""
        given, target, counted = self._pair(batch)
        made, _ = self._make(params, mutable, given, counted, key)
        real, mutable = self._judge(params, mutable, target, given)
        fake, mutable = self._judge(params, mutable, jax.lax.stop_gradient(made), given)
        losses = 0.5 * self.losses.discriminator(real, fake)
        metrics: dict[str, Metric] = {
            "discriminator_loss": Mean.from_values(losses),
            "discriminator_auc": pairwise_auc(real, fake),
        }
        return jnp.mean(losses), Aux(mutable, metrics)

    def generator_loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """Its adversarial loss, and the absolute error to the true image."""
        given, target, counted = self._pair(batch)
        made, mutable = self._make(params, mutable, given, counted, key)
        errors = _absolute_error(made, target, counted)
        seen = counted.any(axis=(1, 2, 3))
        metrics: dict[str, Metric] = {
            "l1": Mean.from_values(0.5 * errors, seen)
        }  # as in evaluation
        total = self.l1 * errors
        if self.adversarial:
            fake, _ = self._judge(params, mutable, made, given)
            real = self._judge(params, mutable, target, given)[0] if self.losses.relative else None
            losses = self.losses.generator(fake, real)
            metrics["generator_loss"] = Mean.from_values(losses)
            total += self.adversarial * losses
        return jnp.mean(total), Aux(mutable, metrics)

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """Absolute error of values in [0, 1], and sharpness, of 1 where edges are as steep as true.

        Sharpness is the mean difference of neighbours over that of the truth: texture that is as
        rough need not be right. Images are made without dropout and by running statistics. Of made
        masks also what segmentation is measured by: one is read off at ½, and its two classes are
        those below and above.

        The AUC of the discriminator is over all pairs of the set. One with batch norm normalises
        by the statistics of each batch, as in training, so that its logits depend on
        ``data.eval_batch``, and on the padding of the last batch: choose one that divides the set.
        """
        given, target, counted = self._pair(batch)
        made, _ = self._make(params, mutable, given, counted)
        valid = batch["valid"] & counted.any(axis=(1, 2, 3))
        sharpness = _steepness(made, counted) / _steepness(target, counted)
        metrics: dict[str, Metric] = {
            "l1": Mean.from_values(0.5 * _absolute_error(made, target, counted), valid),
            "sharpness": Mean.from_values(sharpness, valid),
        }
        if self.direction == "image to mask":
            logits = jnp.concatenate([-made, made], axis=-1)
            pixels = valid[:, None, None] & counted[..., 0]
            metrics["confusion"] = segmentation_matrix(logits, batch["mask"], pixels)
        if self.adversarial:
            (real, _), (fake, _) = (self._judge(params, mutable, x, given) for x in (target, made))
            metrics["discriminator_auc"] = pair_scores(real, fake, valid)
        return metrics

    def diagnose(self, numbers: Mapping[str, float]) -> list[str]:
        """Warns of a saturated discriminator."""
        return saturation(numbers)

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Panels]:
        """What was given, what was made of it, and what is true."""
        given, target, counted = self._pair(batch)
        made, _ = self._make(params, mutable, given, counted)
        channels = max(given.shape[-1], target.shape[-1])
        rows = [
            jnp.broadcast_to(unsigned(x), (*x.shape[:-1], channels))[:6]
            for x in (given, made, target)
        ]
        return {"translations": Panels(jnp.stack(rows), rows=("given", "made", "true"))}

    def _pair(self, batch: Batch) -> tuple[Array, Array, Array]:
        """What is given, what is to be made of it, in [−1, 1], and which pixels count.

        A mask says nothing where it is ``IGNORE``: it is 0 there, between the two classes, and so
        are the target and what is made, alike. No pair can be told by such pixels, and no gradient
        comes from them. A mask of another class, as an image out of range, gives NaN.
        """
        counted = (batch["mask"] != IGNORE)[..., None]
        image = signed(batch["image"])
        mask = jnp.where(counted, signed(batch["mask"][..., None].astype(jnp.float32)), 0)
        if self.direction == "image to mask":
            return image, mask, counted
        return mask, jnp.where(counted, image, 0), counted

    def charts(self, states: Mapping[str, Any]) -> dict[str, Confusion]:
        """The confusion matrix of masks that are made."""
        if "confusion" not in states:
            return {}
        return {"confusion": Confusion(np.asarray(states["confusion"].counts))}

    def _make(
        self,
        params: PyTree,
        mutable: PyTree,
        given: Array,
        counted: Array,
        key: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """What is made, and the mutable variables after it; in training with a key for dropout."""
        options = {"train": False} if key is None else {"train": True, "rngs": {"dropout": key}}
        outputs, _, mutable = apply_network(
            self.generator, GENERATOR, params, mutable, given, **options
        )
        return jnp.where(counted, jnp.tanh(outputs), 0), mutable

    def _judge(
        self, params: PyTree, mutable: PyTree, x: Array, given: Array
    ) -> tuple[Array, PyTree]:
        logits, _, mutable = apply_network(
            self.discriminator, DISCRIMINATOR, params, mutable, x, condition=given, train=True
        )
        return logits, mutable


def _absolute_error(
    made: Float[Array, "batch height width channels"],
    target: Float[Array, "batch height width channels"],
    counted: Bool[Array, "batch height width 1"],
) -> Float[Array, " batch"]:
    """A mean over the pixels that count; 0 of none."""
    return _mean(jnp.abs(made - target), counted)


def _steepness(
    images: Float[Array, "batch height width channels"],
    counted: Bool[Array, "batch height width 1"],
) -> Float[Array, " batch"]:
    """The mean absolute difference of neighbouring pixels that both count; never 0."""
    both = [counted[:, 1:] & counted[:, :-1], counted[:, :, 1:] & counted[:, :, :-1]]
    down, right = (
        _mean(jnp.abs(jnp.diff(images, axis=axis)), pairs)
        for axis, pairs in zip((1, 2), both, strict=True)
    )
    return jnp.maximum(down + right, 1e-6)


def _mean(values: Array, counted: Array) -> Float[Array, " batch"]:
    """Of each image, over all channels of the pixels that count."""
    axes = (1, 2, 3)
    total = jnp.sum(jnp.where(counted, values, 0), axis=axes)
    return total / jnp.maximum(jnp.sum(counted, axis=axes) * values.shape[-1], 1)
