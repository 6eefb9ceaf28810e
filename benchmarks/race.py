"""Peers by turns: runs that take about as long, and the ratio of each pair of neighbours."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsin.benchmarks.worker import Worker


@dataclass(frozen=True)
class Ratio:
    """Time of one over time of another: median, least and greatest over pairs of runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, base: Sequence[float], other: Sequence[float]) -> Ratio:
        """How many times as long the other takes, from the times of each run.

        >>> Ratio.of([1.0, 2.0, 1.0], [2.0, 2.0, 3.0])
        Ratio(median=2.0, low=1.0, high=3.0)
        """
        ratios = [second / first for first, second in zip(base, other, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Times:
    """Seconds a step of each run of one peer, and what it tells of itself."""

    seconds: list[float]
    about: dict[str, Any]

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(self.seconds)


def add_options(parser: argparse.ArgumentParser, *, runs: int, seconds: float) -> None:
    """Adds the options that every race has; the numbers are the defaults."""
    parser.add_argument("--runs", type=int, default=runs, help="timed runs of each peer")
    parser.add_argument("--seconds", type=float, default=seconds, help="length of a run")
    parser.add_argument("--output", type=Path, default=Path("results"), help="directory")


def take_turns(
    workers: Sequence[Worker], case: str, phase: str, *, runs: int, seconds: float
) -> list[Times]:
    """What each of the workers takes, one run of one after one run of the other.

    Args:
        workers: the processes of the peers.
        case: of all.
        phase: of all.
        runs: how often each is timed, after a step to warm up and one to see how long it takes.
        seconds: how long a run should take; it has at least one step.

    Raises:
        PeerError: one of them cannot run.
    """
    steps, times = [], []
    for worker in workers:
        worker.run(case, phase, 1)
        took, about = worker.run(case, phase, 1)
        steps.append(max(1, round(seconds / took)))
        times.append(Times([], about))
    for _ in range(runs):
        for worker, count, time in zip(workers, steps, times, strict=True):
            time.seconds.append(worker.run(case, phase, count)[0] / count)
    return times
