"""A run and its directory: what is written before, during and after training."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from errors import UserError
from experiments.config import identity, resolve
from train.experiment import Experiment
from train.logging import TensorBoard, WeightsAndBiases, Writer, replace_text
from train.loop import fit
from train.processes import ProcessError, check_same, is_first, of_first
from train.profiling import Steps

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")


class RunError(UserError):
    """A run directory that cannot be used."""


@dataclass(frozen=True)
class Options:
    """How to run, as far as it has no influence on the result.

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
        metrics: the final numbers; empty if it was stopped.
        step: steps taken.
        trained_before: True if it was finished already, and is only read.
        signal: the signal that came meanwhile, or None.
    """

    directory: Path
    finished: bool
    metrics: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    trained_before: bool = False
    signal: int | None = None


def directory_of(name: str, experiment: Experiment, workdir: Path) -> Path:
    """``workdir/name/id``, the id being the hash of the resolved experiment."""
    return workdir / name / identity(experiment)


def execute(name: str, arm: str, experiment: Experiment, options: Options) -> Outcome:
    """Runs an experiment to its end, or goes on with it; a finished one is only read.

    Several processes call it alike; the first of them writes.

    Raises:
        ProcessError: processes were started differently, or do not see the same directory.
        RunError: the directory cannot be written, another run is live in it, or a finished run is
            to be profiled.
        Exception: whatever training raises; it is also written to ``FAILED``.
    """
    directory = directory_of(name, experiment, options.workdir)
    config, writes = resolve(experiment), is_first()
    check_same({"experiment": name} | config)
    with _locked(directory) if writes else nullcontext():
        if writes:
            place = {"experiment": name, "arm": arm, "seed": experiment.seed}
            _write_json(directory / "arm.json", place)
        trained = of_first((directory / "DONE").exists())
        if not directory.is_dir():
            raise ProcessError(
                f"process {jax.process_index()} does not see {directory}, which process 0 has "
                "made: choose a --workdir on a disk that all processes share"
            )
        if trained:
            if options.profile:
                raise RunError(
                    f"{directory} is trained, no step is left to profile: train it in another "
                    "place with --workdir, or rm -r it first"
                )
            metrics = json.loads((directory / "summary.json").read_text())
            steps = int(metrics["steps"])
            return Outcome(directory, True, metrics, steps, trained_before=True)
        if writes:
            (directory / "FAILED").unlink(missing_ok=True)
            _write_json(directory / "config.json", config)
            _write_json(directory / "env.json", environment())
        try:
            with _stop_signal() as stopped:
                result = fit(
                    experiment,
                    directory,
                    config=config,
                    stop=lambda: bool(stopped),
                    writers=_writers(name, directory, config, options) if writes else (),
                    progress=options.progress,
                    began=options.began,
                    profile=options.profile if writes else None,
                )
        except Exception as error:
            if writes:
                with suppress(OSError):  # the disk may be full: that is what ``error`` says then
                    replace_text(directory / "FAILED", f"{type(error).__name__}: {error}\n")
            raise
        if result.finished and writes:
            _write_json(directory / "summary.json", result.metrics)
            replace_text(directory / "DONE", "")
        came = stopped[0] if stopped else None
        return Outcome(directory, result.finished, result.metrics, result.step, signal=came)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, json.dumps(content, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Where and with what this runs: commit, versions, devices, hardware."""
    house = Path(__file__).parent.parent
    commit = _git(house, "rev-parse", "HEAD")
    return {
        "commit": commit,
        "dirty": bool(_git(house, "status", "--porcelain")) if commit else None,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "command": shlex.join([_program(), *sys.argv[1:]]),
    }


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "opsin" if name == "__main__.py" else name  # python -m experiments


def _git(house: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(house), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or installed from an archive
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _writers(name: str, directory: Path, config: dict[str, Any], options: Options) -> list[Writer]:
    writers: list[Writer] = []
    if options.tensorboard:
        writers.append(TensorBoard(directory / "tensorboard"))
    if options.wandb:
        writers.append(WeightsAndBiases(directory, f"{name}-{directory.name}", config))
    return writers


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the directory for one live run; the lock dies with the process."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"another run is live in {directory}: wait for it, or change something, e.g. seed=1"
        ) from error
    except OSError as error:
        raise RunError(
            f"cannot write to {directory} ({error.strerror}): choose another place with --workdir"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or Ctrl-C comes; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            # None is one that Python did not install: jax has one among several processes.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
