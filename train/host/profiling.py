"""The profiler: a trace of some steps, in the directory of the run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from opsin.train.settings import SettingError


@dataclass(frozen=True)
class Steps:
    """From a first to a last step, both included; the first of a run is step 1."""

    first: int
    last: int


class Profiler:
    """Traces the dispatches in which the steps lie, and says where the file is.

    A dispatch of several steps is one program, and traced whole; so is what the host does between
    two of them. Without steps it does nothing.

    Args:
        steps: which, or None.
        directory: of the traces.
        done: steps that are taken already.
        total: steps of the whole run.

    Raises:
        SettingError: the steps are taken already, or never will be.
    """

    def __init__(self, steps: Steps | None, directory: Path, *, done: int, total: int):
        if steps and not done < steps.first <= steps.last <= total:
            raise SettingError(
                f"--profile {steps.first}:{steps.last}: this run takes the steps {done + 1} to "
                f"{total}"
            )
        self._steps, self._directory = steps, directory
        self._began: int | None = None

    def before(self, step: int, count: int, state: Any) -> None:
        """Starts before the dispatch of ``count`` steps after ``step`` if one is to be traced."""
        if self._steps and self._began is None and step + count >= self._steps.first:
            jax.block_until_ready(state)  # the dispatch before is not part of the trace
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python calls would hide the rest
            jax.profiler.start_trace(str(self._directory), profiler_options=options)
            self._began = step + 1

    def after(self, step: int, state: Any) -> None:
        """Stops after a dispatch that ended at ``step`` if that was the last to be traced."""
        if self._steps and self._began is not None and step >= self._steps.last:
            jax.block_until_ready(state)
            began, before = self._began, self._traces()
            self.close()
            (file,) = self._traces() - before
            tqdm.write(
                f"trace of steps {began} to {step}: {file}: open it in https://ui.perfetto.dev",
                file=sys.stderr,
            )

    def _traces(self) -> set[Path]:
        return {*self._directory.rglob("*.trace.json.gz")}

    def close(self) -> None:
        """Stops a running trace."""
        self._steps = None
        if self._began is not None:
            self._began = None
            jax.profiler.stop_trace()
