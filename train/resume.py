"""Where a run begins: at a new state, or at the one that was saved."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from opsin.data.examples import check_same_data
from opsin.data.files import aside, writing
from opsin.train.best import BEST
from opsin.train.checkpoint import Checkpoints, saved_step
from opsin.train.experiment import Experiment
from opsin.train.feed import Feed
from opsin.train.host.capacity import check_images, check_state
from opsin.train.host.processes import is_first
from opsin.train.program import Program
from opsin.train.sets import Sets
from opsin.train.sharding import batch_shards
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
    check_state(program.state)
    spec = feed.spec
    check_images(spec.batch, spec.batch_size, batch_shards(spec.mesh), "data.batch")
    if checkpoints.latest() is None:
        if is_first():
            _keep_earlier(checkpoints.directory.parent)
        state = new_state(experiment, program, spec.batch["image"].shape[1:])
        return state, {"seconds": 0.0, "window": None}
    state, saved = checkpoints.restore(program.state, config, essence)
    check_same_data(saved.get("data", {}), feed.description() | sets.description())
    feed.seek(saved["position"])
    return state, saved


def new_state(experiment: Experiment, program: Program, image: tuple[int, ...]) -> State:
    """The state before the first step: weights of files, and random ones of the seed elsewhere.

    ``image`` is the shape of a training image. Raises WeightsError for a file that is missing or
    does not fit.
    """
    state = start_from(experiment.weights, program.init(), experiment.preprocessing(image))
    if experiment.weights:
        state = replace(state, opt_state=program.init_optimizers(state.params))
    return state


def _keep_earlier(directory: Path) -> None:
    """Keeps what belongs to states that are gone, under other names, and says so.

    Else a new run would be compared to a best state that is not of it, would empty the log, and
    what was measured of another state would be taken for its own.
    """
    best, log = directory / BEST, directory / "metrics.jsonl"
    measured = directory / "evaluations"
    left = [best] if saved_step(best) is not None else []
    left += [log] if log.is_file() and log.stat().st_size else []
    left += [measured] if measured.is_dir() and any(measured.iterdir()) else []
    kept = [aside(path, "earlier") for path in left]
    with writing(directory):
        for path, new in zip(left, kept, strict=True):
            path.rename(new)
    if kept:
        names = " and ".join(path.name for path in kept)
        print(
            f"{directory} has no checkpoint, so training begins anew: what was there of an earlier "
            f"start is kept as {names}",
            file=sys.stderr,
        )
