"""The programs of a run: from an experiment and the shape of a batch to functions on a mesh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from opsin.train import checks
from opsin.train.compiler import compiler_options, quick_options
from opsin.train.dispatch import make_dispatch
from opsin.train.durations import in_steps
from opsin.train.evaluators import Evaluate, Preview, evaluators
from opsin.train.experiment import Experiment
from opsin.train.feed import FeedSpec
from opsin.train.host.accounting import model_flops
from opsin.train.paths import flatten
from opsin.train.pmap import make_pmap_dispatch
from opsin.train.preparation import augmented, prepared
from opsin.train.sharding import Layout, replicated
from opsin.train.state import State
from opsin.train.step import (
    Metrics,
    PlayerOptimizer,
    StepSettings,
    init_optimizers,
    init_state,
    train_step,
)
from opsin.train.tasks.task import Batch, Player

Dispatch = Callable[[State, PyTree, PyTree, Any], tuple[State, Metrics]]


@dataclass(frozen=True)
class Program:
    """What runs on the devices.

    Attributes:
        state: shapes and shardings of the state.
        init: ``() -> State``, born sharded.
        init_optimizers: ``params -> opt_state``, where the parameters of ``init`` were replaced.
        flops: ``() -> FLOPs of one step``; see ``train.host.accounting.model_flops``.
        compile: ``() -> dispatch``; see ``train.dispatch.make_dispatch``.
        evaluate, preview: see ``train.evaluators``.
        fixed: the task's, see ``train.tasks.views``.
        steps: the length of the run.
    """

    mesh: Mesh
    state: State
    init: Callable[[], State]
    init_optimizers: Callable[[PyTree], PyTree]
    flops: Callable[[], Counter[str]]
    compile: Callable[[], Dispatch]
    evaluate: Evaluate
    preview: Preview
    fixed: Callable[[], Mapping[str, PyTree]]
    steps: int


def build(experiment: Experiment, feed: FeedSpec) -> Program:
    """Lays an experiment out on the devices of a feed. Nothing is compiled or allocated yet.

    Args:
        experiment: what to run.
        feed: its training images. Its mesh may be of a topology that is not here.

    Raises:
        DeviceError, DurationError, SettingError: the experiment asks for what cannot be.
    """
    checks.check_experiment(experiment)
    checks.check_replicas(experiment.loop, feed.mesh)
    data, loop, pmap = experiment.data, experiment.loop, experiment.loop.strategy == "pmap"
    steps = in_steps(loop.duration, feed.steps_per_epoch)  # none where a run is only measured
    if steps:
        experiment.task.check_loop(
            accumulate=loop.accumulate, pmap=pmap, steps=steps, epoch=feed.steps_per_epoch
        )
    optimizers = _optimizers(experiment, feed, steps)
    layout = Layout(feed.mesh, experiment.parallel.min_shard_size)
    platform = feed.mesh.devices.flat[0].platform
    options = compiler_options(platform)
    prepare = partial(prepared, data=data)

    def init(key: Key[Array, ""]) -> State:
        sample = {name: jnp.zeros((1, *x.shape[1:]), x.dtype) for name, x in feed.batch.items()}
        ema = loop.ema_decay is not None
        return init_state(experiment.task, optimizers, prepare(sample), key, ema=ema)

    with checks.traced("the model and its images"):
        # The key is an argument, so that the compiled programs serve every seed.
        key = jax.random.key(experiment.seed)
        shapes = jax.eval_shape(init, key)
    for optimizer in optimizers:
        checks.check_precision(flatten(optimizer.split(shapes.params)[0]))
        checks.check_found(optimizer.optimizer, list(flatten(optimizer.own(shapes.params))))
    state = layout.state(shapes)
    settings = StepSettings(
        optimizers,
        prepare=partial(augmented, data=data),
        layout=Layout(None) if pmap else layout,
        ema_decay=loop.ema_decay,
        accumulate=loop.accumulate,
        unroll_turns=platform == "cpu",
    )
    flops, compile = _training(experiment, feed, layout, settings, state)
    # Drawing numbers once is not worth optimising, which takes longer than to compile the step.
    quick, places = partial(jax.jit, compiler_options=quick_options(platform)), _shardings(state)
    initialize = quick(init, out_shardings=places)
    restart = quick(partial(init_optimizers, optimizers), out_shardings=places.opt_state)
    evaluate, preview = evaluators(experiment, layout, feed.mesh, options)
    programs = partial(initialize, key), restart, flops, compile, evaluate, preview
    return Program(feed.mesh, state, *programs, experiment.task.fixed, steps)


def _optimizers(experiment: Experiment, feed: FeedSpec, steps: int) -> tuple[PlayerOptimizer, ...]:
    """The players of the task, each with its optimiser over all its turns."""
    players = experiment.task.players()
    turns = max(player.turns for player in players)
    what = "microbatches" if turns == 1 else "turns and microbatches"
    checks.check_batch(feed.batch_size, feed.mesh, experiment.loop.accumulate * turns, what)

    def laid_out(player: Player) -> PlayerOptimizer:
        optimizer = player.optimizer or experiment.optimizer
        checks.check_optimizer(optimizer)
        with checks.traced("the optimizer"):
            transform, schedule = optimizer.build(
                steps * player.turns, feed.steps_per_epoch * player.turns, feed.batch_size // turns
            )
        return PlayerOptimizer(player, optimizer, transform, schedule)

    return tuple(map(laid_out, players))


def _training(
    experiment: Experiment, feed: FeedSpec, layout: Layout, settings: StepSettings, state: State
) -> tuple[Callable[[], Counter[str]], Callable[[], Dispatch]]:
    """``flops`` and ``compile`` of a program."""
    length, mesh = experiment.loop.steps_per_dispatch, feed.mesh
    step, everywhere = partial(train_step, settings), replicated(feed.mesh)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    arguments = state, feed.store(), feed.items(length), count

    def fetch(store: PyTree, item: PyTree) -> Batch:
        return layout.batch(feed.fetch(store, item))

    jitted = jax.jit(
        make_dispatch(step, fetch, length),
        in_shardings=(_shardings(state), None, None, everywhere),
        out_shardings=(_shardings(state), everywhere),
        donate_argnums=0,
    )
    pmap = experiment.loop.strategy == "pmap"
    dispatch = make_pmap_dispatch(step, feed.fetch, mesh) if pmap else jitted

    def flops() -> Counter[str]:
        with checks.traced("the training step"):
            return model_flops(dispatch, *arguments)

    def compile() -> Dispatch:
        if pmap:
            return dispatch
        with checks.traced("the training step"):
            lowered = jitted.lower(*arguments)
        # Compiled ahead of time: another shape raises instead of compiling again unseen.
        return lowered.compile(compiler_options=compiler_options(mesh.devices.flat[0].platform))

    return flops, compile


def _shardings(state: State) -> State:
    return jax.tree.map(lambda leaf: leaf.sharding, state)
