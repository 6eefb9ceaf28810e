"""Autoencoders: images through a narrow code and back, from what may be a corrupted image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from opsin.data.augment import one_by_one
from opsin.losses.likelihoods import Gaussian, Likelihood
from opsin.metrics.state import Mean, Metric
from opsin.ops.keys import row_keys
from opsin.pictures.kinds import Curve, Panels
from opsin.train.tasks.checks import check_decoder, check_support, supported
from opsin.train.tasks.latent_pictures import latent_pictures, reconstructions
from opsin.train.tasks.task import Aux, Batch, Look, Task

Corrupt = Callable[[Key[Array, ""], Batch], Batch]


@dataclass(frozen=True)
class Autoencode(Task):
    """Learns to give back an image from its code.

    Hinton & Salakhutdinov, 2006, Science 313(5786). Nothing makes the codes follow a distribution:
    there is no likelihood of an image, and nothing to sample from.

    Attributes:
        model: with ``encode`` and ``decode``, as in ``models.generative.autoencoder``.
        likelihood: of an image given what the decoder puts out; its negative logarithm is the loss.
            Bernoulli is the cross-entropy that is usual for greys too; Gaussian(std=1.0) is half
            the squared error and a constant.
        corrupt: ``(key, batch) -> batch``, one of ``data.augment``: what the encoder sees while the
            clean image is the target (Vincent et al., 2008, doi:10.1145/1390156.1390294).
    """

    model: nn.Module
    likelihood: Likelihood = field(default_factory=lambda: Gaussian(std=1.0))
    corrupt: Corrupt | None = None

    curves: ClassVar = (
        Curve(("loss",), logarithmic=True),
        Curve(("distortion",), logarithmic=True),
    )

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Raises SettingError for images that the likelihood is not for; greys pass as binary."""
        for split, batch in look().items():
            check_support(self.likelihood, np.asarray(batch["image"]), split, greys=True)

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of the model.

        Raises:
            SettingError: if the decoder puts out another number than the likelihood takes.
        """
        check_decoder(self.model, self.likelihood, batch)
        return self.model.init(key, batch["image"], train=False)

    def loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """The negative log-likelihood of the clean image, a mean over the batch."""
        key_corrupt, key_dropout = jax.random.split(key)
        outputs, mutable = self.model.apply(
            {"params": params, **mutable},
            self._seen(key_corrupt, batch),
            train=True,
            rngs={"dropout": key_dropout},
            mutable=list(mutable),
        )
        distortion = -self.likelihood.log_prob(cast(Array, outputs), self._target(batch))
        return jnp.mean(distortion), Aux(mutable, {"loss": Mean.from_values(distortion)})

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """Distortion in nats, and the squared error of a pixel, from what is seen in training."""
        outputs = self._outputs(params, mutable, one_by_one(self._seen, keys, batch))
        distortion = -self.likelihood.log_prob(outputs, self._target(batch))
        errors = jnp.square(self.likelihood.mean(outputs) - batch["image"])
        return {
            "distortion": Mean.from_values(distortion, batch["valid"]),
            "mse": Mean.from_values(jnp.mean(errors, axis=(1, 2, 3)), batch["valid"]),
        }

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Panels]:
        """Reconstructions, and what lies between codes."""
        seen = one_by_one(self._seen, row_keys(key, len(batch["image"])), batch)
        variables = {"params": params, **mutable}
        made = self.likelihood.mean(self._outputs(params, mutable, seen))

        def decode(latents: Array, labels: Array | None) -> Array:
            outputs = self.model.apply(variables, latents, method="decode")
            return self.likelihood.mean(cast(Array, outputs))

        latents = self.latents(params, mutable, batch)
        corrupted = None if self.corrupt is None else seen
        return {
            "reconstructions": reconstructions(batch["image"], made, corrupted),
            **latent_pictures(decode, batch["image"], latents, None),
        }

    @property
    def num_classes(self) -> None:
        """None: the model does not receive the class."""
        return None

    def latents(
        self, params: PyTree, mutable: PyTree, batch: Batch
    ) -> Float[Array, "batch latent"]:
        """The codes of clean images."""
        variables: Any = {"params": params, **mutable}
        return cast(Array, self.model.apply(variables, batch["image"], method="encode"))

    def _target(self, batch: Batch) -> Array:
        return supported(self.likelihood, batch["image"], greys=True)

    def _seen(self, key: Array, batch: Batch) -> Array:
        return batch["image"] if self.corrupt is None else self.corrupt(key, batch)["image"]

    def _outputs(self, params: PyTree, mutable: PyTree, images: Array) -> Array:
        return cast(Array, self.model.apply({"params": params, **mutable}, images, train=False))
