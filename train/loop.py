"""The training loop: one for every task, every strategy and any number of devices."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opsin.train.beginning import said_of_start
from opsin.train.best import best_state, keep_if_best
from opsin.train.checkpoint import Checkpoints
from opsin.train.conclusion import Result, measure_all, summary
from opsin.train.durations import Cadence
from opsin.train.evaluate import check_shapes, evaluate_sets
from opsin.train.experiment import Experiment
from opsin.train.feed import Feed
from opsin.train.host.accounting import Work, measured_work
from opsin.train.host.capacity import check_step
from opsin.train.host.processes import Agreement, is_first
from opsin.train.host.profiling import Profiler, Steps
from opsin.train.host.startup import StartUp, record_speed
from opsin.train.logging import Console, JsonLines, MetricsLog, Writer, open_writers
from opsin.train.measurements import Measured, Measurement, check_measurements
from opsin.train.program import Program, build
from opsin.train.resume import first_state
from opsin.train.sets import Sets, open_sets
from opsin.train.sharding import make_mesh
from opsin.train.state import State


def fit(
    experiment: Experiment,
    directory: Path,
    *,
    config: dict[str, Any],
    essence: Callable[[Any], Any] = lambda config: config,
    stop: Callable[[], bool] = lambda: False,
    writers: Iterable[Writer] = (),
    progress: bool = True,
    began: float | None = None,
    profile: Steps | None = None,
    kept: Callable[[Measurement, int], bool] = lambda measurement, step: False,
    keep: Callable[[Measured, int], object] = lambda measured, step: None,
    again: bool = False,
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
        writers: more places for the metrics, which are closed whatever happens.
        progress: whether to show a bar.
        began: ``time.monotonic()`` of the command, if its start-up is to be measured as well.
        profile: steps to trace.
        kept: whether a measurement of that step was kept before, and need not be made.
        keep: called with each measurement as soon as it is made, and the step.
        again: evaluate it, although it is trained already.

    Raises:
        DataError, DeviceError, DurationError, SettingError: the experiment asks for what cannot be.
        CheckpointError: a checkpoint cannot be read.
        SaveError: the disk is full, or cannot be written for another reason.
        NonFiniteError: a term of the loss is not finite.
    """
    clock = StartUp(began)
    with ExitStack() as closing:
        others = open_writers(writers, closing)
        run, state = open_run(
            experiment, directory, config, essence, stop, others, progress, profile, clock, closing
        )
        with run.checkpoints.named_in_errors():
            if again and not experiment.loop.keep_best:  # of which the end is evaluated anyway
                evaluate_sets(experiment, run.program, state, run.sets, directory, run.log)
            state, step = train(run, state)
            finished = step == run.program.steps
            return conclude(run, state, kept, keep) if finished else Result(False, step)


@dataclass(frozen=True)
class Run:
    """An experiment that is open: all but its state.

    Attributes:
        stop: whether any process is asked to stop; all processes call it equally often.
        since: ``time.monotonic()`` at which training would have begun without a pause.
    """

    experiment: Experiment
    directory: Path
    config: dict[str, Any]
    sets: Sets
    feed: Feed
    program: Program
    work: Work
    cadence: Cadence
    checkpoints: Checkpoints
    log: MetricsLog
    console: Console
    profiler: Profiler
    clock: StartUp
    stop: Callable[[], bool]
    since: float


def open_run(
    experiment: Experiment,
    directory: Path,
    config: dict[str, Any],
    essence: Callable[[Any], Any],
    stop: Callable[[], bool],
    writers: Sequence[Writer],
    progress: bool,
    profile: Steps | None,
    clock: StartUp,
    closing: ExitStack,
) -> tuple[Run, State]:
    """Opens the data, lays out the program, and makes the first state or restores the newest.

    What has to be closed in the end is left to ``closing``; see ``fit`` for the other arguments.
    """
    data, task = experiment.data, experiment.task
    sets = open_sets(experiment)
    check_measurements(experiment.measurements, task, sets.all)
    mesh = make_mesh(experiment.parallel)
    feed = Feed(experiment, mesh, sets.train)
    clock.lap("data")
    program = build(experiment, feed.spec)
    check_shapes(program, sets, data, feed.spec)
    cadence = experiment.loop.cadence(feed.spec.steps_per_epoch, program.steps)
    flops = program.flops() if program.steps else Counter()
    clock.lap("tracing")
    checkpoints = closing.enter_context(Checkpoints(directory / "checkpoints"))
    work = Work(data.batch, flops.total(), peak=math.nan)
    if (checkpoints.latest() or 0) < program.steps:  # else nothing is left to be timed
        work = measured_work(data.batch, flops, mesh.size)
        clock.lap("peak")
    began = time.monotonic()
    state, saved = first_state(experiment, program, feed, sets, checkpoints, config, essence)
    step = int(state.step)
    clock.lap("state")
    profiler = Profiler(profile, directory / "profile", done=step, total=program.steps)
    console = Console(program.steps, step, progress and is_first(), task.progress)
    own = [JsonLines(directory / "metrics.jsonl", step)] if is_first() else []
    log = MetricsLog([*open_writers([*own, console], closing), *writers], work, saved["window"])
    closing.callback(profiler.close)
    agreed = Agreement(mesh)
    return Run(
        experiment=experiment,
        directory=directory,
        config=config,
        sets=sets,
        feed=feed,
        program=program,
        work=work,
        cadence=cadence,
        checkpoints=checkpoints,
        log=log,
        console=console,
        profiler=profiler,
        clock=clock,
        stop=lambda: agreed(stop()),
        since=began - saved["seconds"],
    ), state


