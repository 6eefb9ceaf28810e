"""One training step as a pure function, and several of them in one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from metrics.state import Mean, Metric, check_sums
from train.optim import Optimizer, Schedule
from train.sharding import Layout
from train.state import (
    State,
    ema_decay_at,
    ema_update,
    join_frozen,
    keep_frozen,
    split_frozen,
    stream,
)
from train.tasks.task import Batch, Player, Task

Metrics = dict[str, Metric]
Step = Callable[[State, Batch], tuple[State, Metrics]]
Carry = tuple[PyTree, PyTree, PyTree]  # parameters of one player, mutable variables, its opt_state


@dataclass(frozen=True)
class Trainer:
    """A player with its optimiser laid out for a run.

    Attributes:
        player: what is trained, and by which loss.
        optimizer: of this player. Paths that it freezes enter the gradient as constants, so that
            XLA does no backward work for them; running statistics under these paths stay too.
        transform: from gradients to updates.
        schedule: the learning rate by update, for the log.
    """

    player: Player
    optimizer: Optimizer
    transform: optax.GradientTransformation
    schedule: Schedule

    def own(self, params: PyTree) -> PyTree:
        """The parameters of this player."""
        name = self.player.name
        return params if name is None else {name: params[name]}


def init_state(
    task: Task, trainers: Sequence[Trainer], batch: Batch, key: Key[Array, ""], *, ema: bool
) -> State:
    """The state before the first step. Pure: jit it with output shardings, or ``eval_shape`` it."""
    variables = task.init(stream(key, 0, "init"), batch)
    params = variables["params"]
    mutable = {name: value for name, value in variables.items() if name != "params"}
    opt_states = {
        trainer.player.name: trainer.transform.init(
            split_frozen(trainer.own(params), trainer.optimizer.freeze)[0]
        )
        for trainer in trainers
    }
    average = {"params": params, "mutable": mutable}
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        mutable=mutable,
        opt_state=opt_states.get(None, opt_states),  # of one player without a name, its own
        # A copy: donated buffers must not be shared.
        ema=jax.tree.map(jnp.copy, average) if ema else None,
        key=key,
    )


def make_step(
    trainers: Sequence[Trainer],
    *,
    prepare: Callable[[Key[Array, ""], Batch], Batch],
    layout: Layout,
    ema_decay: float | None = None,
    accumulate: int = 1,
    axis_name: str | None = None,
    unroll_turns: bool = False,
) -> Step:
    """The training step ``(state, batch) -> (state, metrics)``.

    Players have their turns one after the other. Where one has several turns in a step, the batch
    is cut into as many parts, one a turn, and a player with one turn gets the last part.

    Args:
        trainers: who is trained, and how.
        prepare: augmentation and scaling, ``(key, batch) -> batch``.
        layout: where batches, activations and gradients live.
        ema_decay: decay of the moving average, or None.
        accumulate: microbatches that the batch of a turn is cut into; gradients are averaged over
            them, each with the weight that its loss has (see ``train.tasks.task.Aux``).
        axis_name: under pmap, the axis to average over.
        unroll_turns: write the turns of a player out one after the other; on a CPU, convolutions
            are slower inside a loop.
    """

    def own(key: Array) -> Array:
        """A key that no other mapped device has: they draw as so many microbatches would."""
        if axis_name is None:
            return key
        return jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def cut(batch: Batch, parts: int) -> Batch:
        # Every parts-th image goes to one part: then each device cuts up its own slice.
        stacked = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        return layout.batch(stacked, leading=1)

    def turn(
        trainer: Trainer, others: PyTree, carry: Carry, batch: Batch, key: Array, taken: Array
    ) -> tuple[Carry, Metrics]:
        """One update of one player."""
        mine, mutable, opt_state = carry
        trained, frozen = split_frozen(mine, trainer.optimizer.freeze)
        fixed = join_frozen(frozen, others)

        def gradients(mutable: PyTree, batch: Batch, key: Array):
            """Gradients and what they count for in a mean with those of other images."""
            key = own(key)

            def loss(trained: PyTree):
                params = join_frozen(trained, fixed)
                with layout.activations(batch):
                    value, aux = trainer.player.loss(params, mutable, batch, key, taken)
                check_sums(aux.metrics)
                weight = jnp.asarray(aux.weight, jnp.float32)
                if axis_name is not None:
                    # Before the gradient: batch norm takes it from one device's loss to all images.
                    mean = jax.lax.pmean(weight, axis_name)
                    value, weight = value * _ratio(weight, mean), mean
                return value, (weight, aux)

            grads, (weight, aux) = jax.grad(loss, has_aux=True)(trained)
            return layout.gradients(grads), weight, aux.mutable, aux.metrics

        def accumulated(mutable: PyTree, batch: Batch, key: Array):
            def body(carry: tuple[PyTree, Array, PyTree], item: tuple[Batch, Array]):
                total, count, mutable = carry
                batch, index = item
                grads, weight, mutable, metrics = gradients(
                    mutable, batch, jax.random.fold_in(key, index)
                )
                total = jax.tree.map(lambda t, g: t + weight.astype(g.dtype) * g, total, grads)
                return (total, count + weight, mutable), metrics

            zeros = jax.tree.map(jnp.zeros_like, trained)
            (total, count, mutable), metrics = jax.lax.scan(
                body,
                (zeros, jnp.zeros(()), mutable),
                (cut(batch, accumulate), jnp.arange(accumulate)),
            )
            grads = jax.tree.map(lambda t: _ratio(t, count), total)
            return grads, count, mutable, jax.tree.map(lambda m: m.sum(axis=0), metrics)

        compute = gradients if accumulate == 1 else accumulated
        grads, _, updated, metrics = compute(mutable, batch, key)
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
            updated = jax.lax.pmean(updated, axis_name)
            metrics = jax.lax.psum(metrics, axis_name)
        mutable = keep_frozen(mutable, updated, trainer.optimizer.freeze)
        updates, opt_state = trainer.transform.update(grads, opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        if trainer.player.project is not None:
            trained = trainer.player.project(trained)
        whose = "" if trainer.player.name is None else f"_{trainer.player.name}"
        # The schedule counts turns, of which every step has as many.
        rate = trainer.schedule(taken * trainer.player.turns)
        metrics |= {
            f"gradient_norm{whose}": Mean.from_values(optax.tree.norm(grads)[None]),
            # Finite exactly if the new parameters are: what is saved next is known to be sound.
            f"largest_parameter{whose}": Mean.from_values(largest(trained)[None]),
            f"learning_rate{whose}": Mean.from_values(jnp.asarray(rate, jnp.float32)[None]),
        }
        return (join_frozen(trained, frozen), mutable, opt_state), metrics

    def play(
        trainer: Trainer, state: State, batch: Batch, parts: Batch, key: Array
    ) -> tuple[State, Metrics]:
        """All turns of one player in a step."""
        name, turns = trainer.player.name, trainer.player.turns
        everyone = {} if name is None else state.params
        others = {other: params for other, params in everyone.items() if other != name}
        opt_state = state.opt_state if name is None else state.opt_state[name]
        carry = trainer.own(state.params), state.mutable, opt_state
        if turns == 1:
            carry, metrics = turn(trainer, others, carry, batch, key, state.step)
        else:

            def body(carry: Carry, item: tuple[Batch, Array]) -> tuple[Carry, Metrics]:
                part, index = item
                drawn = jax.random.fold_in(key, index)
                return turn(trainer, others, carry, part, drawn, state.step)

            own_parts = jax.tree.map(lambda x: x[-turns:], parts)
            items = (own_parts, jnp.arange(turns))
            carry, stacked = jax.lax.scan(body, carry, items, unroll=unroll_turns)
            metrics = jax.tree.map(lambda m: m.sum(axis=0), stacked)
        own, mutable, opt_state = carry
        opt_state = opt_state if name is None else {**state.opt_state, name: opt_state}
        params = {**others, **own}
        return replace(state, params=params, mutable=mutable, opt_state=opt_state), metrics

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        batch = layout.batch(prepare(own(stream(state.key, state.step, "augment")), batch))
        most = max(trainer.player.turns for trainer in trainers)
        parts = cut(batch, most) if most > 1 else {}
        last = jax.tree.map(lambda x: x[-1], parts) if most > 1 else batch
        metrics: Metrics = {}
        for trainer in trainers:
            drawn = stream(state.key, state.step, trainer.player.name or "loss")
            state, found = play(trainer, state, last, parts, drawn)
            metrics |= found
        ema = state.ema
        if ema_decay is not None:
            decay = ema_decay_at(state.step, ema_decay)
            ema = ema_update(ema, {"params": state.params, "mutable": state.mutable}, decay)
        return replace(state, step=state.step + 1, ema=ema), metrics

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
