"""The measurements of a run: ``RUN/evaluations/ID.json``, one file each.

The id of a measurement is the hash of its resolved options. Nothing here imports jax.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from opsin.data.enclosure import component
from opsin.data.files import from_json, replace_text, to_json
from opsin.data.records import read_record

SPLITS = "splits"
"""Replaces the id for the metrics of all splits, as the task itself evaluates them."""


def path_of(run: Path, name: str) -> Path:
    """The file of a measurement, by its id, or of ``SPLITS``."""
    return run / "evaluations" / f"{component('measurement', name)}.json"


def write(
    run: Path,
    name: str,
    *,
    of: str,
    measurement: Any,
    own: Mapping[str, str],
    step: int,
    metrics: Mapping[str, float],
    seconds: float | None,
    commit: str | None,
) -> Path:
    """Writes a file, whole or not at all.

    Args:
        run: directory of the run.
        name: id of the measurement, or ``SPLITS``.
        of: the id of the task and the splits that were measured.
        measurement: resolved; None for ``SPLITS``.
        own: name and digest of the user's own code that the measurement is made of.
        step: of the weights.
        metrics: ``split/metric`` numbers.
        seconds: that it took; None for what a training did among other things.
        commit: of the code that measured.

    Returns:
        The file.
    """
    content = {
        "of": of,
        "measurement": measurement,
        "own": dict(own),
        "step": step,
        "metrics": to_json(metrics),
        "seconds": seconds,
        "commit": commit,
    }
    path = path_of(run, name)
    path.parent.mkdir(exist_ok=True)
    replace_text(path, json.dumps(content, indent=2) + "\n")
    return path


class Evaluation(TypedDict):
    """A file of ``evaluations``, see ``write``. Those of earlier code lack ``of`` or ``own``."""

    of: NotRequired[str]
    measurement: Any
    own: NotRequired[dict[str, str]]
    step: int
    metrics: dict[str, float | None]
    seconds: float | None
    commit: str | None


def names(run: Path) -> set[str]:
    """The names of all numbers that were measured of a run, those of ``SPLITS`` apart.

    Raises:
        RecordError: a file is damaged.
    """
    paths = [path for path in (run / "evaluations").glob("*.json") if path.stem != SPLITS]
    return set().union(*(_read(path)["metrics"] for path in paths))


def read(
    run: Path,
    name: str,
    step: int,
    of: str | None = None,
    own: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """A measurement of the weights of a step; None if there is none, or only another.

    Args:
        run: directory of the run.
        name: id of the measurement, or ``SPLITS``.
        step: of the weights.
        of: the id of the task and the splits that it has to be of; None takes any.
        own: the user's own code that it has to be made by; None takes any.

    Raises:
        RecordError: the file is damaged.
    """
    path = path_of(run, name)
    if not path.exists() or (found := _read(path))["step"] != step:
        return None
    if of not in (None, found.get("of")) or own not in (None, found.get("own", {})):
        return None
    numbers = {name: float(x) for name, x in from_json(found["metrics"]).items()}
    return {**found, "metrics": numbers}


def _read(path: Path) -> Evaluation:
    return read_record(path, Evaluation, "mv it away, and it is measured again")
