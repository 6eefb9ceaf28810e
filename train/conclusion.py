"""What is measured of a run after its last step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from jax.sharding import Mesh

from opsin.data.examples import Examples
from opsin.train.evaluate import final_variables
from opsin.train.experiment import Experiment
from opsin.train.logging import Console
from opsin.train.measurements import Measured, measure
from opsin.train.placement import on_own_devices
from opsin.train.program import prepared
from opsin.train.state import State
from opsin.train.tasks.task import Item


class _Stopped(Exception):
    """Ends the work where it stands."""


def measure_all(
    experiment: Experiment,
    state: State,
    mesh: Mesh,
    sets: Mapping[str, Examples],
    console: Console,
    stop: Callable[[], bool],
) -> tuple[Measured, ...] | None:
    """Makes the measurements of an experiment.

    Each process measures the same, on its own devices. None if ``stop`` said so meanwhile: they are
    begun anew when the run resumes.
    """

    def track(items: Iterable[Item], what: str) -> Iterator[Item]:
        for item in console.track(items, what):
            if stop():
                raise _Stopped
            yield item

    if not experiment.measurements:
        return ()
    average, variables = final_variables(state)
    variables = on_own_devices(variables, mesh)
    prepare = partial(prepared, data=experiment.data)
    made = measure(
        experiment.measurements, experiment.task, variables, sets, prepare, track, average=average
    )
    try:
        return tuple(made)
    except _Stopped:
        return None
