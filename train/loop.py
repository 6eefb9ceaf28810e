"""The training loop: one for every task, every strategy and any number of devices."""

from __future__ import annotations

import errno
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from opsin.data.examples import check_same_data
from opsin.data.files import read_lines
from opsin.pictures import figures
from opsin.train.checkpoint import Checkpoints
from opsin.train.conclusion import measure_all
from opsin.train.durations import Every, in_steps
from opsin.train.evaluate import evaluate_sets
from opsin.train.experiment import Experiment
from opsin.train.feed import Feed
from opsin.train.host.accounting import Work, measured_work, median_rates
from opsin.train.host.processes import Agreement, is_first
from opsin.train.host.profiling import Profiler, Steps
from opsin.train.host.startup import StartUp, record_speed
from opsin.train.logging import (
    Console,
    JsonLines,
    MetricsLog,
    NonFiniteError,
    Writer,
    last_evaluation,
)
from opsin.train.measurements import Measured, check_measurements
from opsin.train.program import Program, build
from opsin.train.sets import Sets, open_sets
from opsin.train.sharding import make_mesh
from opsin.train.state import State
from opsin.train.weights import start_from

# The disk is full, over quota or read-only; or the file is too large, or not ours.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)


@dataclass(frozen=True)
class Result:
    """How a call of ``fit`` ended.

    Attributes:
        finished: False if it was asked to stop before the last step.
        step: steps taken in all, earlier calls included.
        metrics: final ``split/metric`` numbers, with ``seconds``, ``steps``, ``parameters``,
            ``model_flops_per_step`` and the median speed (see ``Work.rates``);
            empty in processes that do not write.
        measured: what the measurements of the experiment found.
    """

    finished: bool
    step: int
    metrics: dict[str, float]
    measured: tuple[Measured, ...] = ()


def fit(
    experiment: Experiment,
    directory: Path,
    *,
    config: dict[str, Any],
    essence: Callable[[Any], Any] = lambda config: config,
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
        essence: of a config, what is compared; all of it by default.
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
            experiment, directory, config, essence, clock, closing, writers, progress, profile
        )
        with _errors_of(run.checkpoints):
            state, step = train(run, state, stop)
            if step < run.program.steps:
                return Result(False, step, {})
            return conclude(run, state, stop)


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
    essence: Callable[[Any], Any],
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
    check_measurements(experiment.measurements, task, sets.all)
    mesh = make_mesh(experiment.parallel)
    feed = Feed(mesh, sets.train, data.batch, experiment.seed, data.resident_megabytes)
    clock.lap("data")
    program = build(experiment, feed.spec)
    epoch = feed.spec.steps_per_epoch
    log_at, evaluate_at, save_at = (
        Every(f"loop.{name}", in_steps(getattr(experiment.loop, name), epoch), program.steps)
        for name in ("log_every", "evaluate_every", "checkpoint_every")
    )
    store, flops = feed.store(), program.flops() if program.steps else Counter()
    clock.lap("tracing")
    checkpoints = closing.enter_context(Checkpoints(directory / "checkpoints"))
    saved, work = checkpoints.latest(), Work(data.batch, flops.total(), peak=math.nan)
    if (saved or 0) < program.steps:  # the peak is a benchmark: no use to what is only measured
        work = measured_work(data.batch, flops, mesh.size)
        clock.lap("peak")
    since, window = time.monotonic(), None
    if saved is None:
        images = experiment.preprocessing(feed.spec.batch["image"].shape[1:])
        state = start_from(experiment.weights, program.init(), images)
    else:
        state, metadata = checkpoints.restore(program.state, config, essence)
        check_same_data(metadata.get("data", {}), _description(sets, feed))
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
    if run.checkpoints.latest() is None and run.program.steps == 0:  # a run that is only measured
        evaluate_sets(run.experiment, run.program, state, run.sets, run.directory, run.log)
        save(run, state)
    if step >= run.program.steps:
        return state, step
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
    metadata = {
        "config": run.config,
        "data": _description(run.sets, run.feed),
        "position": run.feed.position(),
        "window": run.log.window(),
        "seconds": time.monotonic() - run.since,
    }
    run.checkpoints.save(state, metadata)


def _description(sets: Sets, feed: Feed) -> dict[str, Any]:
    """What the training images are like, as JSON."""
    names, resized = list(sets.train.class_names), sets.train.resized
    return feed.description() | {"class_names": names, "resized": resized}


def conclude(run: Run, state: State, stop: Callable[[], bool]) -> Result:
    """Makes the measurements of the experiment, and sums the run up."""
    run.checkpoints.wait()
    seconds, steps = time.monotonic() - run.since, run.program.steps
    measured = measure_all(
        run.experiment, state, run.program.mesh, run.sets.all, run.console,
        lambda: run.agreed(stop()),
    )  # fmt: skip
    if measured is None:
        return Result(False, steps, {})
    found = {name: value for each in measured for name, value in each.metrics.items()}
    if found:
        run.log.write(steps, found)
    if not is_first():
        return Result(True, steps, {})
    metrics = run.directory / "metrics.jsonl"
    curve = figures.training_curve(metrics, run.experiment.task.curves)
    figures.save(curve, run.directory / "curve.png")
    final = last_evaluation(metrics) | {
        "steps": steps,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        **({"model_flops_per_step": run.work.flops} if steps else {}),
        "seconds": seconds,
    }
    final |= median_rates(read_lines(metrics))
    own = {name: value for name, value in final.items() if name not in found}
    return Result(True, steps, own, measured)


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
