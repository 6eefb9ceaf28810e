"""A run, opened again from its directory alone: its data set is not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PyTree

from opsin.commands.runs import RunError
from opsin.config.identity import essence_of_resolved
from opsin.config.names import UntrustedError, allowed_code
from opsin.config.tree import rebuild
from opsin.data.enclosure import check_enclosed
from opsin.errors import ConfigError
from opsin.report.run_files import read_config
from opsin.train.best import BEST
from opsin.train.checkpoint import Checkpoints, saved_step
from opsin.train.experiment import Experiment
from opsin.train.feed import FeedSpec
from opsin.train.program import Program, build
from opsin.train.resume import new_state
from opsin.train.sharding import Parallel, make_mesh
from opsin.train.state import State


@dataclass(frozen=True)
class Trained:
    """What a run knows.

    Attributes:
        experiment: rebuilt from its ``config.json``.
        step: of its newest checkpoint.
        params: on the host; by default their moving average, if there is one.
        mutable: the other variables of the model, likewise.
        image: height, width and channels of the training images.
        class_names: of its data, maybe none.
        resized: whether the training images were resized, from any size.
    """

    experiment: Experiment
    step: int
    params: PyTree
    mutable: PyTree
    image: tuple[int, int, int]
    class_names: tuple[str, ...]
    resized: bool


@dataclass(frozen=True)
class Reopened:
    """A run as its newest checkpoint left it, laid out on one device.

    Attributes:
        experiment: rebuilt from its ``config.json``.
        program: its programs, none of them compiled yet.
        state: of the checkpoint.
        described: what its data were like.
    """

    experiment: Experiment
    program: Program
    state: State
    described: dict[str, Any]


def reopen(
    run: Path,
    present: Callable[[Experiment], Experiment] = lambda x: x,
    *,
    allow: Sequence[str] = (),
) -> Reopened:
    """Opens the newest checkpoint of a run's directory, or that of its best state if it keeps one.

    Args:
        run: the directory.
        present: from the experiment of its config to the same as it is to be evaluated.
        allow: modules and files of other code that the run may name, as they are typed.

    Raises:
        RunError: if this is no run, this code cannot make its experiment, or it names other code
            that is not allowed.
        RecordError: if its config.json is damaged.
        CheckpointError: if it has no checkpoint that can be read, or one of another config.
        DataError: if something in the directory leads out of it.
    """
    if not (run / "config.json").exists():
        raise RunError(
            f"{run} is no directory of a run, it has no config.json: give runs/NAME/ID, which "
            "`opsin run` prints last"
        )
    check_enclosed(run)
    saved, allowed = read_config(run), allowed_code(allow)
    try:
        experiment = present(rebuild(saved, allowed))
    except UntrustedError as error:
        raise RunError(f"{run} names {error}") from error
    except ConfigError as error:
        raise RunError(
            f"{run} was trained by other code: {error}; check out the commit in its env.json"
        ) from error
    if not isinstance(experiment, Experiment):
        raise RunError(f"{run} is no directory of a run: its config.json holds no experiment")
    best = experiment.loop.keep_best and saved_step(run / BEST) is not None
    with Checkpoints(run / (BEST if best else "checkpoints"), create=False) as checkpoints:
        metadata = checkpoints.metadata()
        described = metadata.get("data", {"arrays": {}})
        if "image" not in described["arrays"]:
            raise RunError(f"{run} did not keep what its data were like: train it again")
        batch = {
            name: jax.ShapeDtypeStruct((experiment.data.batch, *shape), dtype)
            for name, (shape, dtype) in described["arrays"].items()
        }
        # On one device: predictions and samples are too little work to share.
        alone = replace(experiment, parallel=Parallel(data=1))
        feed = FeedSpec(make_mesh(alone.parallel), batch, described["examples"])
        program = build(alone, feed)
        state, _ = checkpoints.restore(
            program.state, saved, partial(essence_of_resolved, allowed=allowed)
        )
    if best:  # which stands for the last step, at which the run ended
        steps = saved_step(run / "checkpoints") or int(state.step)
        state = replace(state, step=np.int32(steps))
    return Reopened(experiment, program, state, described)


def open_run(
    run: Path, weights: Literal["ema", "raw"] | None = None, *, allow: Sequence[str] = ()
) -> Trained:
    """Opens the newest checkpoint of a run's directory.

    Args:
        run: the directory.
        weights: the moving average, or what was trained; None takes the average if there is one.
        allow: see ``reopen``.

    Raises:
        RunError: as ``reopen``, or if the run kept no moving average.
        CheckpointError: if it has no checkpoint that can be read.
    """
    reopened = reopen(run, allow=allow)
    if weights == "ema" and not reopened.state.ema:
        raise RunError(
            f"{run} kept no moving average of its weights: take the others, or train with "
            "loop.ema_decay=0.999"
        )
    return trained_of(reopened, average=weights != "raw")


def as_begun(reopened: Reopened) -> Reopened:
    """A run as it was before its first step, bit for bit on the hardware that trained it.

    Raises:
        WeightsError: if it began with weights whose file is missing, or is another one by now.
    """
    image = tuple(reopened.described["arrays"]["image"][0])
    state = new_state(reopened.experiment, reopened.program, image)
    return replace(reopened, state=state)


def trained_of(reopened: Reopened, *, average: bool = True) -> Trained:
    """What a run knows, with the moving average of its weights if that is asked for and there."""
    state, described = reopened.state, reopened.described
    averaged = state.ema if average else None
    variables: Any = averaged or {"params": state.params, "mutable": state.mutable}
    variables = jax.device_get(variables)
    return Trained(
        experiment=reopened.experiment,
        step=int(state.step),
        params=variables["params"],
        mutable=variables["mutable"],
        image=tuple(described["arrays"]["image"][0]),
        class_names=tuple(described["class_names"]),
        resized=described["resized"],
    )
