"""Feature extractors: trained classifiers in safetensors files, that generators are judged by.

A file holds the variables by ``/``-joined path and, as one JSON text in its header, what they are.
It is never a pickle: reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data.augment import normalize
from train.logging import replace_bytes
from train.paths import flatten, unflatten
from train.program import jit_here

HEADER = "extractor"
ROOT = Path(__file__).parent.parent

Extract = Callable[
    [Num[np.ndarray, "images height width channels"]],
    tuple[Float[np.ndarray, "images features"], Float[np.ndarray, "images classes"]],
]


Network = Callable[[PyTree, Array], tuple[Array, Array]]


class ExtractorError(ValueError):
    """A feature extractor that cannot be written, read or used: the cause, and the way out."""


def save_extractor(
    path: str | Path,
    name: str,
    variables: PyTree,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image: tuple[int, int, int],
    classes: int,
    origin: Mapping[str, Any],
) -> str:
    """Writes a trained classifier, whole or not at all; the same one always as the same bytes.

    Args:
        path: of the file; its directory is made.
        name: of the network, such as "lenet".
        variables: ``{"params": …}``, with ``"batch_stats"`` if it has them.
        mean: channel means of images in [0, 1] that it was trained with.
        std: channel standard deviations.
        image: height, width and channels.
        classes: number of its classes.
        origin: where it came from, for people: JSON such as run id and test accuracy.

    Returns:
        The sha256 of the file, 64 hexadecimal digits.

    Raises:
        ExtractorError: if the file cannot be written.
    """
    path = Path(path)
    # safetensors takes the memory as it lies there, whatever the order of the axes.
    arrays = {
        name: np.asarray(leaf, order="C")
        for name, leaf in flatten(jax.device_get(variables)).items()
    }
    described = {
        "network": name,
        "mean": list(mean),
        "std": list(std),
        "image": list(image),
        "classes": classes,
        "origin": dict(origin),
    }
    # In one entry: safetensors writes several in any order.
    content = save(arrays, metadata={HEADER: json.dumps(described, sort_keys=True)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, content)
    except OSError as error:
        raise ExtractorError(f"cannot write {path}: {error.strerror}") from error
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Extractor:
    """A classifier to judge generators by: its features are what goes into its last layer.

    Attributes:
        name: of the network, as saved; metrics are called ``fd_<name>``.
        model: the network; its last layer is called ``head``, as in all of ``models``.
        path: a file of ``save_extractor``; a relative one is below the root of this project,
            wherever it is run from.
        sha256: of the file, so that a run says which weights judged it; None takes any.
        batch: images in one call of the network.
    """

    name: str
    model: nn.Module
    path: str
    sha256: str | None = None
    batch: int = 500

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ExtractorError(f"an extractor's batch is at least 1, got {self.batch}")

    def load(self) -> Extract:
        """Reads the file and checks it.

        Returns:
            A function from images, uint8 or floats in [0, 1], to features and probabilities in
            float32. All calls of the network are of one shape: what an image gives does not depend
            on how many there are. It raises ExtractorError for other images.

        Raises:
            ExtractorError: if the file is missing, damaged, no safetensors file, not the one with
                this sha256, or of another network.
        """
        variables, network, image = self.open()
        run = jit_here(network)
        shape = jax.ShapeDtypeStruct((self.batch, *image), jnp.float32)
        jax.eval_shape(run, variables, shape)  # a network without a head is told now

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

    def open(self) -> tuple[PyTree, Network, tuple[int, ...]]:
        """Reads the file and checks it, for use within a traced function.

        Returns:
            The variables; ``(variables, images in [0, 1]) -> (features, probabilities)``; height,
            width and channels of the images.

        Raises:
            ExtractorError: as ``load``.
        """
        arrays, described = self._read()
        image = tuple(described["image"])
        self._check(arrays, image)
        mean, std = described["mean"], described["std"]

        def network(variables: PyTree, images: Array) -> tuple[Array, Array]:
            images = normalize({"image": images}, mean, std)["image"]
            features, logits = _features(self.model, variables, images)
            return features.astype(jnp.float32), jax.nn.softmax(logits.astype(jnp.float32))

        return jax.device_put(unflatten(arrays)), network, image

    def _read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays by path, and what they were saved with."""
        path = ROOT / self.path
        again = f"make it of a trained classifier with `opsin extractor RUN {path}`"
        if not path.is_file():
            raise ExtractorError(f"there is no {path}: {again}")
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                header = (file.metadata() or {}).get(HEADER, "null")
        except OSError as error:
            raise ExtractorError(f"cannot read {path}: {error.strerror}") from error
        except SafetensorError as error:
            raise ExtractorError(
                f"{path} is damaged, or no safetensors file ({error}): {again}"
            ) from error
        if self.sha256 not in (None, found):
            raise ExtractorError(
                f"{path} has sha256 {found}, not {self.sha256}: these are other weights, by which "
                "results do not compare; restore that file, or set sha256 to go by this one"
            )
        described = json.loads(header)
        if described is None:
            raise ExtractorError(f"{path} does not say what network it holds: {again}")
        if described["network"] != self.name:
            raise ExtractorError(
                f"{path} holds {described['network']!r}, not {self.name!r}: give its path and model"
            )
        return arrays, described

    def _check(self, arrays: Mapping[str, np.ndarray], image: tuple[int, ...]) -> None:
        """Raises ExtractorError unless these are the variables of the model."""
        images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
        try:
            expected = flatten(jax.eval_shape(self.model.init, jax.random.key(0), images))
        except ValueError as error:
            raise ExtractorError(f"{self.path} is of another network: {error}") from error
        for name in sorted(arrays.keys() | expected.keys()):
            there, here = (_kind(leaves.get(name)) for leaves in (arrays, expected))
            if there != here:
                raise ExtractorError(
                    f"{self.path} is of another network: {name} is {there} there and {here} in "
                    f"{type(self.model).__name__}; give the model that was saved"
                )


def _features(model: nn.Module, variables: PyTree, images: Array) -> tuple[Array, Array]:
    """What goes into the layer called ``head`` [images, features], and the logits."""
    seen = []

    def watch(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.path == ("head",) and context.method_name == "__call__":
            seen.append(args[0])
        return method(*args, **kwargs)

    with nn.intercept_methods(watch):
        logits = cast(Array, model.apply(variables, images, train=False))
    if len(seen) != 1 or seen[0].ndim != 2:
        raise ExtractorError(f"{type(model).__name__} has no linear layer called head at its end")
    return seen[0], logits


def _kind(leaf: Any) -> str:
    return "absent" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _check_images(images: np.ndarray, image: tuple[int, ...]) -> None:
    if images.shape[1:] != image or not len(images):
        raise ExtractorError(
            f"the extractor takes images [n, {', '.join(map(str, image))}], got "
            f"{list(images.shape)}: it was trained on that size"
        )
    if images.dtype == np.uint8:
        return
    # Written so that a NaN fails.
    if not (jnp.issubdtype(images.dtype, jnp.floating) and images.min() >= 0 and images.max() <= 1):
        raise ExtractorError("the extractor takes images of type uint8, or floats in [0, 1]")
