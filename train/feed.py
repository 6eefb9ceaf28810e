"""Training images on their way to the device: from memory that lives there, or streamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from data import pipeline
from data.examples import Examples, fits_in_memory, materialize
from train.sharding import batch_sharding, global_batch, on_all_devices
from train.tasks.task import Batch


class Feed:
    """Items for the program's ``fetch``, in an order that the seed and the position alone decide.

    A set that fits lives on the device whole, and an item is a row of indices; otherwise an item
    is the batch itself. The order is the same.

    Args:
        examples: the training set.
        batch: size of the global batch.
        seed: of the order.
        resident_megabytes: a set up to this size lives on the device.
        share: which part of a batch that is streamed this process reads, of how many; see
            ``train.sharding.process_share``. Indices of a resident set it has all.

    Attributes:
        batch: shapes of one global batch.
        examples: the number of training images.
        fetch: ``(store, item) -> batch``, for the device.
        resident: whether the set lives on the device.
    """

    def __init__(
        self,
        examples: Examples,
        batch: int,
        seed: int,
        resident_megabytes: int,
        share: tuple[int, int] = (0, 1),
    ):
        self.examples = len(examples.records)
        self.resident = fits_in_memory(examples, resident_megabytes * 2**20)
        self.fetch: Callable[[PyTree, PyTree], Batch] = _rows if self.resident else _itself
        self._size = batch
        if self.resident:
            self._arrays = materialize(examples)
            self._items = pipeline.train_indices(self.examples, batch=batch, seed=seed)
        else:
            self._arrays = {}
            index, count = share
            self._items = pipeline.train_batches(
                examples, batch=batch, seed=seed, process_index=index, process_count=count
            )
        self.batch = {
            name: jax.ShapeDtypeStruct((batch, *np.shape(value)), np.asarray(value).dtype)
            for name, value in examples.records[0].items()
        }

    def store(self, mesh: Mesh) -> PyTree:
        """The resident arrays, on every device of the mesh."""
        return on_all_devices(self._arrays, mesh)

    def take(self, count: int, length: int, mesh: Mesh) -> PyTree:
        """The next ``count`` items along a leading axis of ``length``, on the device."""
        items = [next(self._items) for _ in range(count)]
        items += [items[-1]] * (length - count)  # never used: they keep the shape
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *items)
        return global_batch(stacked, mesh, self._size, leading=1)

    def batch_on_host(self) -> Batch:
        """The next batch itself, as NumPy arrays: for people to look at."""
        return self.fetch(self._arrays, next(self._items))

    def abstract_items(self, length: int, mesh: Mesh) -> PyTree:
        """Shapes and shardings of what ``take`` returns."""
        sharding = batch_sharding(mesh, leading=1)
        rows = next(iter(self.batch.values())).shape[0]
        item = jax.ShapeDtypeStruct((rows,), np.int32) if self.resident else self.batch
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((length, *x.shape), x.dtype, sharding=sharding), item
        )

    def description(self) -> dict[str, Any]:
        """The number of examples, and shape and type of each array of one, as JSON."""
        arrays = {name: [list(x.shape[1:]), x.dtype.name] for name, x in self.batch.items()}
        return {"examples": self.examples, "arrays": arrays}

    def position(self) -> dict[str, Any]:
        """Where the order stands, as JSON."""
        return self._items.get_state()

    def seek(self, position: dict[str, Any]) -> None:
        """Goes to where ``position`` was read."""
        self._items.set_state(position)


def _rows(store: PyTree, item: PyTree) -> Batch:
    return jax.tree.map(lambda array: array[item], store)


def _itself(store: PyTree, item: PyTree) -> Batch:
    return item
