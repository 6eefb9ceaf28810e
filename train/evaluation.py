"""What a model is worth on whole sets: sums over batches, exact under padding and any devices."""

from __future__ import annotations

import numpy as np
from jaxtyping import PyTree

from data import pipeline
from data.examples import Examples
from metrics.state import Metric, compute_all, merge_all
from train.program import Program
from train.sharding import batch_shards, global_batch, process_share
from train.state import State


def evaluate(
    program: Program,
    state: State,
    examples: Examples | dict[str, np.ndarray],
    batch: int,
    split: str,
) -> dict[str, dict[str, Metric]]:
    """Metric states over a whole set: ``split`` → states, and ``split_ema`` for the moving average.

    States are merged on the host, sums in 64 bits, so that neither padding nor batch size shows in
    them: the batch is rounded up to what the devices can share.
    """
    shards = batch_shards(program.mesh)
    batch = -(-batch // shards) * shards
    variables = {split + average: values for average, values in variables_of(state).items()}
    pending: dict[str, list[dict[str, Metric]]] = {name: [] for name in variables}
    part, parts = process_share(program.mesh)
    batches = pipeline.eval_batches(examples, batch=batch, process_index=part, process_count=parts)
    for index, host in enumerate(batches):
        device = global_batch(host, program.mesh, batch)
        for name, (params, mutable) in variables.items():
            states = program.evaluate(params, mutable, device, np.int32(index))
            # Added up one batch late: the device is busy meanwhile, and holds no more than two.
            pending[name] = [merge_all(pending[name]), states] if index else [states]
    return {name: merge_all(states) for name, states in pending.items()}


def variables_of(state: State) -> dict[str, tuple[PyTree, PyTree]]:
    """Parameters and mutable variables: the raw ones as "", their moving average as "_ema"."""
    variables = {"": (state.params, state.mutable)}
    if state.ema is not None:
        variables["_ema"] = (state.ema["params"], state.ema["mutable"])
    return variables


def chosen(state: State) -> tuple[str, tuple[PyTree, PyTree]]:
    """The variables that `opsin predict` and `sample` take: the average, if there is one."""
    return list(variables_of(state).items())[-1]


def numbers_of(evaluated: dict[str, dict[str, Metric]]) -> dict[str, float]:
    """Flat ``split/metric`` numbers; what a metric breaks down into (``f1_macro``) comes last."""
    numbers = {
        f"{split}/{name}": (name not in states, value)
        for split, states in evaluated.items()
        for name, value in compute_all(states).items()
    }
    ordered = sorted(numbers.items(), key=lambda item: item[1][0])
    return {name: value for name, (_, value) in ordered}
