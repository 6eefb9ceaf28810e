"""What is measured of a run after its last step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from jax.sharding import Mesh

from data.examples import Examples
from train.evaluate import final_variables
from train.logging import Console
from train.placement import on_own_devices
from train.state import State
from train.tasks.task import Item, Prepare, Task


class Stopped(Exception):
    """Raised where work after the last step is to stop; it begins anew when the run resumes."""


def measure(
    task: Task,
    state: State,
    mesh: Mesh,
    sets: Mapping[str, Examples],
    prepare: Prepare,
    console: Console,
    stop: Callable[[], bool],
) -> dict[str, float]:
    """What is measured after the last step, as ``split/metric`` numbers.

    Each process measures the same, on its own devices.
    """

    def track(items: Iterable[Item], what: str) -> Iterator[Item]:
        for item in console.track(items, what):
            if stop():
                raise Stopped
            yield item

    average, variables = final_variables(state)
    params, mutable = on_own_devices(variables, mesh)
    numbers = {}
    for final in task.final:
        for name, value in final(task, params, mutable, sets, prepare, track).items():
            split, _, metric = name.partition("/")
            numbers[f"{split}{average}/{metric}"] = value
    return numbers
