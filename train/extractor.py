"""Feature extractors: trained classifiers for the evaluation of generators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PyTree

from opsin.ranges import Count
from opsin.train.compiler import jit_here
from opsin.train.heads import around_head
from opsin.train.weights import Weights, WeightsError

Extract = Callable[
    [Num[np.ndarray, "images height width channels"]],
    tuple[Float[np.ndarray, "images features"], Float[np.ndarray, "images classes"]],
]


@dataclass(frozen=True)
class Extractor:
    """A classifier to evaluate generators by: its features are the inputs of its last layer.

    Attributes:
        name: of the network, as saved; metrics are called ``fd_<name>``.
        model: the network; its last layer is called ``head``, as in all of ``models``.
        path: a file of ``opsin export``; a relative one as that of ``Weights``.
        sha256: of the file, so that a run records which weights evaluated it; None takes any.
        batch: images in one call of the network.
    """

    name: str
    model: nn.Module
    path: str = field(metadata={"known_by": "sha256"})
    sha256: str | None = None
    batch: Count = field(default=500, metadata={"identity": False})

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise WeightsError(f"an extractor's batch is at least 1, got {self.batch}")

    def load(self) -> Extract:
        """Reads the file and checks it.

        Returns:
            A function from images, uint8 or floats in [0, 1], to features and probabilities in
            float32. All calls of the network are of one shape: what an image gives does not depend
            on how many there are. It raises WeightsError for other images.

        Raises:
            WeightsError: if the file is missing, damaged, no safetensors file, not the one with
                this sha256, or of another network.
            SettingError: if the network has no layer called head.
        """
        variables, image = self.open()
        variables, run = jax.device_put(variables), jit_here(self.network)
        shape = jax.ShapeDtypeStruct((self.batch, *image), jnp.float32)
        jax.eval_shape(run, variables, shape)  # a network without a head raises here

        def extract(images: Num[np.ndarray, "images height width channels"]) -> Any:
            images = np.asarray(images)
            _check_images(images, image)
            parts = []
            for start in range(0, len(images), self.batch):
                part = np.asarray(images[start : start + self.batch], np.float32)
                if images.dtype == np.uint8:
                    part = part / np.float32(255)
                missing = self.batch - len(part)
                padded = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0)))
                outputs = jax.device_get(run(variables, padded))
                parts.append([output[: len(part)] for output in outputs])
            features, probabilities = map(np.concatenate, zip(*parts, strict=True))
            return features, probabilities

        return extract

    def open(self) -> tuple[PyTree, tuple[int, ...]]:
        """Reads the file and checks it.

        Returns:
            The variables of ``network``, in NumPy; height, width and channels of the images.

        Raises:
            WeightsError: as ``load``.
        """
        weights = Weights(self.path, self.sha256)
        _, described = weights.read()
        if (network := described.get("network")) != self.name:
            raise WeightsError(
                f"{self.path} holds {network!r}, not {self.name!r}: give its path and model"
            )
        seen = weights.preprocessing(described)
        image, (mean, std) = seen.image, seen.scale()
        images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
        variables = weights.load(self.model.init, jax.random.key(0), images)
        scale = {"mean": np.asarray(mean, np.float32), "std": np.asarray(std, np.float32)}
        return {"variables": variables, **scale}, image

    def network(self, opened: PyTree, images: Array) -> tuple[Array, Array]:
        """Features and probabilities of images in [0, 1], by the variables that ``open`` gave.

        They are an argument, so that no program holds them as constants.
        """
        images = (images - opened["mean"]) / opened["std"]
        features, logits = around_head(self.model, opened["variables"], images)
        return features.astype(jnp.float32), jax.nn.softmax(logits.astype(jnp.float32))


def _check_images(images: np.ndarray, image: tuple[int, ...]) -> None:
    if images.shape[1:] != image or not len(images):
        raise WeightsError(
            f"the extractor takes images [n, {', '.join(map(str, image))}], got "
            f"{list(images.shape)}: it was trained on that size"
        )
    if images.dtype == np.uint8:
        return
    floats = jnp.issubdtype(images.dtype, jnp.floating)
    if floats and not np.isfinite(images).all():
        raise WeightsError(
            "the images are not finite: the generator or its sampler gave them; see metrics.jsonl, "
            "take an earlier checkpoint, or sample in another way"
        )
    if not (floats and images.min() >= 0 and images.max() <= 1):
        raise WeightsError("the extractor takes images of type uint8, or floats in [0, 1]")
