"""Translation between an image and its mask, judged by a discriminator of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from losses.adversarial import NON_SATURATING, AdversarialLoss
from metrics.segmentation import segmentation_matrix
from metrics.state import Mean, Metric
from train.optim import Optimizer, adamw, constant
from train.pictures import Confusion, Curve, Panels
from train.settings import SettingError
from train.tasks.checks import check_range, require_entry
from train.tasks.players import (
    DISCRIMINATOR,
    GENERATOR,
    apply_network,
    by_player,
    check_whole_batch,
    saturation,
    signed,
    told_apart,
    unsigned,
)
from train.tasks.task import (
    Aux,
    Batch,
    Look,
    Player,
    Task,
)


@dataclass(frozen=True)
class Translate(Task):
    """Learns to make one kind of image from another that lies on it pixel by pixel.

    Isola et al., 2017, arXiv:1611.07004: a discriminator sees the pair, and the generator is also
    held to the true image by the mean absolute error. Masks of two classes are images of 0 and 1.

    Attributes:
        generator: ``(images, train=…) -> outputs``, of as many channels as its target has.
        discriminator: ``(images, condition=…, train=…) -> logits``, [batch] or a map.
        direction: what is made of what.
        losses: of both players.
        optimizer: of the discriminator; the experiment's own is the generator's.
        l1: weight of the absolute error, a mean over pixels in [−1, 1]; the paper has 100.
        adversarial: weight of what the discriminator says; 0 leaves the error alone.
    """

    generator: nn.Module
    discriminator: nn.Module
    direction: Literal["mask to image", "image to mask"] = "mask to image"
    losses: AdversarialLoss = NON_SATURATING
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(adamw, learning_rate=2e-4, schedule=constant)
    )
    l1: float = 100.0
    adversarial: float = 1.0

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
            if "mask" in batch and np.max(batch["mask"]) > 1:
                raise SettingError(
                    f"masks of {split!r} have values up to {int(np.max(batch['mask']))}, and those "
                    "that are translated are 0 and 1: leave out augmentations that move pixels "
                    "beyond the border, which are marked as not counting"
                )

    def check_loop(self, *, accumulate: int, pmap: bool, steps: int) -> None:
        """Raises SettingError for losses that compare means of a batch, if it comes in parts."""
        check_whole_batch(self.losses.relative, accumulate)

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of both networks, each collection with an entry for each.

        Raises:
            SettingError: if the data have no masks, or the generator makes other channels.
        """
        require_entry(batch, "mask", 'such as "tfds:isbi2012" or "masks:PATH"')
        given, target = self._pair(batch)
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
        """The discriminator, if it has a say, then the generator."""
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
        """Its loss on true and on made pairs; half of it, as in the paper, section 3.3."""
        given, target = self._pair(batch)
        made, _ = self._make(params, mutable, given, key)
        real, mutable = self._judge(params, mutable, target, given)
        fake, mutable = self._judge(params, mutable, jax.lax.stop_gradient(made), given)
        losses = 0.5 * self.losses.discriminator(real, fake)
        metrics: dict[str, Metric] = {
            "discriminator_loss": Mean.from_values(losses),
            "discriminator_auc": told_apart(real, fake),
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
        """What it hides from the discriminator, and its distance from the true image."""
        given, target = self._pair(batch)
        made, mutable = self._make(params, mutable, given, key)
        errors = _absolute_error(made, target)
        metrics: dict[str, Metric] = {"l1": Mean.from_values(0.5 * errors)}  # as in evaluation
        total = self.l1 * errors
        if self.adversarial:
            fake, _ = self._judge(params, mutable, made, given)
            real = self._judge(params, mutable, target, given)[0] if self.losses.relative else None
            losses = self.losses.generator(fake, real)
            metrics["generator_loss"] = Mean.from_values(losses)
            total += self.adversarial * losses
        return jnp.mean(total), Aux(mutable, metrics)

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Metric]:
        """Absolute error of values in [0, 1], and sharpness, of 1 where edges are as steep as true.

        Sharpness is the mean difference of neighbours over that of the truth: texture that is as
        rough need not be right. Images are made without dropout and by running statistics. Of made
        masks also what segmentation is measured by: one is read off at ½, and its two classes are
        those below and above.
        """
        given, target = self._pair(batch)
        made, _ = self._make(params, mutable, given, key, train=False)
        valid = batch["valid"]
        metrics: dict[str, Metric] = {
            "l1": Mean.from_values(0.5 * _absolute_error(made, target), valid),
            "sharpness": Mean.from_values(_steepness(made) / _steepness(target), valid),
        }
        if self.direction == "image to mask":
            logits = jnp.concatenate([-made, made], axis=-1)
            counted = jnp.broadcast_to(valid[:, None, None], batch["mask"].shape)
            metrics["confusion"] = segmentation_matrix(logits, batch["mask"], counted)
        if self.adversarial:
            (real, _), (fake, _) = (self._judge(params, mutable, x, given) for x in (target, made))
            metrics["discriminator_auc"] = told_apart(real, fake, valid)
        return metrics

    def diagnose(self, numbers: Mapping[str, float]) -> list[str]:
        """What to tell of an evaluation: a discriminator that has won."""
        return saturation(numbers)

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Panels]:
        """What was given, what was made of it, and what is true."""
        given, target = self._pair(batch)
        made, _ = self._make(params, mutable, given, key, train=False)
        channels = max(given.shape[-1], target.shape[-1])
        rows = [
            jnp.broadcast_to(unsigned(x), (*x.shape[:-1], channels))[:6]
            for x in (given, made, target)
        ]
        return {"translations": Panels(jnp.stack(rows), rows=("given", "made", "true"))}

    def charts(self, states: Mapping[str, Any]) -> dict[str, Confusion]:
        """The confusion matrix of masks that are made."""
        if "confusion" not in states:
            return {}
        return {"confusion": Confusion(np.asarray(states["confusion"].counts))}

    def _pair(self, batch: Batch) -> tuple[Array, Array]:
        """What is given and what is to be made of it, in [−1, 1]."""
        image, mask = signed(batch["image"]), signed(batch["mask"][..., None].astype(jnp.float32))
        return (mask, image) if self.direction == "mask to image" else (image, mask)

    def _make(
        self, params: PyTree, mutable: PyTree, given: Array, key: Array, train: bool = True
    ) -> tuple[Array, PyTree]:
        outputs, _, mutable = apply_network(
            self.generator, GENERATOR, params, mutable, given, train=train, rngs={"dropout": key}
        )
        return jnp.tanh(outputs), mutable

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
) -> Float[Array, " batch"]:
    return jnp.mean(jnp.abs(made - target), axis=(1, 2, 3))


def _steepness(images: Float[Array, "batch height width channels"]) -> Float[Array, " batch"]:
    """The mean absolute difference of neighbouring pixels; never 0."""
    axes = (1, 2, 3)
    down, right = (jnp.mean(jnp.abs(jnp.diff(images, axis=axis)), axis=axes) for axis in (1, 2))
    return jnp.maximum(down + right, 1e-6)
