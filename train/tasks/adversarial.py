"""Generative adversarial networks: a generator and a discriminator, each with a loss of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from opsin.losses.adversarial import (
    NON_SATURATING,
    WASSERSTEIN,
    AdversarialLoss,
    Penalty,
    clip_weights,
    feature_matching_loss,
)
from opsin.metrics.latent import ClassUsage, code_usage
from opsin.metrics.state import Mean, Metric
from opsin.ops.keys import row_keys
from opsin.pictures.kinds import Curve, Panels, Usage
from opsin.ranges import Depth, NonNegative, Positive
from opsin.train.extractor import Extractor
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.settings import SettingError
from opsin.train.tasks.checks import check_outputs, check_range, require_entry
from opsin.train.tasks.generative import Generative
from opsin.train.tasks.latent_pictures import arithmetic, interpolation, square
from opsin.train.tasks.players import (
    DISCRIMINATOR,
    GENERATOR,
    SIGNED,
    apply_network,
    by_image,
    by_player,
    check_whole_batch,
    pair_scores,
    pairwise_auc,
    saturation,
    signed,
    unsigned,
    without_averages,
)
from opsin.train.tasks.task import Aux, Batch, Look, Player

OBSERVER = "observer"

COLLAPSED = 0.6
"""Effective share of the classes that are generated; below it a generator has collapsed."""


@dataclass(frozen=True)
class Adversarial(Generative):
    """Learns to make images that a discriminator cannot tell from real ones.

    Goodfellow et al., 2014, arXiv:1406.2661. In each step the discriminator is updated on one part
    of the batch after the other, and then the generator once. Both networks see images in
    [−1, 1]; the generator's outputs go through tanh.

    Attributes:
        generator: ``(z, labels=…, train=…) -> outputs``, as in ``models.generative.gan``.
        discriminator: ``(images, labels=…, train=…) -> logits``.
        losses: of both.
        optimizer: of the discriminator; the experiment's own is the generator's.
        turns: updates of the discriminator for each of the generator; ``data.batch`` is read by all
            of them together.
        penalty: on the gradient of the discriminator, which then has no batch norm, or None.
        penalty_weight: of it.
        clip: what the discriminator's parameters are held within after each of its updates
            (Arjovsky et al., 2017, arXiv:1701.07875), or None.
        feature_matching: weight of the distance between the mean features of real and made images
            in the generator's loss (Salimans et al., 2016, arXiv:1606.03498).
        observer: a classifier that reads the made images at each evaluation, so that classes which
            are not made any more are noticed.
    """

    input_range: ClassVar[tuple[float, float]] = SIGNED

    generator: nn.Module
    discriminator: nn.Module
    losses: AdversarialLoss = NON_SATURATING
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(adamw, learning_rate=2e-4, schedule=constant)
    )
    turns: Depth = 1
    penalty: Penalty | None = None
    penalty_weight: NonNegative = 0.0
    clip: Positive | None = None
    feature_matching: NonNegative = 0.0
    observer: Extractor | None = field(
        default=None, metadata={"identity": "evaluation", "counts_with": "loop.keep_best"}
    )

    by_class: ClassVar = ("generator", "discriminator")
    curves: ClassVar = (
        Curve(("discriminator_loss", "generator_loss")),
        Curve(("discriminator_auc",)),
        Curve(("class_perplexity",)),
    )

    @property
    def num_classes(self) -> int | None:
        """Classes that the generator is conditioned on, or None."""
        return getattr(self.generator, "num_classes", None)

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Checks the options, the data and the observer.

        Raises:
            SettingError: for options that contradict, networks of other classes, images outside of
                [0, 1], or an observer of other images.
            WeightsError: if the observer cannot be read.
        """
        for name in (GENERATOR, DISCRIMINATOR):
            check_outputs(getattr(self, name), class_names, f"task.{name}")
        if self.turns < 1:
            raise SettingError(
                f"task.turns={self.turns} would not train the discriminator: set at least 1"
            )
        if self.num_classes != getattr(self.discriminator, "num_classes", None):
            raise SettingError(
                "task.generator.num_classes and task.discriminator.num_classes differ: "
                "set both to the same number of classes"
            )
        if (self.penalty is None) != (self.penalty_weight == 0.0) or self.penalty_weight < 0:
            raise SettingError(
                "task.penalty and task.penalty_weight go together: set both, the weight above 0, "
                "or none"
            )
        spectral = getattr(self.discriminator, "spectral", False)
        if self.losses == WASSERSTEIN and not (self.penalty or self.clip or spectral):
            raise SettingError(
                "the Wasserstein loss has no bound by itself: set task.penalty and "
                "task.penalty_weight, task.clip, or task.discriminator.spectral=True"
            )
        if self.feature_matching < 0 or (self.clip is not None and self.clip <= 0):
            raise SettingError("task.feature_matching is at least 0, and task.clip above 0 or None")
        for split, batch in look().items():
            check_range(np.asarray(batch["image"]), split)
            if self.num_classes is not None and "label" in batch:
                check_labels(np.asarray(batch["label"]), self.num_classes, split)
        if self.observer is not None:
            *_, image = self.observer.open()
            if image != self._image:
                raise SettingError(
                    f"task.observer is for images {list(image)}, the generator makes "
                    f"{list(self._image)}: take another, or None"
                )

    def check_loop(self, *, accumulate: int, pmap: bool, steps: int, epoch: Fraction) -> None:
        """Raises SettingError for losses that compare batch means, with microbatches."""
        check_whole_batch(self.losses.relative or bool(self.feature_matching), accumulate)

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of both networks, each collection with an entry for each.

        Raises:
            SettingError: if images are of another shape than the generator's, there are no labels
                for networks that take them, or a penalty meets batch norm.
        """
        if self.num_classes is not None:
            require_entry(batch, "label", 'such as "digits" or "folder:PATH"')
        images, labels = batch["image"], self._labels(batch)
        if self._image != images.shape[1:]:
            raise SettingError(
                f"task.generator.image is {self._image}, the data have {images.shape[1:]}: set "
                f"task.generator.image={images.shape[1:]}"
            )
        keys = jax.random.split(key)
        z = jnp.zeros((len(images), self.latent))
        variables = {
            GENERATOR: self.generator.init(keys[0], z, labels=labels),
            DISCRIMINATOR: self.discriminator.init(keys[1], images, labels=labels),
        }
        if self.penalty is not None and "batch_stats" in variables[DISCRIMINATOR]:
            raise SettingError(
                "task.penalty takes the gradient at one image, and with batch norm its logit "
                "depends on all images: set task.discriminator.norm=None"
            )
        return by_player(variables)

    def players(self) -> tuple[Player, ...]:
        """The discriminator, then the generator."""
        clip = None if self.clip is None else partial(clip_weights, limit=self.clip)
        return (
            Player(self.discriminator_loss, DISCRIMINATOR, self.optimizer, self.turns, clip),
            Player(self.generator_loss, GENERATOR),
        )

    def discriminator_loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """Its loss on real and generated images, and the gradient penalty."""
        real, labels = signed(batch["image"]), self._labels(batch)
        key_latent, key = jax.random.split(key)
        made, _ = self._make(params, mutable, self._noise(row_keys(key_latent, len(real))), labels)
        made = jax.lax.stop_gradient(made)
        real_logits, _, mutable = self._judge(params, mutable, real, labels)
        fake_logits, _, mutable = self._judge(params, mutable, made, labels)
        losses = self.losses.discriminator(real_logits, fake_logits)
        metrics: dict[str, Metric] = {}
        total = losses
        if self.penalty is not None:
            fixed = mutable

            def critic(images: Array) -> Array:
                return self._judge(params, fixed, images, labels)[0]

            penalties = self.penalty(key, critic, real, made)
            metrics["penalty"] = Mean.from_values(penalties)
            total = losses + self.penalty_weight * penalties
        metrics["discriminator_loss"] = Mean.from_values(total)
        metrics["discriminator_auc"] = pairwise_auc(real_logits, fake_logits)
        return jnp.mean(total), Aux(mutable, metrics)

    def generator_loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """Its loss on generated images, and the feature distance to real ones."""
        labels = self._labels(batch)
        latents = self._noise(row_keys(key, len(batch["image"])))
        made, mutable = self._make(params, mutable, latents, labels)
        logits, features, _ = self._judge(params, mutable, made, labels)
        real_logits, real_features = None, features
        if self.losses.relative or self.feature_matching:
            real = signed(batch["image"])
            real_logits, real_features, _ = self._judge(params, mutable, real, labels)
        losses = self.losses.generator(logits, real_logits)
        total = jnp.mean(losses)
        metrics: dict[str, Metric] = {"generator_loss": Mean.from_values(losses)}
        if self.feature_matching:
            distance = feature_matching_loss(real_features, features)
            metrics["feature_distance"] = Mean.from_values(distance[None])
            total += self.feature_matching * distance
        return total, Aux(mutable, metrics)

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """Mean logits of real and generated images, and the AUC of the discriminator.

        The AUC is over all pairs of the set. A discriminator with batch norm normalises by the
        statistics of each batch, as in training: its running statistics mix real and generated
        images. Then its logits depend on ``data.eval_batch``, and on the padding of the last batch:
        choose one that divides the set.
        """
        images, valid, labels = signed(batch["image"]), batch["valid"], self._labels(batch)
        made, _ = self._make(params, mutable, self._noise(keys), labels, train=False)
        real, _, _ = self._judge(params, mutable, images, labels)
        fake, _, _ = self._judge(params, mutable, made, labels)
        metrics: dict[str, Metric] = {
            "discriminator_auc": pair_scores(real, fake, valid),
            "real_logit": Mean.from_values(by_image(real), valid),
            "fake_logit": Mean.from_values(by_image(fake), valid),
        }
        if self.observer is not None:
            _, probabilities = self.observer.network(mutable[OBSERVER], unsigned(made))
            seen = jnp.argmax(probabilities, axis=-1)
            counts = code_usage(seen, probabilities.shape[-1], valid).counts
            metrics["classes"] = ClassUsage(counts)
        return metrics

    def diagnose(self, numbers: Mapping[str, float]) -> list[str]:
        """Warns of a saturated discriminator and of lost modes."""
        return saturation(numbers) + [
            f"{name} is {value:.1f} of {self._observed}: the generator has collapsed to few "
            "classes (lower optimizer.learning_rate, or take an earlier checkpoint)"
            for name, value in without_averages(numbers).items()
            if name.endswith("/class_perplexity") and value < COLLAPSED * self._observed
        ]

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Panels]:
        """Samples, and what lies between latents and beyond them, a class in each row.

        Latents of N(0, I) have a length near √d, and sums of them are rescaled to it: a generator
        is not trained on shorter or longer ones.
        """
        classes, count = self.num_classes, 64

        def decode(latents: Array, labels: Array | None) -> Array:
            return unsigned(self._make(params, mutable, latents, labels, train=False)[0])

        def on_shell(latents: Array, labels: Array | None) -> Array:
            lengths = jnp.linalg.norm(latents, axis=1, keepdims=True)
            return decode(latents * np.sqrt(self.latent) / jnp.maximum(lengths, 1e-6), labels)

        latents = self._noise(row_keys(key, count))
        of_one, of_two, of_three = (
            None if classes is None else jnp.arange(count) // together % classes
            for together in (1, 2, 3)
        )
        ends = on_shell(latents, of_three)
        return {
            "samples": square(decode(latents, of_one)),
            "interpolation": interpolation(on_shell, latents, of_two),
            "arithmetic": arithmetic(on_shell, ends, latents, of_three),
        }

    def fixed(self) -> dict[str, PyTree]:
        """The weights of the observer, if there is one."""
        return {} if self.observer is None else {OBSERVER: self.observer.open()[0]}

    def charts(self, states: Mapping[str, Any]) -> dict[str, Usage]:
        """How often each class is made, if there is an observer."""
        if self.observer is None:
            return {}
        return {"classes": Usage(np.asarray(states["classes"].counts), "class")}

    def sample(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
    ) -> Float[Array, "n height width channels"]:
        """Images for latents from N(0, I), one a key."""
        return unsigned(self._make(params, mutable, self._noise(keys), labels, train=False)[0])

    @property
    def latent(self) -> int:
        """Dimensions of z."""
        return self.generator.latent  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _image(self) -> tuple[int, ...]:
        return tuple(self.generator.image)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _observed(self) -> int:
        """Classes that the observer distinguishes."""
        model: Any = None if self.observer is None else self.observer.model
        return getattr(model, "num_classes", 0)

    def _noise(self, keys: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(key, (self.latent,)))(keys)

    def _make(
        self, params: PyTree, mutable: PyTree, z: Array, labels: Array | None, train: bool = True
    ) -> tuple[Array, PyTree]:
        """Images in [−1, 1], and the mutable variables after it."""
        outputs, _, mutable = apply_network(
            self.generator, GENERATOR, params, mutable, z, labels=labels, train=train
        )
        return jnp.tanh(outputs), mutable

    def _judge(
        self, params: PyTree, mutable: PyTree, x: Array, labels: Array | None
    ) -> tuple[Array, Any, PyTree]:
        """Logits, the features before them if they are sown, and the mutable variables after it."""
        network, player = self.discriminator, DISCRIMINATOR
        return apply_network(network, player, params, mutable, x, labels=labels, train=True)

    def _labels(self, batch: Batch) -> Int[Array, " batch"] | None:
        return None if self.num_classes is None else batch["label"]


def check_labels(labels: np.ndarray, num_classes: int, split: str) -> None:
    """Raises SettingError for labels that a model of so many classes does not know."""
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise SettingError(
            f"labels of {split!r} reach from {labels.min()} to {labels.max()}, and the networks "
            f"know 0 to {num_classes - 1}: set num_classes of both"
        )
