"""The programs of a run: from an experiment and the shape of a batch to functions on a mesh."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from data import augment
from train.accounting import model_flops
from train.durations import in_steps
from train.experiment import Data, Experiment
from train.optim import Optimizer
from train.paths import flatten
from train.pmap import AXIS, make_pmap_dispatch
from train.sharding import Layout, check_batch, make_mesh, replicated
from train.state import State, split_frozen
from train.step import Metrics, Trainer, init_state, make_dispatch, make_step
from train.tasks.task import (
    Batch,
    Particular,
    Picture,
    Player,
    SettingError,
    over_axis,
    players_of,
)


@dataclass(frozen=True)
class Program:
    """What runs on the devices.

    Attributes:
        mesh: the devices.
        state: shapes and shardings of the state.
        init: ``() -> State``, born sharded.
        flops: ``(store, items) -> FLOPs of one step``; see ``train.accounting.model_flops``.
        compile: ``(store, items) -> dispatch``; see ``train.step.make_dispatch``.
        evaluate: ``(params, mutable, batch, index of the batch) -> metric states``.
        preview: ``(params, mutable, batch) -> {name: Picture}``.
        steps: the length of the run.
    """

    mesh: Mesh
    state: State
    init: Callable[[], State]
    flops: Callable[[PyTree, PyTree], Counter[str]]
    compile: Callable[[PyTree, PyTree], Callable[..., tuple[State, Metrics]]]
    evaluate: Callable[[PyTree, PyTree, Batch, Any], Metrics]
    preview: Callable[[PyTree, PyTree, Batch], Mapping[str, Picture]]
    steps: int


def build(
    experiment: Experiment,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    steps_per_epoch: Fraction,
    fetch: Callable[[PyTree, PyTree], Batch],
    devices: Sequence[Any] | None = None,
) -> Program:
    """Lays an experiment out on the devices. Nothing is compiled or allocated yet.

    Args:
        experiment: what to run.
        batch: shapes of one global training batch, as it comes from the source.
        steps_per_epoch: training images over the batch.
        fetch: ``(store, item) -> batch`` on the device.
        devices: to lay it out on, those of a topology that is not here too; None is those here.

    Raises:
        DeviceError, DurationError, SettingError: the experiment asks for what cannot be.
    """
    task, data, loop = experiment.task, experiment.data, experiment.loop
    pmap = loop.strategy == "pmap"
    if data.eval_batch < 1 or loop.previews < 0:
        raise SettingError("loop.previews is at least 0, and data.eval_batch at least 1")
    for split in data.eval_splits:
        if split == "train" or split.removesuffix("_ema") in data.eval_splits.keys() - {split}:
            raise SettingError(
                f"data.eval_splits: {split!r} is also the name of other metrics; choose another"
            )
    if loop.steps_per_dispatch < 1 or loop.accumulate < 1:
        raise SettingError("loop.steps_per_dispatch and loop.accumulate are at least 1")
    whole = experiment.parallel.fsdp == experiment.parallel.tensor == 1
    if pmap and (loop.steps_per_dispatch > 1 or not whole):
        raise SettingError(
            "loop.strategy='pmap' runs one step a dispatch and keeps the state whole: set "
            "loop.steps_per_dispatch=1, parallel.fsdp=1 and parallel.tensor=1, or "
            "loop.strategy='jit'"
        )
    if pmap and jax.process_count() > 1:
        raise SettingError(
            "loop.strategy='pmap' is for the devices of one process: set loop.strategy='jit'"
        )
    if loop.ema_decay is not None and not 0 <= loop.ema_decay < 1:
        raise SettingError(f"loop.ema_decay={loop.ema_decay} is not in [0, 1)")
    mesh = make_mesh(experiment.parallel, devices)
    players = players_of(over_axis(task, AXIS) if pmap else task)
    turns = max(player.turns for player in players)
    what = "microbatches" if turns == 1 else "turns and microbatches"
    check_batch(data.batch, mesh, loop.accumulate * turns, what)
    steps = in_steps(loop.duration, steps_per_epoch)  # none where a run is only measured
    if steps and isinstance(task, Particular):
        task.check_loop(accumulate=loop.accumulate, pmap=pmap, steps=steps, epoch=steps_per_epoch)
    trainers = [
        _trainer(
            player,
            player.optimizer or experiment.optimizer,
            steps,
            steps_per_epoch,
            data.batch // turns,
        )
        for player in players
    ]

    prepare = partial(prepared, data=data)

    def init(key: Key[Array, ""]) -> State:
        sample = {name: jnp.zeros((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
        ema = loop.ema_decay is not None
        return init_state(task, trainers, prepare(sample), key, ema=ema)

    for trainer in trainers:
        _check_patterns(trainer.optimizer)
    with _traced("the model and its images"):
        # The key is an argument, so that the compiled programs serve every seed.
        key = jax.random.key(experiment.seed)
        shapes = jax.eval_shape(init, key)
    for trainer in trainers:
        own = split_frozen(trainer.own(shapes.params), trainer.optimizer.freeze)[0]
        _check_precision(flatten(own))
        _check_found(trainer.optimizer, list(flatten(trainer.own(shapes.params))))
    layout = Layout(mesh, experiment.parallel.min_shard_size)
    shardings = layout.state(shapes)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    step = make_step(
        trainers,
        prepare=partial(augmented, data=data),
        layout=Layout(None) if pmap else layout,
        ema_decay=loop.ema_decay,
        accumulate=loop.accumulate,
        axis_name=AXIS if pmap else None,
        unroll_turns=mesh.devices.flat[0].platform == "cpu",
    )

    def sharded_fetch(store: PyTree, item: PyTree) -> Batch:
        return layout.batch(fetch(store, item))

    options = compiler_options(mesh.devices.flat[0].platform)
    everywhere = replicated(mesh)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    jitted = jax.jit(
        make_dispatch(step, sharded_fetch, loop.steps_per_dispatch),
        in_shardings=(shardings, None, None, everywhere),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )
    dispatch = make_pmap_dispatch(step, fetch, mesh) if pmap else jitted

    def flops(store: PyTree, items: PyTree) -> Counter[str]:
        with _traced("the training step"):
            return model_flops(dispatch, state, store, items, count)

    def compile(store: PyTree, items: PyTree) -> Callable[..., tuple[State, Metrics]]:
        if pmap:
            return dispatch
        with _traced("the training step"):
            lowered = jitted.lower(state, store, items, count)
        # Compiled ahead of time: another shape raises instead of compiling again unseen.
        return lowered.compile(compiler_options=options)

    # Drawing numbers once is not worth optimising, which takes longer than to compile the step.
    quickly = {"xla_backend_optimization_level": 1} if options else {}
    initialize = jax.jit(init, out_shardings=shardings, compiler_options=quickly)

    @partial(jax.jit, out_shardings=everywhere, compiler_options=options)
    def evaluate(params: PyTree, mutable: PyTree, batch: Batch, index: Array) -> Metrics:
        key = jax.random.fold_in(jax.random.key(0), index)  # the same draws every time
        with _traced("the evaluation"), layout.activations(batch):
            return task.evaluate(params, mutable, prepare(batch), key)

    @partial(jax.jit, compiler_options=options)
    def preview(params: PyTree, mutable: PyTree, batch: Batch) -> Mapping[str, Picture]:
        pictures = task.preview(params, mutable, prepare(batch), jax.random.key(0))
        return {name: _unnormalized(p, data.mean, data.std) for name, p in pictures.items()}

    return Program(
        mesh=mesh,
        state=state,
        init=partial(initialize, key),
        flops=flops,
        compile=compile,
        evaluate=evaluate,
        preview=preview,
        steps=steps,
    )


def augmented(key: Key[Array, ""], batch: Batch, *, data: Data) -> Batch:
    """A batch as a model sees it in training."""
    batch = augment.apply(key, augment.scale(batch), data.augment)
    return augment.normalize(batch, data.mean, data.std)


def prepared(batch: Batch, *, data: Data) -> Batch:
    """A batch as a model sees it outside training: uint8 images scaled and normalised."""
    return augment.normalize(augment.scale(batch), data.mean, data.std)


def jit_here(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit`` with the options for the platform of here, for what runs outside a program."""
    return jax.jit(function, compiler_options=compiler_options(jax.default_backend()))


