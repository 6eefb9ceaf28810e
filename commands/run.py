"""``opsin run``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from tyro.conf import Suppress

from opsin.commands.endings import after_signal
from opsin.commands.groups import Output, Runtime, named
from opsin.commands.runtime import given
from opsin.commands.values import Address, Index, Name, Overrides, ProcessCount, Window, number
from opsin.config import catalogue
from opsin.config.tree import override
from opsin.errors import ConfigError


@dataclass(frozen=True)
class Several:
    """Several processes: one command on each machine, the same but for --process.

    See docs/pods.md. Under srun and on GKE's TPUs the processes find one another without options;
    on other clusters that jax knows, --processes auto does it.

    Attributes:
        coordinator: address of process 0
        processes: how many, or auto
        process: which this is, counted from 0
        timeout: seconds that other processes may take to join, or be silent
    """

    coordinator: Address[str | None] = None
    processes: ProcessCount[int | None] = 1
    process: Index[int | None] = None
    timeout: Annotated[float, number(0, 7 * 24 * 3600, "a number of seconds")] = 100.0


def run(
    name: Name,
    overrides: Overrides = (),
    /,
    *,
    smoke: bool = False,
    profile: Window[tuple[int, int] | None] = None,
    output: Output,
    processes: Several,
    runtime: Runtime,
    began: Suppress[float | None] = None,
) -> int:
    """Trains one experiment.

    Args:
        smoke: train two steps, to see that it runs
        profile: trace the steps A to B, in whole dispatches
        began: ``time.monotonic()`` of the command, to measure its start-up
    """
    asked = given(processes.coordinator, processes.processes, processes.process)
    runtime.set_up(alone=asked is None)
    if asked is None:
        return _train(name, overrides, smoke, profile, output, began)
    from opsin.train.host.processes import Group, joined

    with joined(Group(*asked, timeout=processes.timeout)):
        runtime.require()
        return _train(name, overrides, smoke, profile, output, began)


def _train(
    asked: str,
    typed: tuple[str, ...],
    smoke: bool,
    profile: tuple[int, int] | None,
    output: Output,
    began: float | None,
) -> int:
    name, module, base, overrides = named(asked, typed)
    if smoke and not hasattr(module, "SMOKE"):
        raise ConfigError(f"{name} has no SMOKE, overrides that make it take seconds")
    experiment = override(base, (module.SMOKE if smoke else {}) | overrides)
    # A mistake is answered before these are imported, which takes a moment.
    from opsin.commands.runs import execute
    from opsin.config.sweep import CUSTOM, arm_of
    from opsin.train.host.processes import is_first
    from opsin.train.host.profiling import Steps

    arm = arm_of(experiment, base, catalogue.arms(module))
    if arm == CUSTOM:  # what lists of runs tell it from others by
        arm = " ".join(word for word in typed if not word.startswith("seed=")) or CUSTOM
    steps = Steps(*profile) if profile else None
    outcome = execute(name, arm, experiment, replace(output.options(), began=began, profile=steps))
    if not is_first():
        return after_signal(outcome)
    if not outcome.finished:
        print(f"stopped at step {outcome.step}, saved; the same command resumes from there")
    if outcome.trained_before:
        print(outcome.read_again())
    for metric, value in outcome.metrics.items():
        if metric.count("/") == 1:
            print(f"{metric:<24} {value:.4f}")
    for picture in sorted(outcome.directory.rglob("*.png")):
        print(picture)
    print(outcome.directory)
    return after_signal(outcome)
