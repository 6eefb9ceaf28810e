"""A run and its directory: what is written before, during and after training."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from opsin.commands.endings import stop_signals
from opsin.commands.finished import check_files
from opsin.commands.measured import Code, write_measured, write_splits
from opsin.commands.provenance import environment, own_code
from opsin.config.identity import essence, essence_of_resolved, evaluation_id, identity
from opsin.config.names import UntrustedError
from opsin.config.own_files import SameNameError
from opsin.config.sweep import pinned
from opsin.config.tree import check, names_in, resolve
from opsin.data.enclosure import check_enclosed, component
from opsin.data.files import clear_parts, in_shell, replace_text, to_json, writing
from opsin.errors import ConfigError, UserError
from opsin.report import evaluations
from opsin.report.run_files import read_config, read_summary
from opsin.report.starts import Start, other_code, read_starts
from opsin.train.checkpoint import saved_step
from opsin.train.experiment import Experiment
from opsin.train.host.processes import ProcessError, check_same, is_first, of_first
from opsin.train.host.profiling import Steps
from opsin.train.logging import JsonLines, TensorBoard, WeightsAndBiases, Writer
from opsin.train.loop import fit
from opsin.train.measurements import Measurement
from opsin.train.paths import json_leaves


class RunError(UserError):
    """A run directory that cannot be used."""


@dataclass(frozen=True)
class Options:
    """How to run, apart from what influences the result.

    Attributes:
        workdir: parent of all run directories.
        progress: whether to show a bar.
        tensorboard: also write event files.
        wandb: also log to Weights & Biases.
        began: ``time.monotonic()`` of the command, to measure its start-up; None leaves that out.
        profile: steps to trace.
    """

    workdir: Path = Path("runs")
    progress: bool = True
    tensorboard: bool = False
    wandb: bool = False
    began: float | None = None
    profile: Steps | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        directory: of the run.
        finished: False if it was stopped before its last step.
        metrics: the final numbers, of evaluation and of the measurements of the experiment; empty
            if it was stopped.
        step: steps taken.
        trained_before: True if it was finished already, so that nothing trained.
        measured: True if it lacked numbers then, which were measured now.
        signal: the signal that came meanwhile, or None.
    """

    directory: Path
    finished: bool
    metrics: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    trained_before: bool = False
    measured: bool = False
    signal: int | None = None

    def read_again(self) -> str:
        """What to say of a run that was trained before."""
        what = ": measured what was missing" if self.measured else ", so only read"
        return f"already trained{what}; to train it again: rm -r {in_shell(self.directory)}"


def directory_of(name: str, experiment: Experiment, workdir: Path) -> Path:
    """``workdir/name/id``, the id being the hash of what changes a trained number."""
    return workdir / component("experiment", name) / identity(pinned(experiment))


