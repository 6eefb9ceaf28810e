"""Where a run begins: at a new state, or at the one that was saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opsin.data.examples import check_same_data
from opsin.train.checkpoint import Checkpoints
from opsin.train.experiment import Experiment
from opsin.train.feed import Feed
from opsin.train.host.capacity import check_state
from opsin.train.program import Program
from opsin.train.sets import Sets
from opsin.train.state import State
from opsin.train.weights import start_from


def first_state(
    experiment: Experiment,
    program: Program,
    feed: Feed,
    sets: Sets,
    checkpoints: Checkpoints,
    config: dict[str, Any],
    essence: Callable[[Any], Any],
) -> tuple[State, dict[str, Any]]:
    """A new state or the one that is saved, with its metadata; moves the feed to its position."""
    check_state(program.state, feed.spec.batch)
    if checkpoints.latest() is None:
        images = experiment.preprocessing(feed.spec.batch["image"].shape[1:])
        state = start_from(experiment.weights, program.init(), images)
        return state, {"seconds": 0.0, "window": None}
    state, saved = checkpoints.restore(program.state, config, essence)
    check_same_data(saved.get("data", {}), feed.description() | sets.description())
    feed.seek(saved["position"])
    return state, saved