def compiler_options(platform: str) -> dict[str, Any]:
    """XLA's options for a program on ``"cpu"``, ``"gpu"`` or ``"tpu"``.

    On a CPU:

    - ``ops.convolution`` writes its operands to memory behind barriers. XLA drops barriers before
      it fuses, unless that pass is left out.
    - Of the operations that XLA may hand to YNNPACK, it keeps products and sums: YNNPACK runs a
      convolution between fewer than 96 channels on one core.
    """
    if platform != "cpu":
        return {}
    return {
        "xla_disable_hlo_passes": "cse_barrier_expander",
        "xla_cpu_experimental_ynn_fusion_type": ",".join(
            f"LIBRARY_FUSION_TYPE_{operation}" for operation in ("DOT", "REDUCE")
        ),
    }


def _trainer(
    player: Player, optimizer: Optimizer, steps: int, steps_per_epoch: Fraction, batch: int
) -> Trainer:
    """The optimiser of a player over all its turns, each of ``batch`` images."""
    if optimizer.reference_batch is not None and optimizer.reference_batch < 1:
        raise SettingError("optimizer.reference_batch is at least 1, or None")
    updates = steps * player.turns, steps_per_epoch * player.turns
    transform, schedule = optimizer.build(*updates, batch)
    return Trainer(player, optimizer, transform, schedule)


