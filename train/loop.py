"""The training loop: one for every task, every strategy and any number of devices."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train import figures
from train.accounting import Work, measured_work, median_rates
from train.checkpoint import Checkpoints
from train.conclusion import Stopped, measure
from train.durations import Every, in_steps
from train.evaluate import evaluate_sets
from train.experiment import Experiment
from train.feed import Feed
from train.logging import (
    Console,
    JsonLines,
    MetricsLog,
    NonFiniteError,
    Writer,
    last_evaluation,
    read_lines,
)
from train.processes import Agreement, is_first
from train.profiling import Profiler, Steps
from train.program import Program, build, prepared
from train.sets import Sets, open_sets
from train.sharding import make_mesh
from train.startup import StartUp, record_speed
from train.state import State
from train.tasks.task import Foreseeing

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
    """Trains an experiment, or resumes it from its newest checkpoint.

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
    with ExitStack() as closing:
        clock = StartUp(began)
        run, state = open_run(
            experiment, directory, config, clock, closing, writers, progress, profile
        )
        with _errors_of(run.checkpoints):
            state, step = train(run, state, stop)
            if step < run.program.steps:
                return Result(False, step, {})
            try:
                return conclude(run, state, stop)
            except Stopped:
                return Result(False, step, {})


@dataclass(frozen=True)
class Run:
    """An experiment that is open: all but its state.

    Attributes:
        config: the resolved experiment, for the checkpoints.
        store: training images that live on the devices.
        work: what a step costs.
        log_at, evaluate_at, save_at: when to do so.
        agreed: whether any process says so.
        since: ``time.monotonic()`` at which training would have begun without a pause.
    """

    experiment: Experiment
    directory: Path
    config: dict[str, Any]
    sets: Sets
    feed: Feed
    store: Any
    program: Program
    work: Work
    log_at: Every
    evaluate_at: Every
    save_at: Every
    checkpoints: Checkpoints
    log: MetricsLog
    console: Console
    profiler: Profiler
    clock: StartUp
    agreed: Agreement
    since: float


def open_run(
    experiment: Experiment,
    directory: Path,
    config: dict[str, Any],
    clock: StartUp,
    closing: ExitStack,
    writers: Sequence[Writer],
    progress: bool,
    profile: Steps | None,
) -> tuple[Run, State]:
    """Opens the data, lays out the program, and makes the first state or restores the newest.

    What has to be closed in the end is left to ``closing``; see ``fit`` for the other arguments.
    """
    data, task = experiment.data, experiment.task
    sets = open_sets(experiment)
    for final in task.final:
        if isinstance(final, Foreseeing):
            final.check(task, sets.all)
    mesh = make_mesh(experiment.parallel)
    feed = Feed(mesh, sets.train, data.batch, experiment.seed, data.resident_megabytes)
    clock.lap("data")
    program = build(experiment, feed.spec)
    epoch = feed.spec.steps_per_epoch
    log_at, evaluate_at, save_at = (
        Every(f"loop.{name}", in_steps(getattr(experiment.loop, name), epoch), program.steps)
        for name in ("log_every", "evaluate_every", "checkpoint_every")
    )
    store, flops = feed.store(), program.flops()
    clock.lap("tracing")
    work = measured_work(data.batch, flops, mesh.size)
    clock.lap("peak")
    checkpoints = closing.enter_context(Checkpoints(directory / "checkpoints"))
    since, window = time.monotonic(), None
    if checkpoints.latest() is None:
        state = program.init()
    else:
        state, metadata = checkpoints.restore(program.state, config)
        feed.seek(metadata["position"])
        window = metadata["window"]
        since -= metadata["seconds"]
    step = int(state.step)
    clock.lap("state")
    profiler = Profiler(profile, directory / "profile", done=step, total=program.steps)
    console = Console(program.steps, step, progress and is_first(), task.progress)
    own = [JsonLines(directory / "metrics.jsonl", step)] if is_first() else []
    log = MetricsLog([*own, console, *writers], work, window)
    closing.callback(log.close)
    closing.callback(profiler.close)
    run = Run(
        experiment, directory, config, sets, feed, store, program, work, log_at, evaluate_at,
        save_at, checkpoints, log, console, profiler, clock, Agreement(mesh), since,
    )  # fmt: skip
    return run, state


def train(run: Run, state: State, stop: Callable[[], bool]) -> tuple[State, int]:
    """THE loop: takes steps until the last one, or until any process is asked to stop.

    Returns:
        The state, and the steps taken in all.
    """
    length, step = run.experiment.loop.steps_per_dispatch, int(state.step)
    dispatch = run.program.compile()
    run.clock.lap("compilation")
    run.log.start_clock()
    while step < run.program.steps:
        count = min(length, run.evaluate_at.next(step) - step, run.save_at.next(step) - step)
        items = run.feed.take(count, length)
        run.profiler.before(step, count, state)
        state, metrics = dispatch(state, run.store, items, np.int32(count))
        step += count
        run.profiler.after(step, state)
        if run.clock.finish(state) and is_first():
            record_speed(run.directory / "speed.json", run.clock, run.work)
            run.console.say(run.clock.line())
        stopping = run.agreed(stop())
        evaluating, saving = run.evaluate_at(step), run.save_at(step) or stopping
        run.log.push(step, count, metrics, flush=run.log_at.within(step, count))
        if evaluating or saving:
            run.log.drain()
        if evaluating:
            evaluate_sets(run.experiment, run.program, state, run.sets, run.directory, run.log)
        if saving:
            save(run, state)
        if evaluating or saving:
            run.log.start_clock()
        if stopping:
            break
    return state, step


def save(run: Run, state: State) -> None:
    """A checkpoint of the state, with all that resuming and ``opsin predict`` need."""
    names, resized = list(run.sets.train.class_names), run.sets.train.resized
    metadata = {
        "config": run.config,
        "data": run.feed.description() | {"class_names": names, "resized": resized},
        "position": run.feed.position(),
        "window": run.log.window(),
        "seconds": time.monotonic() - run.since,
    }
    run.checkpoints.save(state, metadata)


def conclude(run: Run, state: State, stop: Callable[[], bool]) -> Result:
    """Measures what is measured at the end, and sums the run up."""
    run.checkpoints.wait()
    task, steps, metrics = run.experiment.task, run.program.steps, run.directory / "metrics.jsonl"
    if task.final:
        prepare = partial(prepared, data=run.experiment.data)
        numbers = measure(
            task, state, run.program.mesh, run.sets.all, prepare, run.console,
            lambda: run.agreed(stop()),
        )  # fmt: skip
        run.log.write(steps, numbers)
    if not is_first():
        return Result(True, steps, {})
    curve = figures.training_curve(metrics, task.curves)
    figures.save(curve, run.directory / "curve.png")
    final = last_evaluation(metrics) | {
        "steps": steps,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "model_flops_per_step": run.work.flops,
        "seconds": time.monotonic() - run.since,
    }
    return Result(True, steps, final | median_rates(read_lines(metrics)))


@contextmanager
def _errors_of(checkpoints: Checkpoints) -> Iterator[None]:
    """Errors of a run that say which checkpoint is the last good one."""
    try:
        yield
    except NonFiniteError as error:
        checkpoints.wait()
        good = checkpoints.latest()
        kept = "there is no checkpoint before it" if good is None else f"step {good} is saved"
        raise NonFiniteError(f"{error}; {kept} in {checkpoints.directory}") from None
    except OSError as error:  # a full disk shows first wherever it is written to first
        if error.errno not in UNWRITABLE:
            raise
        raise checkpoints.save_error(error) from error