def execute(name: str, arm: str, experiment: Experiment, options: Options) -> Outcome:
    """Runs an experiment to its end, or resumes it; a finished one is only read.

    A finished run is measured without training, where it lacks measurements, or its splits were
    evaluated in another way. Several processes call it alike; the first of them writes.

    Raises:
        ConfigError: a field of the experiment does not take its value.
        ProcessError: processes were started differently, or do not see the same directory.
        WriteError: the directory cannot be written.
        RunError: another run is live in it, or it holds a finished run that is to be profiled, had
            other defaults, or is to be measured without a checkpoint.
        Exception: whatever training raises; it is also written to ``FAILED``, unless it is a
            UserError.
    """
    check(experiment)
    experiment = pinned(experiment)
    directory = directory_of(name, experiment, options.workdir)
    config, writes = resolve(experiment), is_first()
    check_same({"experiment": name} | config)
    with _made(directory) if writes else nullcontext():
        if writes:
            place = {"experiment": name, "arm": arm, "seed": experiment.seed}
            _write_json(directory / "arm.json", place)
        trained = of_first((directory / "DONE").exists())
        if not directory.is_dir():
            raise ProcessError(
                f"process {jax.process_index()} does not see {directory}, which process 0 has "
                "made: choose a --workdir on a disk that all processes share"
            )
        todo, again, since = experiment.measurements, False, time.monotonic()
        of = evaluation_id(experiment)
        now: dict[str, Any] = {**environment(), "own": own_code(experiment)}
        code = Code.of(experiment, experiment.measurements, now["commit"])
        if trained:
            _check_trained(directory, experiment, options, now, say=writes)
            steps = _steps(directory)
            todo = tuple(
                x for x in todo if not of_first(_is_measured(directory, x, steps, of, code))
            )
            again = not of_first(_is_evaluated(directory, steps, of, code))
            if not (todo or again):
                return replace(_finished(directory, experiment), trained_before=True)
            _check_saved(directory, steps)
        if writes:
            with writing(directory):
                (directory / "FAILED").unlink(missing_ok=True)
        if writes and not trained:
            _write_json(directory / "config.json", config)
            _record_start(directory, now)
        keep = partial(write_measured, directory, experiment, code=code)
        with _recorded(directory) if writes else nullcontext(), stop_signals() as stopped:
            result = fit(
                replace(experiment, measurements=todo),
                directory,
                config=config,
                essence=partial(essence_of_resolved, allowed=names_in(config)),
                stop=lambda: bool(stopped),
                writers=_writers(name, directory, config, options) if writes else (),
                progress=options.progress,
                began=options.began,
                profile=options.profile if writes else None,
                kept=lambda measurement, step: of_first(
                    _is_measured(directory, measurement, step, of, code)
                ),
                keep=keep if writes else lambda found, step: None,
                again=again,
            )
        came = stopped[0] if stopped else None
        if not (result.finished and writes):
            return Outcome(directory, result.finished, step=result.step, signal=came)
        # The log has what was measured too, maybe before the last start.
        measured = evaluations.names(directory)
        own = {name: x for name, x in result.metrics.items() if name not in measured}
        if again or not trained:
            found = {name: x for name, x in own.items() if "/" in name}
            took = time.monotonic() - since if trained else None
            write_splits(directory, experiment, found, step=result.step, seconds=took, code=code)
        if trained:
            _write_json(directory / "config.json", config)  # as it is measured now
        else:
            write_summary(directory / "summary.json", own)
            replace_text(directory / "DONE", "")
        done = _finished(directory, experiment)
        return replace(done, trained_before=trained, measured=trained, signal=came)


