"""What is left of a run after its last step: measurements, and the numbers that sum it up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from opsin.data.examples import Examples
from opsin.data.files import read_lines
from opsin.pictures import figures
from opsin.train.evaluate import final_variables
from opsin.train.experiment import Experiment
from opsin.train.host.accounting import median_rates
from opsin.train.logging import Console, last_evaluation
from opsin.train.measurements import Item, Measured, Measurement, Subject, measure
from opsin.train.placement import on_own_devices
from opsin.train.preparation import prepared
from opsin.train.state import State
from opsin.train.tasks.task import Task


@dataclass(frozen=True)
class Result:
    """How a call of ``train.loop.fit`` ended.

    Attributes:
        finished: False if it was asked to stop before the last step.
        step: steps taken in all, earlier calls included.
        metrics: final ``split/metric`` numbers of the log, measurements included, with ``seconds``,
            ``steps``, ``parameters``, ``model_flops_per_step`` and the median speed (see
            ``Work.rates``); empty in processes that do not write.
        measured: what was measured now.
    """

    finished: bool
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()


class _Stopped(Exception):
    """Ends the work where it stands."""


def measure_all(
    measurements: Sequence[Measurement],
    experiment: Experiment,
    state: State,
    mesh: Mesh,
    sets: Mapping[str, Examples],
    console: Console,
    stop: Callable[[], bool],
    keep: Callable[[Measured], None],
) -> tuple[Measured, ...] | None:
    """Makes measurements of an experiment, and has each kept as soon as it is made.

    Each process measures the same, on its own devices. None if ``stop`` said so meanwhile: the one
    at which it stood is begun anew when the run resumes.
    """

    def track(items: Iterable[Item], what: str) -> Iterator[Item]:
        for item in console.track(items, what):
            if stop():
                raise _Stopped
            yield item

    if not measurements:
        return ()
    measured = []
    average, variables = final_variables(state)
    variables = on_own_devices(variables, mesh)
    prepare = partial(prepared, data=experiment.data)
    subject = Subject(experiment.task, variables, sets, prepare, track)
    try:
        for each in measure(measurements, subject, average=average):
            keep(each)
            measured.append(each)
    except _Stopped:
        return None
    return tuple(measured)


def summary(
    task: Task, state: State, directory: Path, cost: Mapping[str, float]
) -> dict[str, float]:
    """The numbers that a run ends with, from its log and its last state; draws its curve too."""
    metrics = directory / "metrics.jsonl"
    figures.save(figures.training_curve(metrics, task.curves), directory / "curve.png")
    return {
        **last_evaluation(metrics),
        "steps": int(state.step),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        **cost,
        **median_rates(read_lines(metrics)),
    }
