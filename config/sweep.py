"""An ablation: every arm under every seed, finished runs skipped, failed ones marked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opsin.config.identity import evaluation_id, identity
from opsin.config.table import Arm, Key
from opsin.config.tree import override
from opsin.errors import ConfigError
from opsin.train.experiment import Experiment

CUSTOM = "custom"
"""What is no arm of its ablation."""


@dataclass(frozen=True)
class Planned:
    """One run of a sweep. Runs that differ only in their measurements share an id and directory."""

    arm: str
    seed: int
    experiment: Experiment
    id: str
    measurement: str | None = None


def expand(
    experiment: Experiment,
    arms: Sequence[Arm],
    seeds: int,
    overrides: Mapping[str, Any] | None = None,
) -> list[Planned]:
    """Every arm under seeds 0 … ``seeds`` − 1; all arms of one seed come before the next seed.

    Args:
        experiment: what the arms change.
        arms: names and overrides.
        seeds: how many.
        overrides: for every arm, on top of its own.

    Raises:
        ConfigError: two arms of the same name, or that run and measure the same thing.
    """
    names = [arm.name for arm in arms]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two arms of this sweep are called {double[0]!r}: rename one")
    planned: dict[tuple[str, str | None], Planned] = {}
    for seed, arm in itertools.product(range(seeds), arms):
        changed = override(experiment, arm.under(seed) | dict(overrides or {}))
        key = identities(changed)
        run = Planned(arm.name, seed, changed, *key)
        twin = planned.setdefault(key, run)
        if twin is not run:
            alike = evaluation_id(run.experiment) == evaluation_id(twin.experiment)
            way_out = (
                "give them different overrides" if alike else "measure it by SampledBy, or seed"
            )
            raise ConfigError(
                f"{run.arm} with seed {run.seed} and {twin.arm} with seed {twin.seed} are one and "
                f"the same run{'' if alike else ', measured in two ways'}: {way_out}"
            )
    return list(planned.values())


def pinned(experiment: Experiment) -> Experiment:
    """The experiment with the sha256 of all files of weights: other bytes are another run.

    Raises:
        WeightsError: if a file is needed for that and missing.
    """
    weights = experiment.weights
    if isinstance(weights, tuple):
        return replace(experiment, weights=tuple(each.known() for each in weights))
    return replace(experiment, weights=weights and weights.known())


def identities(experiment: Experiment) -> tuple[str, str | None]:
    """The id of a run and that of its measurements, or None: two runs of a sweep differ in them."""
    return identity(pinned(experiment)), "+".join(map(identity, experiment.measurements)) or None


def key_of(experiment: Experiment) -> Key:
    """The key of the row of an experiment."""
    return Key(*identities(experiment), evaluation_id(experiment))


def identity_of(experiment: Experiment, arms: Sequence[Arm]) -> Callable[[str, int], Key]:
    """``(arm, seed) -> key`` of the runs of a sweep without overrides."""
    by_name = {arm.name: arm for arm in arms}
    return lambda arm, seed: key_of(override(experiment, by_name[arm].under(seed)))


def arm_of(experiment: Experiment, base: Experiment, arms: Sequence[Arm]) -> str:
    """The arm that an experiment belongs to, under any seed; ``CUSTOM`` if to none."""
    target, of = key_of(experiment), identity_of(base, arms)
    return next((a.name for a in arms if of(a.name, experiment.seed) == target), CUSTOM)


def share(planned: Sequence[Planned], index: int, of: int) -> Iterator[Planned]:
    """The share of one of ``of`` machines: every ``of``-th directory from ``index`` on.

    Runs that share a directory are in one share, as one process at a time may write to it.

    Raises:
        ConfigError: if the index is not in 0 … of − 1.
    """
    if not 0 <= index < of:
        raise ConfigError(f"--index {index} --of {of}: the index counts from 0 to {of - 1}")
    mine = set(list(dict.fromkeys(run.id for run in planned))[index::of])
    return (run for run in planned if run.id in mine)