@contextmanager
def _recorded(directory: Path) -> Iterator[None]:
    """Writes what fails into ``FAILED``; a user's mistake is no failure of the run."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        with suppress(OSError):  # the disk may be full: that is what ``error`` says then
            replace_text(directory / "FAILED", f"{type(error).__name__}: {error}\n")
        raise


def state_of(directory: Path, experiment: Experiment) -> str:
    """``DONE``, ``FAILED``, ``to do``, or ``to measure`` for a finished run that lacks numbers."""
    check_enclosed(directory)
    if not (directory / "DONE").exists():
        return "FAILED" if (directory / "FAILED").exists() else "to do"
    steps, measurements = _steps(directory), experiment.measurements
    of, code = evaluation_id(experiment), Code.of(experiment, measurements)
    measured = all(_is_measured(directory, x, steps, of, code) for x in measurements)
    measured = measured and _is_evaluated(directory, steps, of, code)
    return "DONE" if measured else "to measure"


def _steps(directory: Path) -> int:
    """How many steps a finished run took."""
    return int(read_summary(directory, "steps")["steps"])


def _is_measured(
    directory: Path, measurement: Measurement, steps: int, of: str, code: Code
) -> bool:
    """Whether a run has the numbers of a measurement, of its last step, by the present code."""
    name = identity(measurement)
    return evaluations.read(directory, name, steps, of, code.by_id[name]) is not None


def _is_evaluated(directory: Path, steps: int, of: str, code: Code) -> bool:
    """Whether the splits of a finished run were evaluated as its experiment says now."""
    return evaluations.read(directory, evaluations.SPLITS, steps, of, code.own) is not None


def _finished(directory: Path, experiment: Experiment) -> Outcome:
    metrics = read_summary(directory, "steps")
    steps = int(metrics["steps"])
    for name in (evaluations.SPLITS, *map(identity, experiment.measurements)):
        found = evaluations.read(directory, name, steps)
        metrics |= found["metrics"] if found else {}
    return Outcome(directory, True, metrics, steps)


def _check_trained(
    directory: Path, experiment: Experiment, options: Options, now: dict[str, Any], *, say: bool
) -> None:
    """Raises RunError for a finished run that is to be profiled, or had other defaults.

    Prints a note on other code.
    """
    if options.profile:
        raise RunError(
            f"{directory} is trained, no step is left to profile: train it in another "
            f"place with --workdir, or rm -r {in_shell(directory)} first"
        )
    train_again = f"rm -r {in_shell(directory)} to train it again"
    try:
        saved = read_config(directory)
        there = json_leaves(essence_of_resolved(saved, names_in(resolve(experiment))))
    except (SameNameError, UntrustedError) as error:
        raise RunError(f"{directory} was trained with other files: {error}") from error
    except ConfigError as error:
        raise RunError(f"{directory} was trained by other code ({error}): {train_again}") from error
    here = json_leaves(essence(experiment))
    if other := sorted(x for x in there.keys() | here.keys() if there.get(x) != here.get(x)):
        was, now = (json_leaves(x).get(other[0], "absent") for x in (saved, resolve(experiment)))
        raise RunError(
            f"{directory} was trained when {other[0]} was {was}, and it is {now} by default now: "
            f"{train_again}"
        )
    check_files(directory / "checkpoints", experiment.data)
    note = other_code(_starts(directory / "env.json"), now) if say else None
    if note:
        print(note, file=sys.stderr)


def _check_saved(directory: Path, steps: int) -> None:
    """Raises RunError if a finished run has no checkpoint of its last step to be measured."""
    if saved_step(directory / "checkpoints") != steps:
        raise RunError(
            f"{directory} is trained, and its checkpoint of step {steps} is gone, so nothing more "
            f"can be measured: rm -r {in_shell(directory)} to train it again"
        )


def _record_start(directory: Path, now: dict[str, Any]) -> None:
    """Adds this start to ``env.json``; a run that resumes under other code says so."""
    saved = saved_step(directory / "checkpoints")
    step, resumed = saved or 0, saved is not None
    now = now | {"step": step, "resumed": resumed}
    before = _starts(directory / "env.json")
    note = other_code(before, now) if resumed else None
    _write_json(directory / "env.json", [*before, now])
    if note is None:
        return
    lines = JsonLines(directory / "metrics.jsonl", step)
    lines.note(step, note)
    lines.close()
    print(note, file=sys.stderr)


def _starts(path: Path) -> Sequence[Start]:
    """``read_starts``; none if there is no such file."""
    return read_starts(path) if path.exists() else []


def _write_json(path: Path, content: Any) -> None:
    with writing(path):
        replace_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_summary(path: Path, metrics: Mapping[str, Any]) -> None:
    """Writes ``summary.json``."""
    _write_json(path, to_json(metrics))


def _writers(
    name: str, directory: Path, config: dict[str, Any], options: Options
) -> Iterator[Writer]:
    """More places for the metrics, each opened when it is asked for."""
    if options.tensorboard:
        yield TensorBoard(directory / "tensorboard")
    if options.wandb:
        yield WeightsAndBiases(directory, f"{name}-{directory.name}", config)


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """The directory of a run, made if it is new, and held. That of a refused run is not left."""
    elsewhere = "choose another place with --workdir"
    with writing(directory, elsewhere):
        directory.mkdir(parents=True, exist_ok=True)
    with locked(directory, "wait for it, or change something, e.g. seed=1", elsewhere):
        new = {path.name for path in directory.iterdir()} <= {".lock"}
        try:
            yield
        except UserError:
            if new and jax.process_count() == 1:  # others may not have seen it yet
                _take_away(directory)
            raise


def _take_away(directory: Path) -> None:
    """Removes what a start wrote that trained nothing; a directory that has more stays."""
    log, checkpoints = directory / "metrics.jsonl", directory / "checkpoints"
    if (log.exists() and log.stat().st_size) or saved_step(checkpoints) is not None:
        return
    with suppress(OSError):
        if checkpoints.exists():
            checkpoints.rmdir()
        for name in ("arm.json", "config.json", "env.json", "metrics.jsonl", ".lock"):
            (directory / name).unlink(missing_ok=True)
        directory.rmdir()


@contextmanager
def locked(
    directory: Path, if_live: str = "wait for it", if_unwritable: str = "make it writable"
) -> Iterator[None]:
    """Holds a directory that is there for one command; the lock dies with the process.

    Args:
        directory: of a run.
        if_live: the way out, if another command holds it.
        if_unwritable: the way out, if it cannot be written.

    Raises:
        RunError: if another run is live in it.
        DataError: if something in it leads out of it.
        WriteError: if it cannot be written.
    """
    check_enclosed(directory)
    lock = FileLock(directory / ".lock", timeout=0)
    with writing(directory, if_unwritable):
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(f"another run is live in {directory}: {if_live}") from error
    try:
        with writing(directory, if_unwritable):
            clear_parts(directory)
        yield
    finally:
        lock.release()
