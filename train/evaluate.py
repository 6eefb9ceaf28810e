"""Evaluation of a state: metric states over whole sets, charts and previews."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from opsin.data import pipeline
from opsin.data.enclosure import component
from opsin.data.examples import Examples, stack
from opsin.metrics.state import Merging, Metric, compute_all
from opsin.pictures import figures
from opsin.train.best import choosing_split
from opsin.train.experiment import Data, Experiment
from opsin.train.feed import FeedSpec
from opsin.train.host.capacity import check_images
from opsin.train.host.processes import is_first
from opsin.train.logging import Console, MetricsLog
from opsin.train.placement import global_batch, on_all_devices, on_own_devices, process_share
from opsin.train.program import Program
from opsin.train.sets import Sets
from opsin.train.settings import SettingError
from opsin.train.sharding import batch_shards
from opsin.train.state import State


def evaluate_sets(
    experiment: Experiment,
    program: Program,
    state: State,
    sets: Sets,
    directory: Path,
    log: MetricsLog | Console,
    *,
    ended: bool = False,
) -> dict[str, float]:
    """Metrics, diagnoses and pictures of every set that is evaluated; gives the metrics.

    Where a split chooses the best state, that split alone until training has ``ended``. Then the
    numbers go into ``summary.json`` alone: in a log they would be a second line of their step.
    """
    keep_best, found = experiment.loop.keep_best, {}
    for name, images in sets.in_memory.items():
        if keep_best and not ended and name != choosing_split(keep_best):
            continue
        states = evaluate(program, state, images, experiment.data.eval_batch, name)
        numbers = numbers_of(states)
        log.write(int(state.step), numbers)
        for line in experiment.task.diagnose(numbers):
            log.note(int(state.step), line)
        draw(experiment, program, state, sets.all[name], states, directory, name)
        found |= numbers
    return found


def evaluate(
    program: Program,
    state: State,
    examples: Examples | dict[str, np.ndarray],
    batch: int,
    split: str,
) -> dict[str, dict[str, Metric]]:
    """Metric states over a whole set: ``split`` → states, and ``split_ema`` for the moving average.

    The batch is rounded up to what the devices can share. States are merged on the host, sums in 64
    bits, so that neither padding nor batch size shows in what a task computes of each example by
    itself. In what it computes across a batch they do, and its ``evaluate`` says so: the logits of
    a discriminator with batch norm, and ``uniformity``, which is over the pairs of a batch.
    """
    shards = batch_shards(program.mesh)
    batch = -(-batch // shards) * shards
    variables = {split + average: values for average, values in all_variables(state).items()}
    merging = {name: Merging() for name in variables}
    fixed = on_all_devices(program.fixed(), program.mesh)
    part, parts = process_share(program.mesh)
    batches = pipeline.eval_batches(examples, batch=batch, process_index=part, process_count=parts)
    for index, host in enumerate(batches):
        device = global_batch(host, program.mesh, batch)
        for name, (params, mutable) in variables.items():
            given = params, {**mutable, **fixed}, device, np.int32(index * batch)
            merging[name].add(program.evaluate(*given))
    return {name: states.result() for name, states in merging.items()}


def check_shapes(program: Program, examples: Sets, data: Data, trained: FeedSpec) -> None:
    """Looks at each set before anything is trained; traces one of another shape than training's.

    Raises:
        DeviceError: if a batch of it does not fit into memory.
        SettingError: if the network cannot take it.
    """
    params, mutable = program.state.params, {**program.state.mutable, **program.fixed()}
    for name in data.eval_splits:
        found = FeedSpec.of(trained.mesh, examples.all[name], trained.batch_size, 0).batch
        check_images(found, data.eval_batch, batch_shards(trained.mesh), "data.eval_batch")
        if found == trained.batch:
            continue
        valid = jax.ShapeDtypeStruct((trained.batch_size,), np.bool_)
        try:
            jax.eval_shape(program.evaluate, params, mutable, {**found, "valid": valid}, 0)
        except SettingError as error:
            here, there = (list(x["image"].shape[1:]) for x in (found, trained.batch))
            raise SettingError(
                f"images of {name!r} are {here}, those of training {there}: {error}"
            ) from error


def all_variables(state: State) -> dict[str, tuple[PyTree, PyTree]]:
    """Parameters and mutable variables: the raw ones as "", their moving average as "_ema"."""
    variables = {"": (state.params, state.mutable)}
    if state.ema is not None:
        variables["_ema"] = (state.ema["params"], state.ema["mutable"])
    return variables


def final_variables(state: State) -> tuple[str, tuple[PyTree, PyTree]]:
    """The variables that a finished run is used with: the moving average, if there is one."""
    variables = all_variables(state)
    name = "_ema" if "_ema" in variables else ""
    return name, variables[name]


def numbers_of(evaluated: Mapping[str, Mapping[str, Metric]]) -> dict[str, float]:
    """Flat ``split/metric`` numbers; those of a metric with several (``f1_macro``) come last."""
    numbers = {
        f"{split}/{name}": (name not in states, value)
        for split, states in evaluated.items()
        for name, value in compute_all(states).items()
    }
    ordered = sorted(numbers.items(), key=lambda item: item[1][0])
    return {name: value for name, (_, value) in ordered}


def draw(
    experiment: Experiment,
    program: Program,
    state: State,
    examples: Examples,
    evaluated: Mapping[str, Mapping[str, Metric]],
    directory: Path,
    split: str,
) -> None:
    """Writes the task's charts of an evaluation, and its previews of images drawn from a split.

    Args:
        experiment: its task, and how many images a preview has.
        program: of the run.
        state: that was evaluated.
        examples: of the split.
        evaluated: what ``evaluate`` gave.
        directory: of the run.
        split: its name in the log.
    """
    count, (_, variables) = experiment.loop.previews, final_variables(state)
    params, mutable = on_own_devices(variables, program.mesh) if count else variables
    if not is_first():
        return
    title = f"{split}, step {int(state.step)}"
    for name, chart in experiment.task.charts(evaluated[split]).items():
        figure = figures.draw(chart, examples.class_names, title)
        figures.save(figure, directory / component("picture", f"{name}_{split}.png"))
    if count == 0:
        return
    # The first images of a folder have one class, and a task may draw the first of these.
    places = np.random.default_rng(0).permutation(len(examples.records))[:count]
    some = stack(examples.records, places) | {"valid": np.ones(len(places), bool)}
    for name, picture in program.preview(params, mutable, jax.device_put(some)).items():
        figure = figures.draw(picture, examples.class_names, title)
        file = component("picture", f"{split}_{name}.png")
        figures.save(figure, directory / "previews" / file)
