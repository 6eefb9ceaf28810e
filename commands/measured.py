"""What ``evaluations/`` of a run keeps, and by which commit it was found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opsin.commands.provenance import this_code
from opsin.config.identity import identity
from opsin.config.tree import resolve
from opsin.report import evaluations
from opsin.train.experiment import Experiment
from opsin.train.measurements import Measured
from opsin.train.paths import json_leaves


def evaluation_of(config: Any) -> dict[str, Any]:
    """Of a resolved experiment, what says how its splits are evaluated, among what trains it."""
    paths = ("task.", "data.eval_splits")
    return {name: x for name, x in json_leaves(config).items() if name.startswith(paths)}


def write_measured(directory: Path, found: Measured, step: int) -> Path:
    """Writes what a measurement found into ``evaluations/``, under the id of the measurement."""
    return evaluations.write(
        directory,
        identity(found.measurement),
        measurement=resolve(found.measurement),
        step=step,
        metrics=found.metrics,
        seconds=found.seconds,
        commit=this_code()["commit"],
    )


def write_splits(
    directory: Path, experiment: Experiment, metrics: Mapping[str, float], step: int, seconds: float
) -> Path:
    """Writes the metrics of all splits into ``evaluations/``, with how they were evaluated."""
    return evaluations.write(
        directory,
        evaluations.SPLITS,
        measurement=evaluation_of(resolve(experiment)),
        step=step,
        metrics=metrics,
        seconds=seconds,
        commit=this_code()["commit"],
    )
