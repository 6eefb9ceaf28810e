"""The training loop: one for every task, every strategy and any number of devices."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from data import pipeline
from data.examples import (
    Examples,
    check_same_data,
    fits_in_memory,
    labels,
    materialize,
    stack,
)
from data.selection import select
from data.sources import open_source
from metrics.classification import ConfusionMatrix
from metrics.latent import ClassUsage, CodeUsage
from metrics.state import Metric, compute_all, to_host
from train import figures
from train.accounting import measured_work, median_rates
from train.checkpoint import Checkpoints
from train.durations import Every, in_steps
from train.experiment import Data, Experiment
from train.feed import Feed
from train.logging import Console, JsonLines, MetricsLog, NonFiniteError, Writer, read_lines
from train.memory import is_untuned, set_holes_aside
from train.processes import Agreement, is_first
from train.profiling import Profiler, Steps
from train.program import Program, augmented, build, prepared
from train.sharding import (
    batch_shards,
    global_batch,
    make_mesh,
    on_own_devices,
    process_share,
)
from train.startup import StartUp, record_speed
from train.state import State
from train.tasks.task import Batch, Concluding, Foreseeing, Item, Prepare, Watching

# The disk is full, over quota or read-only; or the file is too large, or not ours.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)


@dataclass(frozen=True)
class Result:
    """How a call of ``fit`` ended.

    Attributes:
        finished: False if it was asked to stop before the last step.
        step: steps taken in all, earlier calls included.
        metrics: final ``split/metric`` numbers, with ``seconds``, ``steps``, ``parameters``,
            ``model_flops_per_step`` and the median speed (see ``train.accounting.Work.rates``);
            empty in processes that do not write.
    """

    finished: bool
    step: int
    metrics: dict[str, float]


def fit(
    experiment: Experiment,
    directory: Path,
    *,
    config: dict[str, Any],
    stop: Callable[[], bool] = lambda: False,
    writers: Sequence[Writer] = (),
    progress: bool = True,
    began: float | None = None,
    profile: Steps | None = None,
) -> Result:
    """Trains an experiment, or goes on with it from its newest checkpoint.

    Several processes call it alike. The first of them writes all but the arrays of checkpoints, of
    which each writes its own, and the directory is one that all of them see.

    Args:
        experiment: what to run.
        directory: of the run; checkpoints, ``metrics.jsonl``, ``speed.json`` and pictures go
            there.
        config: the resolved experiment, kept in the checkpoints and compared on restoring.
        stop: asked after each dispatch; when True in any process, the state is saved and ``fit``
            returns in all.
        writers: more places for the metrics.
        progress: whether to show a bar.
        began: ``time.monotonic()`` of the command, if its start-up is to be measured as well.
        profile: steps to trace.

    Raises:
        DataError, DeviceError, DurationError, SettingError: the experiment asks for what cannot be.
        CheckpointError: a checkpoint cannot be read.
        SaveError: the disk is full, or cannot be written for another reason.
        NonFiniteError: a term of the loss is not finite.
    """
    data, loop, length = experiment.data, experiment.loop, experiment.loop.steps_per_dispatch
    clock, task, writes = StartUp(began), experiment.task, is_first()
    examples = open_training(experiment)
    held_out = {name: _open_held_out(experiment, split) for name, split in data.eval_splits.items()}
    sets = {"train": examples} | {name: source for name, (source, _) in held_out.items()}
    task.check(examples.class_names, partial(_look, sets, data))
    for final in task.final if isinstance(task, Concluding) else ():
        if isinstance(final, Foreseeing):
            final.check(task, sets)
    share = process_share(make_mesh(experiment.parallel))
    feed = Feed(examples, data.batch, experiment.seed, data.resident_megabytes, share)
    steps_per_epoch = Fraction(feed.examples, data.batch)
    described = feed.description() | {
        "class_names": list(examples.class_names),
        "resized": examples.resized,
    }
    clock.lap("data")
    program = build(experiment, feed.batch, steps_per_epoch, feed.fetch)
    log_at, evaluate_at, save_at = (
        Every(f"loop.{name}", in_steps(getattr(loop, name), steps_per_epoch), program.steps)
        for name in ("log_every", "evaluate_every", "checkpoint_every")
    )
    store = feed.store(program.mesh)
    shapes = feed.abstract_items(length, program.mesh)
    flops = program.flops(store, shapes)
    clock.lap("tracing")
    work = measured_work(data.batch, flops, program.mesh.size)
    clock.lap("peak")
    trained_since = time.monotonic()
    with Checkpoints(directory / "checkpoints") as checkpoints:
        window = None
        if checkpoints.latest() is None:
            state = program.init()
        else:
            state, metadata = checkpoints.restore(program.state, config)
            check_same_data(metadata.get("data", {}), described)
            feed.seek(metadata["position"])
            window = metadata["window"]
            trained_since -= metadata["seconds"]
        step = int(state.step)
        clock.lap("state")
        profiler = Profiler(profile, directory / "profile", done=step, total=program.steps)
        lines = JsonLines(directory / "metrics.jsonl", step) if writes else None
        console = Console(program.steps, step, progress and writes)
        log = MetricsLog([*([lines] if lines else []), console, *writers], work, window)
        agreed = Agreement(program.mesh)
        on_cpu = program.mesh.devices.flat[0].platform == "cpu"
        settle = set_holes_aside if on_cpu and is_untuned() else lambda: 0
        evaluated = False
        try:
            dispatch = program.compile(store, shapes)
            clock.lap("compilation")
            log.start_clock()
            while step < program.steps:
                count = min(length, *(at.next(step) - step for at in (evaluate_at, save_at)))
                items = feed.take(count, length, program.mesh)
                profiler.before(step, count, state)
                state, metrics = dispatch(state, store, items, np.int32(count))
                step += count
                profiler.after(step, state)
                if clock.finish(state):
                    settle()
                    if writes:
                        record_speed(directory / "speed.json", clock, work)
                        console.say(clock.line())
                stopping = agreed(stop())
                evaluating, saving = evaluate_at(step), save_at(step) or stopping
                log.push(step, count, metrics, flush=log_at.within(step, count))
                if evaluating or saving:
                    log.drain()
                for name, (source, arrays) in held_out.items() if evaluating else ():
                    states = evaluate(program, state, arrays, data.eval_batch, name)
                    numbers = _numbers(states)
                    log.write(step, numbers)
                    for line in task.watch(numbers) if isinstance(task, Watching) else ():
                        console.say(f"step {step}: {line}")
                        if lines:
                            lines.note(step, line)
                    _draw(program, state, source, states, directory, name, loop.previews)
                if evaluating and not evaluated:  # which compiled it
                    settle()
                    evaluated = True
                if saving:
                    now = {"position": feed.position(), "window": log.window()}
                    now["seconds"] = time.monotonic() - trained_since
                    checkpoints.save(state, {"config": config, "data": described, **now})
                if evaluating or saving:
                    log.start_clock()
                if stopping and step < program.steps:
                    return Result(False, step, {})
            checkpoints.wait()
            if isinstance(task, Concluding) and task.final:
                prepare = partial(prepared, data=data)
                numbers = _conclude(
                    task, state, program.mesh, sets, prepare, console, lambda: agreed(stop())
                )
                log.write(step, numbers)
            if writes:
                curve = figures.training_curve(directory / "metrics.jsonl")
                figures.save(curve, directory / "curve.png")
        except _Stopped:
            return Result(False, step, {})
        except NonFiniteError as error:
            checkpoints.wait()
            good = checkpoints.latest()
            kept = "there is no checkpoint before it" if good is None else f"step {good} is saved"
            raise NonFiniteError(f"{error}; {kept} in {checkpoints.directory}") from None
        except OSError as error:  # a full disk shows first wherever it is written to first
            if error.errno not in UNWRITABLE:
                raise
            raise checkpoints.save_error(error) from error
        finally:
            profiler.close()
            log.close()
    if not writes:
        return Result(True, step, {})
    final = last_evaluation(directory / "metrics.jsonl") | {
        "steps": step,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "model_flops_per_step": work.flops,
        "seconds": time.monotonic() - trained_since,
    }
    return Result(True, step, final | median_rates(read_lines(directory / "metrics.jsonl")))


def open_training(experiment: Experiment) -> Examples:
    """The training images, narrowed by ``data.select``, which also draws by the run's seed."""
    data = experiment.data
    examples = open_source(data.source, data.train_split)
    if data.select is None:
        return examples
    return select(examples, data.select(labels(examples), seed=experiment.seed))


