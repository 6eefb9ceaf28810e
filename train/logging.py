"""Metrics to the disk and the screen: always JSON lines and a progress bar, more if asked for."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from tqdm.auto import tqdm

from opsin.data.files import aside, from_json, read_lines, read_log, replace_text, to_json
from opsin.errors import RunFailed, UserError
from opsin.metrics.state import Mean, Metric, compute_all, to_host
from opsin.train.host.accounting import Work
from opsin.train.host.processes import is_first

Item = TypeVar("Item")


@runtime_checkable
class Writer(Protocol):
    """A place for metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records ``split/metric`` numbers at a step."""
        ...

    def note(self, step: int, text: str) -> None:
        """Records a line for people."""
        ...

    def close(self) -> None:
        """Flushes and closes."""
        ...


def open_writers(writers: Iterable[Writer], closing: ExitStack) -> list[Writer]:
    """The writers, each of which ``closing`` closes, also if a later one cannot be opened."""
    opened = []
    for writer in writers:
        closing.callback(writer.close)
        opened.append(writer)
    return opened


class JsonLines:
    """``metrics.jsonl``: one object a line with ``step`` and ``split/metric`` keys.

    Lines after ``last_step``, and one that was cut off, are dropped first: after a crash the steps
    after the checkpoint run again, and no line may occur twice. If others are damaged, the file is
    kept as it was beside this one, which goes on with those that are whole.
    """

    def __init__(self, path: Path, last_step: int):
        lines, damaged = read_log(path)
        if damaged:
            kept_as = aside(path)
            shutil.copyfile(path, kept_as)
            tqdm.write(
                f"{path}: {len(damaged)} damaged lines are left out, the first is line "
                f"{damaged[0]}; the file as it was is {kept_as}",
                file=sys.stderr,
            )
        kept = [line for line in lines if line["step"] <= last_step]
        replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        self._file.write(json.dumps({"step": step} | to_json(metrics)) + "\n")

    def note(self, step: int, text: str) -> None:
        """Appends a line of text, which readers of numbers skip."""
        self._file.write(json.dumps({"step": step, "note": text}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard, written without TensorFlow."""

    def __init__(self, directory: Path):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), flush_secs=10)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def note(self, step: int, text: str) -> None:
        """Adds a text."""
        self._writer.add_text("note", text, step)

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases in the run's directory; ``WANDB_MODE=online`` uploads it.

    A server that does not answer, or a question for a key, would hold up the training.

    Raises:
        LoggingError: if wandb is not installed, or does not start.
    """

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]):
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise LoggingError("--wandb needs the extra: pip install -e '.[wandb]'") from error
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        offline: Any = mode == "offline"
        try:
            self._run = wandb.init(
                project="opsin",
                id=name,
                dir=directory,
                config=dict(config),
                mode=mode,
                # Of an offline run nobody can say whether it resumes.
                resume=None if offline else "allow",
                settings=wandb.Settings(silent=offline, init_timeout=30),
            )
        except ValueError as error:
            raise LoggingError(
                f"--wandb: WANDB_MODE={mode!r} is no mode: unset it, which keeps the run in its "
                "directory, or set online"
            ) from error
        except wandb.Error as error:
            raise LoggingError(
                f"--wandb: {error} Or keep the run in its directory: WANDB_MODE=offline"
            ) from error
        if offline:
            print(
                f"--wandb: offline, which WANDB_MODE=online changes; to upload it later: wandb "
                f"sync {Path(self._run.dir).parent}",
                file=sys.stderr,
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics at their step."""
        self._run.log(dict(metrics), step=step)

    def note(self, step: int, text: str) -> None:
        """Logs a text at its step."""
        self._run.log({"note": text}, step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


class LoggingError(UserError):
    """A writer of metrics that cannot be opened."""


LINE_SECONDS = 10.0
"""Between two lines of progress where standard error is no terminal, as in the log of a job."""


class Console:
    """A progress bar with some training metrics and the speed; evaluations stay above it.

    Where standard error is no terminal, a line now and then is in place of the bar.
    """

    def __init__(
        self, total: int, step: int, enabled: bool, shown: Sequence[str] = ("loss", "accuracy")
    ):
        self._enabled, self._shown, self._total = enabled, shown, total
        self._spoke = -math.inf
        live = sys.stderr.isatty() or "ipykernel" in sys.modules  # a terminal, or a notebook
        self._bar = tqdm(
            total=total,
            initial=step,
            disable=not (enabled and live),
            dynamic_ncols=True,
            mininterval=0.2,
            # The bar has what is left of the line.
            bar_format="{n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix} {bar}",
        )
        if 0 < step < total:
            self.say(f"resuming from step {step} of {total}")

    def say(self, text: str) -> None:
        """Writes a line above the bar, if there is one."""
        if self._enabled:
            self._bar.write(text, file=sys.stderr)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar; evaluations stay on the screen as lines."""
        if progress := self._progress(metrics):
            self._bar.set_postfix_str(progress, refresh=False)
            self._speak(step, progress)
        self._bar.update(max(step - self._bar.n, 0))  # the best state is of an earlier step
        evaluated = [
            f"{name} {_short(value)}"
            for name, value in metrics.items()
            if not name.startswith("train/")
        ]
        if evaluated:
            first = f"step {step}: {evaluated[0]}"
            lines = itertools.accumulate(evaluated[1:4], "{}  {}".format, initial=first)
            self.say([first, *(line for line in lines if len(line) < 80)][-1])  # in one line

    def _progress(self, metrics: Mapping[str, float]) -> str:
        """What a line of training metrics has for people, at most 55 characters or so."""
        train = {name.removeprefix("train/"): x for name, x in metrics.items() if "train/" in name}
        parts = [f"{name} {train[name]:.3f}" for name in self._shown if name in train]
        if "images_per_second" in train:
            parts.append(f"{train['images_per_second']:.0f} img/s")
        if "utilization" in train:
            parts.append(f"{train['utilization']:.0%} of peak FLOP/s")
        return " ".join(parts)

    def _speak(self, step: int, progress: str) -> None:
        """The line in place of the bar, if it is time for one."""
        due = time.monotonic() - self._spoke >= LINE_SECONDS or step == self._total
        if due and self._bar.disable:
            self.say(f"step {step} of {self._total}: {progress}")
            self._spoke = time.monotonic()

    def note(self, step: int, text: str) -> None:
        """Writes a line above the bar, also if there is none: it is no progress."""
        if is_first():
            self._bar.write(f"step {step}: {text}", file=sys.stderr)

    def track(self, items: Iterable[Item], what: str) -> Iterable[Item]:
        """The items, with a bar of their own for work after the last step."""
        return bar(items, what, enabled=self._enabled)

    def close(self) -> None:
        """Leaves the finished bar on the screen."""
        self._bar.close()


def bar(items: Iterable[Item], what: str, *, enabled: bool = True) -> Iterable[Item]:
    """The items, and a bar that shows how far they have come and goes when they end."""
    if sys.stderr.isatty() or not enabled:
        return tqdm(items, what, disable=not enabled, dynamic_ncols=True, leave=False)
    return _spoken(items, what)


def _spoken(items: Iterable[Item], what: str) -> Iterator[Item]:
    """The items, and a line now and then that says how far they have come."""
    spoke, total = time.monotonic(), f" of {len(items)}" if isinstance(items, Sized) else ""
    for index, item in enumerate(items):
        if time.monotonic() - spoke >= LINE_SECONDS:
            print(f"{what}: {index}{total}", file=sys.stderr)
            spoke = time.monotonic()
        yield item


class MetricsLog:
    """Training metrics, read one dispatch late so that the host never waits for the device.

    A line is the mean over all steps since the line before. That window outlives a restart:
    ``window()`` goes into the checkpoint. Speed is that of the steps since the clock was started.
    """

    def __init__(self, writers: Sequence[Writer], work: Work, window: list[Any] | None = None):
        self._writers, self._work = writers, work
        self._pending: deque[tuple[int, int, dict[str, Metric], bool]] = deque()
        self._window = window
        self.start_clock()

    def window(self) -> list[Any] | None:
        """The sums of the open window as JSON, None if it is empty. Call ``drain`` before."""
        return self._window

    def start_clock(self) -> None:
        """Starts to measure speed anew, after a pause that was not training."""
        self._since, self._steps = time.monotonic(), 0

    def push(self, step: int, count: int, metrics: dict[str, Metric], *, flush: bool) -> None:
        """Takes the metrics of the dispatch that ended at ``step``, and writes the one before.

        Raises:
            NonFiniteError: a term of the loss was not finite in the one before.
        """
        self._pending.append((step, count, metrics, flush))
        while len(self._pending) > 1:
            self._write_oldest()

    def drain(self) -> None:
        """Waits for the device and writes all pending metrics.

        Raises:
            NonFiniteError: a term of the loss was not finite.
        """
        while self._pending:
            self._write_oldest()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes numbers to every writer."""
        for writer in self._writers:
            writer.write(step, metrics)

    def note(self, step: int, text: str) -> None:
        """Writes a line for people to every writer."""
        for writer in self._writers:
            writer.note(step, text)

    def _write_oldest(self) -> None:
        step, count, stacked, flush = self._pending.popleft()
        metrics = {
            name: jax.tree.map(lambda leaf: leaf[:count], to_host(metric))
            for name, metric in stacked.items()
        }
        _check_finite(metrics, step - count)
        window = jax.tree.map(lambda leaf: leaf.sum(axis=0), metrics)
        leaves, structure = jax.tree.flatten(window)
        if self._window is not None:
            leaves = [np.add(*pair) for pair in zip(leaves, self._window, strict=True)]
            window = jax.tree.unflatten(structure, leaves)
        self._steps += count
        if not flush:
            self._window = [leaf.tolist() for leaf in leaves]
            return
        self._window = None
        numbers = compute_all(window)
        numbers |= self._work.rates(self._steps, time.monotonic() - self._since)
        self.write(step, {f"train/{name}": value for name, value in numbers.items()})
        self.start_clock()


class NonFiniteError(RunFailed):
    """A term of the loss that is infinite or not a number."""


def _check_finite(metrics: Mapping[str, Metric], steps_before: int) -> None:
    """Raises NonFiniteError, which names the first step with such a term, and the term."""
    # The total and the norms are not finite because a term is: they come last.
    last = ("loss", "gradient_norm", "largest_parameter")

    def place(name: str) -> tuple[int, str]:
        return next((i for i, x in enumerate(last, start=1) if name.startswith(x)), 0), name

    names = sorted(metrics, key=place)
    broken = [
        (int(np.argmin(np.isfinite(metric.total))), order, name)
        for order, name in enumerate(names)
        if isinstance(metric := metrics[name], Mean) and not np.isfinite(metric.total).all()
    ]
    if broken:
        index, _, name = min(broken)
        value = float(metrics[name].total[index])  # pyright: ignore[reportAttributeAccessIssue]
        raise NonFiniteError(
            f"train/{name} is {value} at step {steps_before + index + 1}: lower "
            "optimizer.learning_rate, set optimizer.clip_norm, or look for labels, masks or images "
            "that the task is not for (out of range, greys that are to be binary)"
        )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.4f}"


def last_evaluation(metrics: Path) -> dict[str, float]:
    """The last value of every number that is not of training; NaN where it was none."""
    last: dict[str, float] = {}
    for line in read_lines(metrics):
        last |= from_json(line)
    return {n: x for n, x in last.items() if "/" in n and not n.startswith("train/")}
