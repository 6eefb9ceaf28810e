"""Opsin itself: the step that a run executes, and the jitted network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from opsin.benchmarks.cases import CASES, Case
from opsin.benchmarks.worker import Prepared
from opsin.train.compiler import compiler_options
from opsin.train.experiment import Experiment
from opsin.train.feed import Feed
from opsin.train.host.accounting import model_flops
from opsin.train.program import Program, build
from opsin.train.sets import open_training
from opsin.train.sharding import make_mesh


def prepare(name: str, phase: str) -> Prepared:
    """A case of ``CASES`` in ``"training"`` or ``"inference"``."""
    case = CASES[name]
    variables, about = variables_of(case)
    about["flops"] = flops(case, phase)
    if phase == "training":
        return Prepared(bare_steps(case.experiment()), about)
    return Prepared(inference(case, case.model.apply, variables, compiler_options("cpu")), about)


def variables_of(case: Case) -> tuple[PyTree, dict[str, Any]]:
    """Initial variables of a case's network, and the number of parameters."""
    images, _ = case.batch_on_host()
    variables = jax.jit(case.model.init)(jax.random.key(0), images, *case.told())
    return variables, {"parameters": sum(x.size for x in jax.tree.leaves(variables["params"]))}


def compiled(experiment: Experiment) -> tuple[Feed, Program, PyTree, Callable[..., Any]]:
    """What a run's steps are made of: the feed, the program, the store and the compiled step."""
    mesh = make_mesh(experiment.parallel)
    examples = open_training(experiment)
    feed = Feed(experiment, mesh, examples)
    program = build(experiment, feed.spec)
    return feed, program, feed.store(), program.compile()


def bare_steps(experiment: Experiment) -> Callable[[int], None]:
    """``run(steps)`` of a run's own program, in a plain Python loop on a batch that stays put."""
    length = experiment.loop.steps_per_dispatch
    feed, program, store, dispatch = compiled(experiment)
    items = feed.take(length, length)
    state = program.init()

    def run(steps: int) -> None:
        nonlocal state  # donated: each call gives up the one before
        for done in range(0, steps, length):
            state, _ = dispatch(state, store, items, np.int32(min(length, steps - done)))
        jax.block_until_ready(state)

    run(length)
    return run


def inference(
    case: Case, apply: Callable[..., Any], variables: PyTree, options: dict[str, Any] | None = None
) -> Callable[[int], None]:
    """``run(batches)`` of a jitted network in evaluation mode; ``options`` are XLA's."""
    inputs = jax.device_put((case.batch_on_host()[0], *case.told()))
    forward = jax.jit(
        lambda variables, inputs: apply(variables, *inputs, train=False), compiler_options=options
    )

    def run(steps: int) -> None:
        jax.block_until_ready([forward(variables, inputs) for _ in range(steps)])

    run(1)
    return run


def flops(case: Case, phase: str) -> int:
    """FLOPs of a step: what the network asks for, however a convolution computes it."""
    task, key = case.experiment().task, jax.random.key(0)
    images, labels = case.batch_on_host()
    batch = {
        "image": jax.ShapeDtypeStruct(images.shape, np.float32),
        case.label: jax.ShapeDtypeStruct(labels.shape, np.int32),
    }
    variables = jax.eval_shape(task.init, key, batch)

    def forward(variables: PyTree, batch: dict[str, Array]) -> Any:
        return case.model.apply(variables, batch["image"], *case.told(), train=False)

    (player,) = task.players()

    def gradient(variables: PyTree, batch: dict[str, Array]) -> Any:
        mutable = {name: value for name, value in variables.items() if name != "params"}
        return jax.grad(lambda p: player.loss(p, mutable, batch, key, 0)[0])(variables["params"])

    step = gradient if phase == "training" else forward
    return model_flops(step, variables, batch).total()
