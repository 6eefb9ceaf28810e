"""What a new run says of itself: its weights, and what is not as frozen as it was asked to be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

from opsin.models.layers import BatchNorm
from opsin.train.experiment import Experiment
from opsin.train.feed import FeedSpec
from opsin.train.paths import flatten
from opsin.train.preparation import augmented
from opsin.train.state import State
from opsin.train.tasks.task import Batch, Player
from opsin.train.weights import Weights

SHOWN = 3
"""Names in a line; of more, their number."""


def said_of_start(experiment: Experiment, state: State, feed: FeedSpec) -> Iterator[str]:
    """Lines for people about a run that begins.

    Args:
        experiment: what begins.
        state: its shapes.
        feed: its training images.
    """
    if feed.examples < feed.batch_size:
        yield (
            f"data.batch={feed.batch_size} is more than the {feed.examples} training images: each "
            "step takes some of them several times"
        )
    chosen = experiment.weights
    files = chosen if isinstance(chosen, tuple) else () if chosen is None else (chosen,)
    variables = flatten({"params": state.params, **state.mutable})
    for weights in files:
        taken = sum(map(weights.fills, variables))
        part = f" of {weights.part!r}" if weights.part else ""
        yield f"weights: {taken} arrays{part} from {_named(weights)}"
        yield from _resized(weights, feed)
    left = [x for x in variables if not any(weights.fills(x) for weights in files)]
    if files:
        yield f"weights: random is {_some([x.removeprefix('params/') for x in left])}"
    for player in experiment.task.players():
        optimizer = player.optimizer or experiment.optimizer
        for pattern, share in optimizer.unfreeze:
            yield f"optimizer.unfreeze: {pattern!r} is held for {share:.0%} of the steps"
        held = optimizer.freeze + tuple(pattern for pattern, _ in optimizer.unfreeze)
        yield from _thawed(experiment, player, held, state, feed.batch)


def _named(weights: Weights) -> str:
    return f"{Path(weights.path)} (sha256 {(weights.known().sha256 or '')[:12]})"


def _resized(weights: Weights, feed: FeedSpec) -> Iterator[str]:
    """A line if the network of a file saw images of another size; convolutions take any."""
    sizes = [weights.seen().image[:2], feed.batch["image"].shape[1:3]]
    there, here = ("x".join(map(str, size)) for size in sizes)
    if there != here:
        yield f"weights: {Path(weights.path)} saw images of {there}, these are {here}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more if names else "nothing"


def _thawed(
    experiment: Experiment,
    player: Player,
    freeze: tuple[str, ...],
    state: State,
    batch: Mapping[str, Any],
) -> Iterator[str]:
    """A line if batch norms below frozen paths normalise by the batch all the same."""
    statistics = flatten(state.mutable).keys()
    frozen = {x.rpartition("/")[0] for x in statistics if any(re.search(p, x) for p in freeze)}
    if not frozen:
        return
    seen = _normalising(experiment, player, state, batch)
    found = [x for x in frozen if any(f"/{x}".endswith(f"/{path}") for path in seen)]
    if found:
        names = _some([x.partition("/")[2] for x in found])
        yield (
            f"optimizer: {names} still normalise by the batch, so that the output of what "
            "is frozen depends on it: partial(batch_norm, frozen_statistics=True) as their norm "
            "takes the running statistics"
        )


def _normalising(
    experiment: Experiment, player: Player, state: State, batch: Mapping[str, Any]
) -> set[str]:
    """Paths of the batch norms that take their statistics from the batch, in a traced loss."""
    found = set()

    def look(method: Any, args: Any, options: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, BatchNorm | nn.BatchNorm):
            given = options.get("use_running_average", args[1] if len(args) > 1 else None)
            if not (module.use_running_average or given):
                found.add("/".join(module.path))
        return method(*args, **options)

    def loss(params: PyTree, mutable: PyTree, batch: Batch, key: Any) -> Any:
        images = augmented(key, batch, data=experiment.data)
        return player.loss(params, mutable, images, key, 0)[0]

    with nn.intercept_methods(look):
        jax.eval_shape(loss, state.params, state.mutable, dict(batch), state.key)
    return found
