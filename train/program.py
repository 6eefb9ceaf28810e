"""The programs of a run: from an experiment and the shape of a batch to functions on a mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from data import augment
from train.durations import in_steps
from train.experiment import Experiment
from train.pmap import AXIS, make_pmap_dispatch
from train.sharding import batch_sharding, check_batch, make_mesh, replicated, state_sharding
from train.state import State
from train.step import Metrics, init_state, make_dispatch, make_step
from train.tasks.task import Batch, Preview, SettingError


@dataclass(frozen=True)
class Program:
    """What runs on the devices.

    Attributes:
        mesh: the devices.
        state: shapes and shardings of the state.
        init: ``() -> State``, born sharded.
        compile: ``(store, items) -> dispatch``; see ``train.step.make_dispatch``.
        evaluate: ``(params, mutable, batch) -> metric states``.
        preview: ``(params, mutable, batch) -> {name: Preview}``.
        steps: the length of the run.
    """

    mesh: Mesh
    state: State
    init: Callable[[], State]
    compile: Callable[[PyTree, PyTree], Callable[..., tuple[State, Metrics]]]
    evaluate: Callable[[PyTree, PyTree, Batch], Metrics]
    preview: Callable[[PyTree, PyTree, Batch], dict[str, Preview]]
    steps: int


def build(
    experiment: Experiment,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    steps_per_epoch: float,
    fetch: Callable[[PyTree, PyTree], Batch],
) -> Program:
    """Lays an experiment out on the devices. Nothing is compiled or allocated yet.

    Args:
        experiment: what to run.
        batch: shapes of one global training batch, as it comes from the source.
        steps_per_epoch: training images over the batch.
        fetch: ``(store, item) -> batch`` on the device.

    Raises:
        DeviceError, DurationError, SettingError: the experiment asks for what cannot be.
    """
    task, data, loop = experiment.task, experiment.data, experiment.loop
    pmap = loop.strategy == "pmap"
    if loop.steps_per_dispatch < 1 or loop.accumulate < 1:
        raise SettingError("loop.steps_per_dispatch and loop.accumulate are at least 1")
    if pmap and (loop.steps_per_dispatch > 1 or experiment.parallel.fsdp > 1):
        raise SettingError(
            "loop.strategy='pmap' runs one step a dispatch and keeps the state whole: "
            "set loop.steps_per_dispatch=1 and parallel.fsdp=1, or loop.strategy='jit'"
        )
    if loop.ema_decay is not None and not 0 <= loop.ema_decay < 1:
        raise SettingError(f"loop.ema_decay={loop.ema_decay} is not in [0, 1)")
    mesh = make_mesh(experiment.parallel)
    check_batch(data.batch, mesh, loop.accumulate)
    steps = in_steps(loop.duration, steps_per_epoch)
    if steps < 1:
        raise SettingError(f"loop.duration={loop.duration!r} is less than one step")
    transform, schedule = experiment.optimizer.build(steps, steps_per_epoch)
    prepare = partial(_prepare, data.mean, data.std)

    def prepare_training(key: Key[Array, ""], batch: Batch) -> Batch:
        batch = augment.apply(key, augment.scale(batch), data.augment)
        return augment.normalize(batch, data.mean, data.std)

    init = partial(
        init_state,
        task,
        transform,
        experiment.optimizer,
        key=jax.random.key(experiment.seed),
        ema=loop.ema_decay is not None,
    )
    sample = {name: jnp.zeros((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    try:
        shapes = jax.eval_shape(init, prepare(sample))
    except ValueError as error:  # a model says which images it takes
        raise SettingError(f"task.model and the data do not fit: {error}") from error
    shardings = state_sharding(shapes, mesh, experiment.parallel.min_shard_size)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    step = make_step(
        task,
        transform,
        schedule,
        prepare=prepare_training,
        freeze=experiment.optimizer.freeze,
        ema_decay=loop.ema_decay,
        accumulate=loop.accumulate,
        axis_name=AXIS if pmap else None,
        shard_microbatches=lambda x: x if pmap else _constrain(x, mesh, leading=1),
    )

    def sharded_fetch(store: PyTree, item: PyTree) -> Batch:
        return _constrain(fetch(store, item), mesh)

    def compile(store: PyTree, items: PyTree) -> Callable[..., tuple[State, Metrics]]:
        if pmap:
            return make_pmap_dispatch(step, fetch, mesh)
        dispatch = make_dispatch(step, sharded_fetch, loop.steps_per_dispatch)
        whole = replicated(mesh)
        jitted = jax.jit(
            dispatch,
            in_shardings=(shardings, None, None, whole),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        )
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
        # Compiled ahead of time: another shape raises instead of compiling again unseen.
        return jitted.lower(state, store, items, count).compile()

    key = jax.random.key(0)  # evaluation draws the same numbers every time

    @jax.jit
    def evaluate(params: PyTree, mutable: PyTree, batch: Batch) -> Metrics:
        return task.evaluate(params, mutable, prepare(batch), key)

    @jax.jit
    def preview(params: PyTree, mutable: PyTree, batch: Batch) -> dict[str, Preview]:
        pictures = task.preview(params, mutable, prepare(batch), key)
        return {name: _unnormalized(p, data.mean, data.std) for name, p in pictures.items()}

    return Program(
        mesh=mesh,
        state=state,
        init=lambda: jax.jit(init, out_shardings=shardings)(prepare(sample)),
        compile=compile,
        evaluate=evaluate,
        preview=preview,
        steps=steps,
    )


def _prepare(mean: tuple[float, ...], std: tuple[float, ...], batch: Batch) -> Batch:
    return augment.normalize(augment.scale(batch), mean, std)


def _unnormalized(preview: Preview, mean: tuple[float, ...], std: tuple[float, ...]) -> Preview:
    return replace(preview, images=preview.images * jnp.asarray(std) + jnp.asarray(mean))


def _constrain(batch: Any, mesh: Mesh, leading: int = 0) -> Any:
    return jax.lax.with_sharding_constraint(batch, batch_sharding(mesh, leading))