@contextmanager
def _traced(what: str) -> Iterator[None]:
    """Turns what a model or an augmentation says of its options into one line for the user."""
    try:
        yield
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(f"{what} cannot be traced: {error} (--trace shows where)") from error


def _patterns(optimizer: Optimizer) -> Iterator[tuple[str, str]]:
    """Field and pattern of everything in an optimizer that goes by path."""
    scaled = tuple(pattern for pattern, _ in optimizer.lr_scale)
    fields = {"freeze": optimizer.freeze, "no_decay": optimizer.no_decay, "lr_scale": scaled}
    for field, patterns in fields.items():
        yield from ((field, pattern) for pattern in patterns)


def _check_patterns(optimizer: Optimizer) -> None:
    """Raises SettingError for what is no regular expression."""
    for field, pattern in _patterns(optimizer):
        try:
            re.compile(pattern)
        except re.error as error:
            raise SettingError(f"optimizer.{field}: {pattern!r} is no pattern: {error}") from error


def _check_found(optimizer: Optimizer, paths: list[str]) -> None:
    """Raises SettingError for a pattern that is found in no path: it would do nothing, silently."""
    for field, pattern in _patterns(optimizer):
        if not any(re.search(pattern, path) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)[0]
            raise SettingError(
                f"optimizer.{field}: no parameter has {pattern!r} in its path; there is {near!r}"
            )


def _check_precision(trained: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raises SettingError for parameters in which updates would be lost by rounding.

    In bfloat16 1 − 1e-4 is 1: moments and averages in it would stand still too.
    """
    for path, leaf in trained.items():
        if jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32:
            raise SettingError(
                f"the parameter {path!r} is {leaf.dtype}, in which updates are lost by rounding: "
                "leave param_dtype as it is, float32, and compute in bfloat16 by "
                "task.model.dtype=jax.numpy:bfloat16"
            )


def _unnormalized(picture: Picture, mean: tuple[float, ...], std: tuple[float, ...]) -> Picture:
    return replace(picture, images=picture.images * jnp.asarray(std) + jnp.asarray(mean))
