"""What ``evaluations/`` of a run keeps, and by which commit it was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from opsin.commands.provenance import evaluating_code, named_files, own_code
from opsin.config.identity import evaluation_id, identity
from opsin.config.tree import resolve
from opsin.report import evaluations
from opsin.train.experiment import Experiment
from opsin.train.measurements import Measured, Measurement


@dataclass(frozen=True)
class Code:
    """The code that measures, read before it does: its files may change meanwhile.

    Attributes:
        commit: of this house, or None.
        own: of the user's own in how splits are evaluated, name → digest, and of files that are
            named there without their sha256.
        by_id: likewise of each measurement, by its id.
    """

    commit: str | None
    own: Mapping[str, str]
    by_id: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        measurements: Iterable[Measurement],
        commit: str | None = None,
    ) -> Code:
        """That of now."""
        own = evaluating_code(experiment)
        by_id = {
            identity(each): {**own, **own_code(each), **named_files(each)} for each in measurements
        }
        return cls(commit, own, by_id)


def write_measured(
    directory: Path, experiment: Experiment, found: Measured, step: int, code: Code
) -> Path:
    """Writes what a measurement found into ``evaluations/``, under the id of the measurement."""
    name = identity(found.measurement)
    return evaluations.write(
        directory,
        name,
        of=evaluation_id(experiment),
        measurement=resolve(found.measurement),
        own=code.by_id[name],
        step=step,
        metrics=found.metrics,
        seconds=found.seconds,
        commit=code.commit,
    )


def write_splits(
    directory: Path,
    experiment: Experiment,
    metrics: Mapping[str, float],
    *,
    step: int,
    seconds: float | None,
    code: Code,
) -> Path:
    """Writes the metrics of all splits into ``evaluations/``."""
    return evaluations.write(
        directory,
        evaluations.SPLITS,
        of=evaluation_id(experiment),
        measurement=None,
        own=code.own,
        step=step,
        metrics=metrics,
        seconds=seconds,
        commit=code.commit,
    )
