"""What is measured of a run after its last step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from jax.sharding import Mesh

from data.examples import Examples
from train.evaluate import final_variables
from train.experiment import Experiment
from train.logging import Console
from train.measurements import Measured, measure
from train.placement import on_own_devices
from train.program import prepared
from train.state import State
from train.tasks.task import Item


class Stopped(Exception):
    """Raised where work after the last step is to stop; it begins anew when the run resumes."""


def measure_all(
    experiment: Experiment,
    state: State,
    mesh: Mesh,
    sets: Mapping[str, Examples],
    console: Console,
    stop: Callable[[], bool],
) -> tuple[Measured, ...]:
    """Makes the measurements of an experiment.

    Each process measures the same, on its own devices.

    Raises:
        Stopped: if ``stop`` says so.
    """

    def track(items: Iterable[Item], what: str) -> Iterator[Item]:
        for item in console.track(items, what):
            if stop():
                raise Stopped
            yield item

    if not experiment.measurements:
        return ()
    average, variables = final_variables(state)
    variables = on_own_devices(variables, mesh)
    prepare = partial(prepared, data=experiment.data)
    made = measure(
        experiment.measurements, experiment.task, variables, sets, prepare, track, average=average
    )
    return tuple(made)
