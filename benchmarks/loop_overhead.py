"""What the loop costs: wall time of ``fit`` over that of its bare compiled step.

    python -m benchmarks.loop_overhead

Both run the same program on the same resident images, alternately, without evaluation, checkpoints
or pictures in between; the loop also feeds, logs every ten steps and watches for signals.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import numpy as np

from data.sources import synthetic
from experiments.config import resolve
from models.classification.lenet import LeNet5
from models.classification.resnet import ResNet20
from train.experiment import Data, Experiment, Loop
from train.feed import Feed
from train.loop import fit, open_training
from train.optim import Optimizer
from train.program import build
from train.tasks.classify import Classify

CASES = {
    "LeNet-5, 128 of 28x28x1": (LeNet5(), 128, 28, 1, 100),
    "ResNet-20, 64 of 32x32x3": (ResNet20(), 64, 32, 3, 20),
}


def bare(experiment: Experiment, steps: int) -> float:
    """Seconds a step of the compiled program, called in a plain Python loop."""
    data = experiment.data
    feed = Feed(open_training(experiment), data.batch, experiment.seed, data.resident_megabytes)
    program = build(experiment, feed.batch, Fraction(feed.examples, data.batch), feed.fetch)
    store = feed.store(program.mesh)
    dispatch = program.compile(store, feed.abstract_items(1, program.mesh))
    state, items = program.init(), feed.take(1, 1, program.mesh)
    state, _ = dispatch(state, store, items, np.int32(1))
    jax.block_until_ready(state)
    began = time.perf_counter()
    for _ in range(steps):
        state, _ = dispatch(state, store, items, np.int32(1))
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / steps


def looped(experiment: Experiment, steps: int) -> float:
    """Seconds a step inside ``fit``, from the end of the first step to the end of the last."""
    times: list[float] = []

    def stop() -> bool:
        times.append(time.perf_counter())
        return len(times) > steps

    with tempfile.TemporaryDirectory() as directory:
        fit(experiment, Path(directory), config=resolve(experiment), stop=stop, progress=False)
    # ``stop`` is asked once a step is dispatched; over many steps that paces with the device.
    return (times[-1] - times[0]) / (len(times) - 1)


def main() -> None:
    """Prints a row a case: the median ratio and its range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"{'case':<28}{'bare ms':>10}{'loop ms':>10}{'ratio':>8}  range over {runs} runs")
    for name, (model, batch, size, channels, steps) in CASES.items():
        experiment = Experiment(
            task=Classify(model=model),
            data=Data(source=partial(synthetic, n=2048, size=size, channels=channels), batch=batch),
            optimizer=Optimizer(),
            loop=Loop(
                duration=f"{2 * steps} steps",
                evaluate_every=f"{2 * steps} steps",
                checkpoint_every=f"{2 * steps} steps",
                previews=0,
            ),
        )
        pairs = [(bare(experiment, steps), looped(experiment, steps)) for _ in range(runs)]
        ratios = [loop / step for step, loop in pairs]
        step, loop = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
        print(
            f"{name:<28}{step:>10.1f}{loop:>10.1f}{statistics.median(ratios):>8.3f}"
            f"  {min(ratios):.3f} to {max(ratios):.3f}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak memory of this process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
