"""Autoencoders with a discrete code: each place of an image's map is one of a book of vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from opsin.losses.likelihoods import Gaussian
from opsin.losses.variational import codebook_loss, commitment_loss
from opsin.metrics.latent import code_usage
from opsin.metrics.state import Mean, Metric
from opsin.pictures.kinds import Curve, Panels, Usage
from opsin.ranges import NonNegative, Positive
from opsin.train.settings import SettingError
from opsin.train.tasks.checks import check_decoder, check_range, in_range
from opsin.train.tasks.latent_pictures import reconstructions
from opsin.train.tasks.task import Aux, Batch, Look, Task


@dataclass(frozen=True)
class Quantize(Task):
    """Learns a code of the nearest vectors of a codebook, and the codebook.

    van den Oord et al., 2017, arXiv:1711.00937, eq. 3. There is no prior over the codes, and so
    nothing to sample from.

    Attributes:
        model: as ``models.generative.vqvae.VQVAE``; the decoder puts out the image itself.
        commitment: weight of the term that keeps the encoder near the codes.
        variance: of the pixels of the data; the squared error is divided by it, so that the weights
            of the terms mean the same on other data.
    """

    model: nn.Module
    commitment: NonNegative = 0.25
    variance: Positive = 1.0

    curves: ClassVar = (Curve(("loss",), logarithmic=True), Curve(("perplexity",)))

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Raises SettingError for a variance or weight that cannot be, or images beyond [0, 1]."""
        if self.variance <= 0 or self.commitment < 0:
            raise SettingError("task.variance is above 0, and task.commitment at least 0")
        for split, batch in look().items():
            check_range(np.asarray(batch["image"]), split)

    def check_loop(self, *, accumulate: int, pmap: bool, steps: int, epoch: Fraction) -> None:
        """Raises SettingError for microbatches: each would update the moving averages."""
        if accumulate > 1 and self._averages:
            raise SettingError(
                "a codebook of moving averages learns from the whole batch: set loop.accumulate=1 "
                "or task.model.update=gradient"
            )

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of the model, the codebook included.

        Raises:
            SettingError: if the decoder does not put out as many channels as the images have.
        """
        check_decoder(self.model, Gaussian(std=1.0), batch)
        return self.model.init(key, batch["image"], train=False)

    def loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """Squared error over the variance, commitment, and codebook loss if that learns by it."""
        output: Any
        output, mutable = self.model.apply(
            {"params": params, **mutable},
            batch["image"],
            train=True,
            rngs={"codes": key},
            mutable=list(mutable),
        )
        places = (1, 2)
        terms = {
            "reconstruction": _mse(output.outputs, batch["image"]) / self.variance,
            "commitment": jnp.mean(commitment_loss(output.z_e, output.codes), axis=places),
        }
        total = terms["reconstruction"] + self.commitment * terms["commitment"]
        if "codebook" not in mutable:  # then it is a parameter
            terms["codebook"] = jnp.mean(codebook_loss(output.z_e, output.codes), axis=places)
            total += terms["codebook"]
        terms["loss"] = total
        metrics: dict[str, Metric] = {name: Mean.from_values(x) for name, x in terms.items()}
        metrics["codes"] = code_usage(output.indices, self._codes)
        return jnp.mean(total), Aux(mutable, metrics)

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """Mean squared error of a pixel, and the use of the codes."""
        output, valid = self._apply(params, mutable, batch), batch["valid"]
        return {
            "mse": Mean.from_values(_mse(jnp.clip(output.outputs, 0, 1), batch["image"]), valid),
            "codes": code_usage(output.indices, self._codes, valid),
        }

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Panels]:
        """Reconstructions, with the map of codes between as greys."""
        output = self._apply(params, mutable, batch)
        indices = output.indices[..., None] / max(self._codes - 1, 1)
        maps = jax.image.resize(indices, batch["image"].shape, "nearest")
        return {"reconstructions": reconstructions(batch["image"], output.outputs, None, maps)}

    def charts(self, states: Mapping[str, Any]) -> dict[str, Usage]:
        """How often each code is used."""
        return {"codes": Usage(np.asarray(states["codes"].counts), "code")}

    @property
    def num_classes(self) -> None:
        """None: the model does not receive the class."""
        return None

    def latents(
        self, params: PyTree, mutable: PyTree, batch: Batch
    ) -> Float[Array, "batch latent"]:
        """The chosen codes of all places, one after the other."""
        codes = self._apply(params, mutable, batch).codes
        return codes.reshape(len(codes), -1)

    @property
    def _codes(self) -> int:
        return self.model.num_codes  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _averages(self) -> bool:
        return self.model.update == "ema"  # pyright: ignore[reportAttributeAccessIssue]

    def _apply(self, params: PyTree, mutable: PyTree, batch: Batch) -> Any:
        return self.model.apply({"params": params, **mutable}, batch["image"], train=False)


def _mse(
    outputs: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
) -> Float[Array, " batch"]:
    return jnp.mean(jnp.square(outputs - in_range(images)), axis=(1, 2, 3))