def evaluate(
    program: Program,
    state: State,
    examples: Examples | dict[str, np.ndarray],
    batch: int,
    split: str,
) -> dict[str, dict[str, Metric]]:
    """Metric states over a whole set: ``split`` → states, and ``split_ema`` for the moving average.

    States are added on the host in 64 bits, so that neither padding nor batch size shows in them:
    the batch is rounded up to what the devices can share.
    """
    shards = batch_shards(program.mesh)
    batch = -(-batch // shards) * shards
    variables = {split + average: values for average, values in _variables(state).items()}
    pending: dict[str, list[dict[str, Metric]]] = {name: [] for name in variables}
    part, parts = process_share(program.mesh)
    batches = pipeline.eval_batches(examples, batch=batch, process_index=part, process_count=parts)
    for index, host in enumerate(batches):
        device = global_batch(host, program.mesh, batch)
        for name, (params, mutable) in variables.items():
            states = program.evaluate(params, mutable, device, np.int32(index))
            # Added up one batch late: the device is busy meanwhile, and holds no more than two.
            pending[name] = [_merged(pending[name]), states] if index else [states]
    return {name: _merged(states) for name, states in pending.items()}


def _variables(state: State) -> dict[str, tuple[PyTree, PyTree]]:
    """Parameters and mutable variables: the raw ones as "", their moving average as "_ema"."""
    variables = {"": (state.params, state.mutable)}
    if state.ema is not None:
        variables["_ema"] = (state.ema["params"], state.ema["mutable"])
    return variables


def _chosen(state: State) -> tuple[str, tuple[PyTree, PyTree]]:
    """The variables that `opsin predict` and `sample` take: the average, if there is one."""
    return list(_variables(state).items())[-1]


class _Stopped(Exception):
    """Raised where work after the last step is to stop; it begins anew when the run goes on."""


def _conclude(
    task: Concluding,
    state: State,
    mesh: Mesh,
    sets: Mapping[str, Examples],
    prepare: Prepare,
    console: Console,
    stop: Callable[[], bool],
) -> dict[str, float]:
    """What is measured after the last step, as ``split/metric`` numbers.

    Each process measures the same, on its own devices.
    """

    def track(items: Iterable[Item], what: str) -> Iterator[Item]:
        for item in console.track(items, what):
            if stop():
                raise _Stopped
            yield item

    average, variables = _chosen(state)
    params, mutable = on_own_devices(variables, mesh)
    numbers = {}
    for final in task.final:
        for name, value in final(task, params, mutable, sets, prepare, track).items():
            split, _, metric = name.partition("/")
            numbers[f"{split}{average}/{metric}"] = value
    return numbers


def _look(sets: Mapping[str, Examples], data: Data) -> dict[str, Batch]:
    """A few examples of each set as the model would see them."""
    few: dict[str, Batch] = {
        name: jax.device_put(stack(x.records, range(min(16, len(x.records)))))
        for name, x in sets.items()
    }
    return {
        name: augmented(jax.random.key(0), batch, data=data)
        if name == "train"
        else prepared(batch, data=data)
        for name, batch in few.items()
    }


def _merged(states: list[dict[str, Metric]]) -> dict[str, Metric]:
    """Sums states on the host."""
    on_host = [{name: to_host(metric) for name, metric in state.items()} for state in states]
    return jax.tree.map(lambda *leaves: sum(leaves), *on_host)


def _numbers(evaluated: dict[str, dict[str, Metric]]) -> dict[str, float]:
    """Flat ``split/metric`` numbers; what a metric breaks down into (``f1_macro``) comes last."""
    numbers = {
        f"{split}/{name}": (name not in states, value)
        for split, states in evaluated.items()
        for name, value in compute_all(states).items()
    }
    ordered = sorted(numbers.items(), key=lambda item: item[1][0])
    return {name: value for name, (_, value) in ordered}


def _draw(
    program: Program,
    state: State,
    examples: Examples,
    evaluated: dict[str, dict[str, Metric]],
    directory: Path,
    split: str,
    count: int,
) -> None:
    """Writes pictures of counts, and the task's previews of the first images of a split."""
    _, variables = _chosen(state)
    params, mutable = on_own_devices(variables, program.mesh) if count else variables
    if not is_first():
        return
    title = f"{split}, step {int(state.step)}"
    for name, metric in evaluated[split].items():
        if isinstance(metric, ConfusionMatrix):
            counts = np.asarray(metric.counts)
            figure = figures.confusion_matrix(counts, examples.class_names, title)
        elif isinstance(metric, CodeUsage):
            what = "class" if isinstance(metric, ClassUsage) else "code"
            figure = figures.usage(np.asarray(metric.counts), what, title)
        else:
            continue
        figures.save(figure, directory / f"{name}_{split}.png")
    if count == 0:
        return
    first = select(examples, np.arange(min(count, len(examples.records))))
    batch = jax.device_put(next(pipeline.eval_batches(first, batch=len(first.records))))
    for name, preview in program.preview(params, mutable, batch).items():
        figure = figures.preview(preview, examples.class_names, title)
        figures.save(figure, directory / "previews" / f"{split}_{name}.png")


def _open_held_out(
    experiment: Experiment, split: str
) -> tuple[Examples, Examples | dict[str, np.ndarray]]:
    """A split to evaluate on: as it is opened, and its images in memory if they fit."""
    data = experiment.data
    examples = open_source(data.source, split)
    fits = fits_in_memory(examples, data.resident_megabytes * 2**20)
    return examples, materialize(examples) if fits else examples


def last_evaluation(metrics: Path) -> dict[str, float]:
    """The last value of every number that is not of training; NaN where it was none."""
    last: dict[str, float] = {}
    for line in read_lines(metrics):
        last |= {name: math.nan if x is None else x for name, x in line.items()}
    return {n: x for n, x in last.items() if "/" in n and not n.startswith("train/")}
