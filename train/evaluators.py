"""The programs of a run that change no weight: evaluation and previews."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from opsin.metrics.state import Metric
from opsin.ops.keys import row_keys
from opsin.pictures.kinds import Picture
from opsin.train.checks import traced
from opsin.train.experiment import Experiment
from opsin.train.preparation import prepared, unnormalized
from opsin.train.sharding import Layout, replicated
from opsin.train.tasks.task import Batch

Evaluate = Callable[[PyTree, PyTree, Batch, Any], dict[str, Metric]]
"""``(params, mutable, batch, place of its first example in the set) -> metric states``."""

Preview = Callable[[PyTree, PyTree, Batch], Mapping[str, Picture]]
"""``(params, mutable, batch) -> {name: Picture}``."""


def evaluators(
    experiment: Experiment, layout: Layout, mesh: Mesh, options: dict[str, Any]
) -> tuple[Evaluate, Preview]:
    """Both programs, compiled with XLA's ``options`` for each shape of a batch that comes."""
    task, data = experiment.task, experiment.data

    @partial(jax.jit, out_shardings=replicated(mesh), compiler_options=options)
    def evaluate(params: PyTree, mutable: PyTree, batch: Batch, first: Array) -> dict[str, Metric]:
        # The same draws for an example every time, whatever batch and devices it meets.
        keys = row_keys(jax.random.key(0), len(batch["valid"]), first=first)
        with traced("the evaluation"), layout.activations(batch):
            return task.evaluate(params, mutable, prepared(batch, data=data), keys)

    @partial(jax.jit, compiler_options=options)
    def preview(params: PyTree, mutable: PyTree, batch: Batch) -> Mapping[str, Picture]:
        pictures = task.preview(params, mutable, prepared(batch, data=data), jax.random.key(0))
        return {name: unnormalized(picture, data) for name, picture in pictures.items()}

    return evaluate, preview
