"""What is measured of a trained network, as a run at its end and ``opsin evaluate`` call it.

The measurements themselves are in ``analysis``, of which nothing here knows: they are objects of an
``Experiment``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import PyTree

from opsin.data.examples import Examples
from opsin.train.tasks.task import Prepare, Track

Measurement = Callable[
    [Any, PyTree, PyTree, Mapping[str, Examples], Prepare, Track], Mapping[str, float]
]
"""``(task, params, mutable, sets, prepare, track) -> {"split/metric": number}``, a frozen
dataclass. ``sets`` are the training set as ``"train"``, and those that are evaluated by name;
``prepare`` makes of a batch what the model sees in evaluation. It may have ``check(task, sets)``,
which raises, before anything is trained, what would keep it from being made afterwards."""


@dataclass(frozen=True)
class Measured:
    """What a measurement found.

    Attributes:
        measurement: that was made.
        metrics: ``split/metric`` numbers.
        seconds: that it took.
    """

    measurement: Measurement
    metrics: dict[str, float]
    seconds: float


def check_measurements(
    measurements: Sequence[Measurement], task: Any, sets: Mapping[str, Examples]
) -> None:
    """Raises what the checks of the measurements raise, such as SettingError."""
    for measurement in measurements:
        check = getattr(measurement, "check", None)
        if check is not None:
            check(task, sets)


def measure(
    measurements: Sequence[Measurement],
    task: Any,
    variables: tuple[PyTree, PyTree],
    sets: Mapping[str, Examples],
    prepare: Prepare,
    track: Track,
    *,
    average: str = "",
) -> Iterator[Measured]:
    """Makes one measurement after the other.

    Args:
        measurements: to make.
        task: what was learned.
        variables: parameters and mutable variables, on devices of this process.
        sets: name → examples.
        prepare: from a batch to what the model sees.
        track: shows how far it has come.
        average: the end of the name of a split where the variables are a moving average:
            ``"_ema"`` makes ``test_ema/nll`` of ``test/nll``.
    """
    for measurement in measurements:
        since = time.monotonic()
        found = measurement(task, *variables, sets, prepare, track)
        split_and_name = ((name.partition("/"), value) for name, value in found.items())
        metrics = {f"{s}{average}/{metric}": value for (s, _, metric), value in split_and_name}
        yield Measured(measurement, metrics, time.monotonic() - since)