def train(run: Run, state: State) -> tuple[State, int]:
    """THE loop: takes steps until the last one, or until any process is asked to stop.

    Returns:
        The state, and the steps taken in all.
    """
    length, step = run.experiment.loop.steps_per_dispatch, int(state.step)
    new = run.checkpoints.latest() is None
    for line in said_of_start(run.experiment, run.program.state, run.feed.spec) if new else ():
        run.log.note(step, line)
    if new and run.program.steps == 0:  # a run that is only measured
        look(run, state)
        save(run, state)
    if step >= run.program.steps:
        return state, step
    store, dispatch = run.feed.store(), run.program.compile()
    check_step(dispatch)
    run.clock.lap("compilation")
    run.log.start_clock()
    while step < run.program.steps:
        pause = min(run.cadence.evaluate.next(step), run.cadence.save.next(step))
        count = min(length, pause - step)
        items = run.feed.take(count, length)
        run.profiler.before(step, count, state)
        state, metrics = dispatch(state, store, items, np.int32(count))
        step += count
        run.profiler.after(step, state)
        if run.clock.finish(state) and is_first():
            record_speed(run.directory / "speed.json", run.clock, run.work)
            run.console.say(run.clock.line())
        stopping = run.stop()
        evaluating, saving = run.cadence.evaluate(step), run.cadence.save(step) or stopping
        run.log.push(step, count, metrics, flush=run.cadence.log.within(step, count))
        if evaluating or saving:
            run.log.drain()
        if evaluating:
            look(run, state)
        if saving:
            save(run, state)
        if evaluating or saving:
            run.log.start_clock()
        if stopping:
            break
    return state, step


def look(run: Run, state: State) -> None:
    """Evaluates a state, and keeps it if it is the best so far and ``loop.keep_best`` says so."""
    numbers = evaluate_sets(run.experiment, run.program, state, run.sets, run.directory, run.log)
    keep_best = run.experiment.loop.keep_best
    keep_if_best(keep_best, run.directory, state, numbers, lambda: _metadata(run))


def save(run: Run, state: State) -> None:
    """A checkpoint of the state, with all that resuming and ``opsin predict`` need."""
    run.checkpoints.save(state, _metadata(run))


def _metadata(run: Run) -> dict[str, Any]:
    return {
        "config": run.config,
        "data": run.feed.description() | run.sets.description(),
        "position": run.feed.position(),
        "window": run.log.window(),
        "seconds": time.monotonic() - run.since,
    }


def conclude(
    run: Run,
    state: State,
    kept: Callable[[Measurement, int], bool],
    keep: Callable[[Measured, int], object],
) -> Result:
    """Makes the measurements of the experiment that are not kept, and sums the run up."""
    run.checkpoints.wait()
    seconds, steps = time.monotonic() - run.since, run.program.steps
    mesh, sets = run.program.mesh, run.sets.all
    best: dict[str, float] = {}
    if run.experiment.loop.keep_best:  # at its own step, of which the log has a line already
        last, state = state.step, best_state(run.directory, state, run.program.state, run.config)
        shown = run.experiment, run.program, state, run.sets, run.directory, run.console
        best = evaluate_sets(*shown, ended=True) | {"best_step": int(state.step)}
        state = replace(state, step=last)

    def record(each: Measured) -> None:
        keep(each, steps)
        run.log.write(steps, each.metrics)

    todo = [each for each in run.experiment.measurements if not kept(each, steps)]
    measured = measure_all(todo, run.experiment, state, mesh, sets, run.console, run.stop, record)
    if measured is None:
        return Result(False, steps)
    if not is_first():
        return Result(True, steps)
    flops = {"model_flops_per_step": run.work.flops} if steps else {}
    final = summary(run.experiment.task, state, run.directory, flops | {"seconds": seconds} | best)
    return Result(True, steps, final, measured)
