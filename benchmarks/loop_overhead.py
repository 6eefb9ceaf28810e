"""What the loop costs: wall time of ``fit`` over that of its bare compiled step.

    python -m opsin.benchmarks.loop_overhead

Both run the same program on the same images, alternately, without evaluation, checkpoints or
pictures in between; the loop also feeds, logs every ten steps and watches for signals. More rows:

- ten steps of LeNet-5 in one dispatch, over ten dispatches;
- images that grain reads from ``tfds:cifar10``, where they are, over one batch that is there
  already. On a CPU that is above all the work of decoding, which takes its share of the cores that
  train;
- the stall alone: the time from the end of a step until the next batch is there, over a step.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from opsin.benchmarks.cases import CASES
from opsin.benchmarks.opsin_peer import bare_steps, compiled
from opsin.benchmarks.race import Ratio
from opsin.config.tree import resolve
from opsin.data.examples import DataError
from opsin.train.experiment import Experiment
from opsin.train.host.memory import keep_freed_memory
from opsin.train.loop import fit
from opsin.train.sets import open_training

Measure = Callable[[int], float]
"""Seconds a step, over so many steps."""


def bare(experiment: Experiment) -> Measure:
    """The compiled program of a run, called in a plain Python loop."""
    run = bare_steps(experiment)

    def measure(steps: int) -> float:
        began = time.perf_counter()
        run(steps)
        return (time.perf_counter() - began) / steps

    return measure


def looped(experiment: Experiment) -> Measure:
    """The steps inside ``fit``, from the end of the first to the end of the last."""

    def measure(steps: int) -> float:
        times: list[float] = []

        def stop() -> bool:
            times.append(time.perf_counter())
            return len(times) > steps

        with tempfile.TemporaryDirectory() as directory:
            fit(experiment, Path(directory), config=resolve(experiment), stop=stop, progress=False)
        # ``stop`` is called once a step is dispatched; over many steps it keeps the device's pace.
        return (times[-1] - times[0]) / (len(times) - 1)

    return measure


def stalled(experiment: Experiment) -> Measure:
    """How long the device had nothing to do a step, for want of a batch.

    As in ``fit``, a batch is fetched while one step is under way, and no more than one.
    """
    feed, program, store, dispatch = compiled(experiment)
    length = experiment.loop.steps_per_dispatch
    state = program.init()

    def ended(metrics: PyTree) -> float:
        jax.block_until_ready(metrics)
        return time.perf_counter()

    def measure(steps: int) -> float:
        nonlocal state  # donated: each call gives up the one before
        idle = 0.0
        items = feed.take(length, length)
        with ThreadPoolExecutor(max_workers=1) as watch:
            for _ in range(0, steps, length):
                state, metrics = dispatch(state, store, items, np.int32(length))
                end = watch.submit(ended, metrics)
                items = feed.take(length, length)
                idle += max(0.0, time.perf_counter() - end.result())
        return idle / steps

    return measure


def report(title: str, base: Measure, other: Measure, *, steps: int, runs: int) -> None:
    """Prints a row: medians, the median ratio and its range."""
    times = [(base(steps), other(steps)) for _ in range(runs)]
    first, second = zip(*times, strict=True)
    ratio = Ratio.of(first, second)
    print(
        f"{title:<54}{statistics.median(first) * 1e3:>8.1f}{statistics.median(second) * 1e3:>8.1f}"
        f"{ratio.median:>8.3f}  {ratio.low:.3f} to {ratio.high:.3f}",
        flush=True,
    )


def main() -> None:
    """Prints a row a comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    keep_freed_memory()  # as `opsin run` does
    lenet, resnet = CASES["lenet5"], CASES["resnet20"]
    print(f"{'':<54}{'one ms':>8}{'two ms':>8}{'ratio':>8}  range over {runs} runs")
    for case, steps in ((lenet, 100), (resnet, 20)):
        experiment = case.experiment()
        report(
            f"{case.title}: bare, in the loop",
            bare(experiment),
            looped(experiment),
            steps=steps,
            runs=runs,
        )
    report(
        f"{lenet.title}: 1 and 10 steps a dispatch",
        bare(lenet.experiment()),
        bare(lenet.experiment(steps_per_dispatch=10)),
        steps=100,
        runs=runs,
    )
    experiment = resnet.experiment()
    data = replace(experiment.data, source="tfds:cifar10", resident_megabytes=0)
    streamed = replace(experiment, data=data)
    try:
        open_training(streamed)
    except DataError as error:
        print(f"no row for streamed images: {error}")
    else:
        title = f"{resnet.title}: one batch, tfds:cifar10 streamed"
        base = bare(streamed)
        report(title, base, looped(streamed), steps=40, runs=runs)
        title = f"{resnet.title}: a step, stalled for a streamed batch"
        report(title, base, stalled(streamed), steps=40, runs=runs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak memory of this process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
