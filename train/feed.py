"""Training images for the devices: resident in their memory, or streamed from the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from opsin.data import pipeline
from opsin.data.augment import Batch
from opsin.data.examples import DataError, Examples, fits_in_memory, materialize, stack
from opsin.train.experiment import Experiment
from opsin.train.placement import global_batch, on_all_devices, process_share
from opsin.train.sharding import batch_sharding, replicated


@dataclass(frozen=True)
class FeedSpec:
    """What a program has to know about its training images: number, shapes and devices.

    Attributes:
        batch: shapes of one global batch, as it comes from the source.
        examples: the number of training images.
        resident: whether the whole set lives on the devices, and an item of the feed is a row of
            indices; otherwise an item is the batch itself.
    """

    mesh: Mesh
    batch: Mapping[str, jax.ShapeDtypeStruct]
    examples: int
    resident: bool = False

    @classmethod
    def of(cls, mesh: Mesh, examples: Examples, batch: int, resident_megabytes: int) -> FeedSpec:
        """The specification of a training set in batches; reads one image.

        Raises:
            DataError: if the set or the batch is empty.
        """
        if len(examples.records) == 0:
            raise DataError("this split has no examples; choose another one")
        if batch < 1:
            raise DataError(f"batch={batch}; use at least 1")
        shapes = {
            name: jax.ShapeDtypeStruct((batch, *value.shape[1:]), value.dtype)
            for name, value in stack(examples.records, [0]).items()
        }
        resident = fits_in_memory(examples, resident_megabytes * 2**20)
        return cls(mesh, shapes, len(examples.records), resident)

    @property
    def batch_size(self) -> int:
        """Images in a global batch."""
        return next(iter(self.batch.values())).shape[0]

    @property
    def steps_per_epoch(self) -> Fraction:
        """Training images over the batch, exact."""
        return Fraction(self.examples, self.batch_size)

    def fetch(self, store: PyTree, item: PyTree) -> Batch:
        """The batch of an item, on the device."""
        return jax.tree.map(lambda array: array[item], store) if self.resident else item

    def store(self) -> PyTree:
        """Shapes and shardings of what lives on the devices."""
        whole = replicated(self.mesh)
        return {
            name: jax.ShapeDtypeStruct((self.examples, *x.shape[1:]), x.dtype, sharding=whole)
            for name, x in (self.batch.items() if self.resident else ())
        }

    def items(self, length: int) -> PyTree:
        """Shapes and shardings of ``length`` items, as ``Feed.take`` gives them."""
        item = jax.ShapeDtypeStruct((self.batch_size,), np.int32) if self.resident else self.batch
        sharding = batch_sharding(self.mesh, leading=1)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((length, *x.shape), x.dtype, sharding=sharding), item
        )


class Feed:
    """Items for ``FeedSpec.fetch``, in an order that depends on seed and position alone.

    The order is the same whether the set is resident or streamed. Of a streamed batch each process
    reads its ``train.placement.process_share``; of a resident set it has all indices.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, examples: Examples):
        data, task = experiment.data, experiment.task
        self.spec = FeedSpec.of(mesh, examples, data.batch, data.resident_megabytes)
        order: Any = {"batch": data.batch, "seed": experiment.seed, "distinct": task.distinct_rows}
        order["passes"] = getattr(examples.records, "passes", 1)
        part, parts = process_share(mesh)
        if self.spec.resident:
            self._arrays = materialize(examples)
            self._items = pipeline.train_indices(self.spec.examples, **order)
        else:
            self._arrays = {}
            self._items = pipeline.train_batches(
                examples, **order, process_index=part, process_count=parts
            )

    def store(self) -> PyTree:
        """The resident arrays, on every device."""
        return on_all_devices(self._arrays, self.spec.mesh)

    def take(self, count: int, length: int) -> PyTree:
        """The next ``count`` items along a leading axis of ``length``, on the devices."""
        items = [next(self._items) for _ in range(count)]
        items += [items[-1]] * (length - count)  # never used: they keep the shape
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *items)
        return global_batch(stacked, self.spec.mesh, self.spec.batch_size, leading=1)

    def batch_on_host(self) -> Batch:
        """The next batch as NumPy arrays, to be looked at."""
        return self.spec.fetch(self._arrays, next(self._items))

    def description(self) -> dict[str, Any]:
        """The number of examples, and shape and type of each array of one, as JSON."""
        arrays = {name: [list(x.shape[1:]), x.dtype.name] for name, x in self.spec.batch.items()}
        return {"examples": self.spec.examples, "arrays": arrays}

    def position(self) -> dict[str, Any]:
        """The position in the order, as JSON."""
        return self._items.get_state()

    def seek(self, position: dict[str, Any]) -> None:
        """Resumes the order at a position that was read before."""
        self._items.set_state(position)
