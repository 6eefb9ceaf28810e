"""Measurements of a trained network: how a run at its end and ``opsin evaluate`` call them.

The measurements themselves are in ``analysis``, which nothing here imports: they are objects of an
``Experiment``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from jaxtyping import PyTree

from opsin.data.augment import Batch
from opsin.data.examples import Examples
from opsin.train.settings import SettingError

Item = TypeVar("Item")
TaskT = TypeVar("TaskT")


class Track(Protocol):
    """Shows the progress of a loop."""

    def __call__(self, items: Iterable[Item], what: str) -> Iterable[Item]:
        """The items themselves; ``what`` is the label of the progress bar."""
        ...


Prepare = Callable[[Batch], Batch]
"""From a batch of a source to what the model sees outside training."""


@dataclass(frozen=True, eq=False)
class Subject(Generic[TaskT]):
    """A trained network, and what it takes to measure it.

    Attributes:
        task: what was learned.
        variables: parameters and mutable variables of its model, on devices of this process.
        sets: the training set as ``"train"``, and those that are evaluated by name.
        prepare: from a batch to what the model sees in evaluation.
        track: shows the progress.
    """

    task: TaskT
    variables: tuple[PyTree, PyTree]
    sets: Mapping[str, Examples]
    prepare: Prepare
    track: Track


Measurement = Callable[[Subject[Any]], Mapping[str, float]]
"""``subject -> {"split/metric": number}``, a frozen dataclass. It may have ``check(task, sets)``,
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
    measurements: Sequence[Measurement], subject: Subject[Any], *, average: str = ""
) -> Iterator[Measured]:
    """Makes one measurement after the other.

    Args:
        measurements: to make.
        subject: the trained network that is measured.
        average: the end of the name of a split where the variables are a moving average:
            ``"_ema"`` makes ``test_ema/nll`` of ``test/nll``.
    """
    for measurement in measurements:
        since = time.monotonic()
        found = _numbers(measurement, measurement(subject))
        split_and_name = ((name.partition("/"), value) for name, value in found.items())
        metrics = {f"{s}{average}/{metric}": value for (s, _, metric), value in split_and_name}
        yield Measured(measurement, metrics, time.monotonic() - since)


def _numbers(measurement: Measurement, found: Any) -> dict[str, float]:
    """What a measurement gave, as numbers of Python.

    Raises:
        SettingError: it is no mapping from ``split/metric`` to single numbers.
    """
    name = type(measurement).__name__
    if not isinstance(found, Mapping):
        raise SettingError(
            f'{name} gives {type(found).__name__}: a measurement gives {{"test/score": number}}'
        )
    numbers = {}
    for metric, value in found.items():
        if not isinstance(metric, str) or "/" not in metric:
            raise SettingError(f"{name} calls a number {metric!r}: call it split/metric")
        shape = getattr(value, "shape", ())
        try:
            numbers[metric] = float(value if shape == () else "an array")
        except (TypeError, ValueError) as error:
            told = f"an array {list(shape)}" if shape else type(value).__name__
            raise SettingError(f"{name} gives {told} as {metric}: give one number") from error
    return numbers
