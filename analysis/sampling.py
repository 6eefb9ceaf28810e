"""Images from a generative model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from opsin.ops.keys import keys_at
from opsin.ranges import Seed
from opsin.train.compiler import jit_here
from opsin.train.measurements import Track
from opsin.train.placement import put_with
from opsin.train.settings import SettingError
from opsin.train.tasks.generative import Generative

CHUNK = 128  # images in one call: the same program, and the same bits, for any number of them


def check_labels(task: Generative, labels: Int[np.ndarray, " count"] | None) -> None:
    """Raises SettingError for labels that a model does not take, or that it does not know."""
    classes = task.num_classes
    if classes is None and labels is not None:
        raise SettingError("the model was trained without classes: give no class")
    if classes is not None and labels is None:
        raise SettingError(f"the model needs a class: give one of 0 to {classes - 1}")
    if labels is not None and not (labels.min() >= 0 and labels.max() < (classes or 0)):
        wrong = labels[(labels < 0) | (labels >= (classes or 0))][0]
        raise SettingError(f"class {wrong} is not one of 0 to {(classes or 0) - 1}")


def untracked(items: Iterable[Any], what: str) -> Iterable[Any]:
    """Shows nothing."""
    return items


def sample_images(
    task: Generative,
    params: PyTree,
    mutable: PyTree,
    count: int,
    *,
    seed: Seed = 0,
    labels: Int[np.ndarray, " count"] | None = None,
    track: Track = untracked,
) -> Float[np.ndarray, "count height width channels"]:
    """Images in [0, 1]. Image i depends on the seed, its label and i, and on nothing else.

    It is the same bits for any count, and to float32 rounding on any number of devices.

    Args:
        task: of the run.
        params: of its model.
        mutable: the other variables of its model.
        count: number of images.
        seed: of all images.
        labels: the class of each, for a class-conditional model.
        track: shows how far it has come.

    Raises:
        SettingError: if the model needs labels and has none, takes none, or does not know them.
    """
    check_labels(task, labels)

    @jit_here
    def some(params: PyTree, mutable: PyTree, indices: Array, labels: Array | None) -> Array:
        keys = keys_at(jax.random.key(seed), indices)
        return jnp.clip(task.sample(params, mutable, keys, labels), 0, 1)

    chunks = []
    for start in track(range(0, count, CHUNK), f"{count} samples"):
        indices = np.arange(start, start + CHUNK, dtype=np.int32)
        asked = None if labels is None else labels[np.minimum(indices, count - 1)].astype(np.int32)
        made = some(params, mutable, *put_with(params, (indices, asked)))
        chunks.append(np.asarray(made, np.float32))
    return np.concatenate(chunks)[:count]
