"""One training step as a pure function, and several of them in one program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from metrics.state import Mean, Metric
from train.optim import Optimizer, Schedule
from train.state import (
    State,
    ema_decay_at,
    ema_update,
    join_frozen,
    keep_frozen,
    split_frozen,
    stream,
)
from train.tasks.task import Batch, Task, over_axis

Metrics = dict[str, Metric]
Step = Callable[[State, Batch], tuple[State, Metrics]]


def init_state(
    task: Task,
    transform: optax.GradientTransformation,
    optimizer: Optimizer,
    batch: Batch,
    key: Key[Array, ""],
    *,
    ema: bool,
) -> State:
    """The state before the first step. Pure: jit it with output shardings, or ``eval_shape`` it."""
    variables = task.init(stream(key, 0, "init"), batch)
    params = variables["params"]
    mutable = {name: value for name, value in variables.items() if name != "params"}
    trained, _ = split_frozen(params, optimizer.freeze)
    average = {"params": params, "mutable": mutable}
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        mutable=mutable,
        opt_state=transform.init(trained),
        # A copy: donated buffers must not be shared.
        ema=jax.tree.map(jnp.copy, average) if ema else None,
        key=key,
    )


def make_step(
    task: Task,
    transform: optax.GradientTransformation,
    schedule: Schedule,
    *,
    prepare: Callable[[Key[Array, ""], Batch], Batch],
    freeze: tuple[str, ...] = (),
    ema_decay: float | None = None,
    accumulate: int = 1,
    axis_name: str | None = None,
    shard_microbatches: Callable[[Batch], Batch] = lambda batch: batch,
) -> Step:
    """The training step ``(state, batch) -> (state, metrics)``.

    Args:
        task: what is learned.
        transform: from gradients to updates.
        schedule: the learning rate by step, for the log.
        prepare: augmentation and scaling, ``(key, batch) -> batch``.
        freeze: paths that are not trained. They enter the gradient as constants, so that XLA does
            no backward work for them; running statistics under these paths stay too.
        ema_decay: decay of the moving average, or None.
        accumulate: microbatches that the batch is cut into; gradients are averaged over them, each
            with the weight that its loss has (see ``train.tasks.task.Aux``).
        axis_name: under pmap, the axis to average over.
        shard_microbatches: sharding constraint for ``[accumulate, batch / accumulate, …]``.
    """
    if axis_name is not None:
        task = over_axis(task, axis_name)

    def gradients(
        trained: PyTree, frozen: PyTree, mutable: PyTree, batch: Batch, key: Array, taken: Array
    ) -> tuple[PyTree, Array, PyTree, Metrics]:
        """Gradients and what they count for in a mean with those of other images."""

        def loss(trained: PyTree):
            value, aux = task.loss(join_frozen(trained, frozen), mutable, batch, key, taken)
            weight = jnp.asarray(aux.weight, jnp.float32)
            if axis_name is not None:
                # Before the gradient: batch norm takes it from each device's loss to all images.
                mean = jax.lax.pmean(weight, axis_name)
                value, weight = value * _ratio(weight, mean), mean
            return value, (weight, aux)

        grads, (weight, aux) = jax.grad(loss, has_aux=True)(trained)
        return grads, weight, aux.mutable, aux.metrics

    def accumulated(
        trained: PyTree, frozen: PyTree, mutable: PyTree, batch: Batch, key: Array, taken: Array
    ) -> tuple[PyTree, Array, PyTree, Metrics]:
        # Every accumulate-th image goes to one microbatch: then each device cuts up its own slice.
        micro = shard_microbatches(
            jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        )

        def body(carry: tuple[PyTree, Array, PyTree], item: tuple[Batch, Array]):
            total, count, mutable = carry
            batch, index = item
            grads, weight, mutable, metrics = gradients(
                trained, frozen, mutable, batch, jax.random.fold_in(key, index), taken
            )
            total = jax.tree.map(lambda t, g: t + weight.astype(g.dtype) * g, total, grads)
            return (total, count + weight, mutable), metrics

        zeros = jax.tree.map(jnp.zeros_like, trained)
        (total, count, mutable), metrics = jax.lax.scan(
            body, (zeros, jnp.zeros(()), mutable), (micro, jnp.arange(accumulate))
        )
        grads = jax.tree.map(lambda t: _ratio(t, count), total)
        return grads, count, mutable, jax.tree.map(lambda m: m.sum(axis=0), metrics)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = state.key
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        batch = prepare(stream(key, state.step, "augment"), batch)
        trained, frozen = split_frozen(state.params, freeze)
        compute = gradients if accumulate == 1 else accumulated
        grads, _, mutable, metrics = compute(
            trained, frozen, state.mutable, batch, stream(key, state.step, "loss"), state.step
        )
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
            mutable = jax.lax.pmean(mutable, axis_name)
            metrics = jax.lax.psum(metrics, axis_name)
        mutable = keep_frozen(state.mutable, mutable, freeze)
        updates, opt_state = transform.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        params = join_frozen(trained, frozen)
        ema = state.ema
        if ema_decay is not None:
            decay = ema_decay_at(state.step, ema_decay)
            ema = ema_update(ema, {"params": params, "mutable": mutable}, decay)
        metrics |= {
            "gradient_norm": Mean.from_values(optax.tree.norm(grads)[None]),
            # Finite exactly if the new parameters are: what is saved next is known to be sound.
            "largest_parameter": Mean.from_values(largest(trained)[None]),
            "learning_rate": Mean.from_values(jnp.asarray(schedule(state.step), jnp.float32)[None]),
        }
        state = replace(
            state, step=state.step + 1, params=params, mutable=mutable, opt_state=opt_state, ema=ema
        )
        return state, metrics

    return step


def _ratio(total: Array, weight: Array) -> Array:
    """A mean from its sum; 0 where nothing counts."""
    return total / jnp.where(weight == 0, 1, weight).astype(total.dtype)


def largest(tree: PyTree) -> Array:
    """The largest absolute value in any leaf; NaN if there is one. A norm would overflow first."""
    maxima = [jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(maxima))


def make_dispatch(step: Step, fetch: Callable[[PyTree, PyTree], Batch], length: int) -> Callable:
    """Up to ``length`` steps as one program: ``(state, store, items, count) -> (state, metrics)``.

    ``fetch(store, item)`` makes the batch of one step; ``items`` holds ``length`` of them along a
    leading axis, of which the first ``count`` are used: one program serves the rests too. Metrics
    come back with the same leading axis.
    """

    def one(state: State, store: PyTree, items: PyTree, count: Array) -> tuple[State, Metrics]:
        state, metrics = step(state, fetch(store, jax.tree.map(lambda x: x[0], items)))
        return state, jax.tree.map(lambda m: m[None], metrics)

    def several(state: State, store: PyTree, items: PyTree, count: Array) -> tuple[State, Metrics]:
        def at(index: Array | int) -> Batch:
            return fetch(store, jax.tree.map(lambda x: x[index], items))

        def body(index: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, history = carry
            state, metrics = step(state, at(index))
            return state, jax.tree.map(lambda h, m: h.at[index].set(m), history, metrics)

        shapes = jax.eval_shape(lambda: step(state, at(0))[1])
        history = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, history))

    return one if length == 1 else several
