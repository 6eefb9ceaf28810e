"""The outputs of a trained network for a whole set, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from opsin.data.pipeline import eval_batches
from opsin.train.compiler import jit_here
from opsin.train.measurements import Subject
from opsin.train.placement import put_with


def over_batches(
    compute: Callable[..., Any],
    subject: Subject[Any],
    arrays: Mapping[str, np.ndarray],
    *,
    batch: int,
    what: str,
) -> Any:
    """The results of ``compute`` for every image of a set.

    Args:
        compute: ``(params, mutable, batch, indices)`` → arrays [batch, …]; ``indices`` int32
            [batch] are places in the set, so that what is drawn for an image does not depend on
            the size of a batch. It is compiled here.
        subject: whose variables are given to it, on the devices that are to share each batch.
        arrays: the set, [images, …] each.
        batch: images that are in memory together.
        what: the name of its progress bar.

    Returns:
        The arrays of ``compute`` with as many images as the set, on the host.

    Raises:
        DataError: if the set is empty or cannot be read, or a batch is below 1.
    """
    compiled, count = jit_here(compute), len(next(iter(arrays.values())))
    parts, batches = [], eval_batches(arrays, batch=batch)
    starts = subject.track(range(0, count, batch), what)
    for start, images in zip(starts, batches, strict=True):
        indices = np.arange(start, start + batch, dtype=np.int32)
        shared = put_with(subject.variables[0], (images, indices))
        parts.append(jax.device_get(compiled(*subject.variables, *shared)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
