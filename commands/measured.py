"""What ``evaluations/`` of a run keeps, and by which commit it was found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opsin.commands.provenance import own_code
from opsin.config.identity import evaluation_id, identity
from opsin.config.tree import resolve
from opsin.report import evaluations
from opsin.train.experiment import Experiment
from opsin.train.measurements import Measured


def write_measured(
    directory: Path, experiment: Experiment, found: Measured, step: int, commit: str | None
) -> Path:
    """Writes what a measurement found into ``evaluations/``, under the id of the measurement."""
    return evaluations.write(
        directory,
        identity(found.measurement),
        of=evaluation_id(experiment),
        measurement=resolve(found.measurement),
        own=own_code(found.measurement),
        step=step,
        metrics=found.metrics,
        seconds=found.seconds,
        commit=commit,
    )


def write_splits(
    directory: Path,
    experiment: Experiment,
    metrics: Mapping[str, float],
    *,
    step: int,
    seconds: float | None,
    commit: str | None,
) -> Path:
    """Writes the metrics of all splits into ``evaluations/``."""
    return evaluations.write(
        directory,
        evaluations.SPLITS,
        of=evaluation_id(experiment),
        measurement=None,
        own={},
        step=step,
        metrics=metrics,
        seconds=seconds,
        commit=commit,
    )
