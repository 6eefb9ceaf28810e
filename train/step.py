"""One training step as a pure function, in the order in which it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from opsin.metrics.state import Mean, Metric, check_sums
from opsin.ops import mapped
from opsin.train.optim import Optimizer
from opsin.train.schedules import Schedule
from opsin.train.sharding import Layout
from opsin.train.state import (
    State,
    ema_decay_at,
    ema_update,
    join_frozen,
    keep_frozen,
    split_frozen,
    stream,
)
from opsin.train.tasks.task import Aux, Batch, Player, Task

Metrics = dict[str, Metric]
Step = Callable[[State, Batch], tuple[State, Metrics]]
Fetch = Callable[[PyTree, PyTree], Batch]
Learner = tuple[PyTree, PyTree, PyTree]  # trained parameters, mutable variables, optimiser state
Gradient = tuple[PyTree, Array, PyTree, Metrics]  # with its weight, mutable variables after it


@dataclass(frozen=True)
class PlayerOptimizer:
    """A player of a task and the optimiser that trains it, for a run of known length.

    Attributes:
        player: the parameters that are trained, and their loss.
        optimizer: its settings. Frozen paths are constants to the gradient, so that XLA does no
            backward work for them; running statistics under these paths are kept, too.
        transform: from gradients to updates.
        schedule: learning rate by update, for the log.
    """

    player: Player
    optimizer: Optimizer
    transform: optax.GradientTransformation
    schedule: Schedule

    def own(self, params: PyTree) -> PyTree:
        """The parameters of this player, frozen ones included."""
        name = self.player.name
        return params if name is None else {name: params[name]}

    def split(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """Parts all parameters into those that this player trains, and the rest."""
        trained, frozen = split_frozen(self.own(params), self.optimizer.freeze)
        others = {} if self.player.name is None else params
        rest = {name: value for name, value in others.items() if name != self.player.name}
        return trained, join_frozen(frozen, rest)


@dataclass(frozen=True)
class StepSettings:
    """What is the same in all steps of a run.

    Attributes:
        optimizers: one a player, in the order of their turns.
        prepare: augmentation and scaling, ``(key, batch) -> batch``.
        layout: where batches, activations and gradients live.
        ema_decay: decay of the moving average, or None.
        accumulate: microbatches that the batch of a turn is cut into.
        unroll_turns: write out the turns of a player instead of looping over them; on a CPU,
            convolutions are slower inside a loop.
    """

    optimizers: tuple[PlayerOptimizer, ...]
    prepare: Callable[[Key[Array, ""], Batch], Batch]
    layout: Layout
    ema_decay: float | None = None
    accumulate: int = 1
    unroll_turns: bool = False


def init_state(
    task: Task, optimizers: tuple[PlayerOptimizer, ...], batch: Batch, key: Array, *, ema: bool
) -> State:
    """The state before the first step. Pure: jit it with output shardings, or ``eval_shape`` it."""
    variables = task.init(stream(key, 0, "init"), batch)
    params = variables["params"]
    mutable = {name: value for name, value in variables.items() if name != "params"}
    average = {"params": params, "mutable": mutable}
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        mutable=mutable,
        opt_state=init_optimizers(optimizers, params),
        # A copy: donated buffers must not be shared.
        ema=jax.tree.map(jnp.copy, average) if ema else None,
        key=key,
    )


def init_optimizers(optimizers: tuple[PlayerOptimizer, ...], params: PyTree) -> PyTree:
    """The state of each player's optimiser before the first step; see ``init_state``."""
    states = {o.player.name: o.transform.init(o.split(params)[0]) for o in optimizers}
    return states.get(None, states)  # of one player without a name, its own


def train_step(settings: StepSettings, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One step: each player is updated in turn, then the moving average.

    If a player has several turns in a step, the batch is cut into as many parts, one for each turn;
    a player with a single turn gets the last part. Under ``pmap`` each replica has its part of the
    batch and draws from its own key, as a microbatch does.
    """
    key = mapped.own_key(stream(state.key, state.step, "augment"))
    batch = settings.layout.batch(settings.prepare(key, batch))
    turns = max(optimizer.player.turns for optimizer in settings.optimizers)
    parts = cut(batch, turns, settings.layout)
    metrics: Metrics = {}
    for optimizer in settings.optimizers:
        state, found = train_player(settings, optimizer, state, parts)
        metrics |= found
    ema = state.ema
    if settings.ema_decay is not None:
        decay = ema_decay_at(state.step, settings.ema_decay)
        ema = ema_update(ema, {"params": state.params, "mutable": state.mutable}, decay)
    return replace(state, step=state.step + 1, ema=ema), metrics


def train_player(
    settings: StepSettings, optimizer: PlayerOptimizer, state: State, parts: Batch
) -> tuple[State, Metrics]:
    """All turns of one player in a step, on the last of the parts of the batch."""
    name, turns = optimizer.player.name, optimizer.player.turns
    key = stream(state.key, state.step, name or "loss")
    trained, rest = optimizer.split(state.params)
    opt_state = state.opt_state if name is None else state.opt_state[name]
    loss = partial(player_loss, optimizer.player, settings.layout, rest, state.step)
    update = partial(update_player, settings, optimizer, loss, state.step)

    def take_turn(learner: Learner, turn: tuple[Batch, Array]) -> tuple[Learner, Metrics]:
        part, index = turn
        return update(learner, part, jax.random.fold_in(key, index))

    learner = trained, state.mutable, opt_state
    if turns == 1:
        learner, metrics = update(learner, _at(parts, -1), key)
    else:
        own_parts = _at(parts, slice(-turns, None)), jnp.arange(turns)
        unroll = settings.unroll_turns
        learner, stacked = jax.lax.scan(take_turn, learner, own_parts, unroll=unroll)
        metrics = jax.tree.map(lambda m: m.sum(axis=0), stacked)
    trained, mutable, opt_state = learner
    opt_state = opt_state if name is None else {**state.opt_state, name: opt_state}
    params = join_frozen(trained, rest)
    return replace(state, params=params, mutable=mutable, opt_state=opt_state), metrics


def update_player(
    settings: StepSettings,
    optimizer: PlayerOptimizer,
    loss: Callable[..., tuple[Array, tuple[Array, Aux]]],
    step: Array,
    learner: Learner,
    batch: Batch,
    key: Key[Array, ""],
) -> tuple[Learner, Metrics]:
    """One update of one player: gradient, mean over replicas, optimiser, projection."""
    trained, mutable, opt_state = learner
    player, layout, freeze = optimizer.player, settings.layout, optimizer.optimizer.freeze
    gradient = partial(player_gradient, loss, layout)
    if settings.accumulate > 1:
        gradient = partial(accumulated_gradient, gradient)
        batch = cut(batch, settings.accumulate, layout)
    gradients, _, updated, metrics = gradient(trained, mutable, batch, key)
    gradients, updated = mapped.mean(gradients), mapped.mean(updated)
    metrics = mapped.total(metrics)
    mutable = keep_frozen(mutable, updated, freeze)
    updates, opt_state = optimizer.transform.update(gradients, opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    if player.project is not None:
        trained = player.project(trained)
    suffix = "" if player.name is None else f"_{player.name}"
    rate = optimizer.schedule(step * player.turns)  # which counts updates, one a turn
    metrics |= {
        f"gradient_norm{suffix}": Mean.from_values(optax.tree.norm(gradients)[None]),
        # Finite exactly if the new parameters are: what is saved next is known to be sound.
        f"largest_parameter{suffix}": Mean.from_values(largest(trained)[None]),
        f"learning_rate{suffix}": Mean.from_values(jnp.asarray(rate, jnp.float32)[None]),
    }
    return (trained, mutable, opt_state), metrics


def accumulated_gradient(
    gradient: Callable[..., Gradient],
    trained: PyTree,
    mutable: PyTree,
    parts: Batch,
    key: Key[Array, ""],
) -> Gradient:
    """The gradient of a batch by microbatches, each with the weight of its loss (see ``Aux``).

    Unlike ``optax.microbatching`` it passes mutable variables, such as running statistics, from one
    microbatch to the next.
    """

    def add(total: tuple[PyTree, Array, PyTree], item: tuple[Batch, Array]):
        gradients, count, mutable = total
        part, index = item
        key_of_part = jax.random.fold_in(key, index)
        new, weight, mutable, metrics = gradient(trained, mutable, part, key_of_part)
        gradients = jax.tree.map(lambda t, g: t + weight.astype(g.dtype) * g, gradients, new)
        return (gradients, count + weight, mutable), metrics

    indices = jnp.arange(len(next(iter(parts.values()))))
    start = jax.tree.map(jnp.zeros_like, trained), jnp.zeros(()), mutable
    (gradients, count, mutable), metrics = jax.lax.scan(add, start, (parts, indices))
    gradients = jax.tree.map(lambda total: _ratio(total, count), gradients)
    return gradients, count, mutable, jax.tree.map(lambda m: m.sum(axis=0), metrics)


def player_gradient(
    loss: Callable[..., tuple[Array, tuple[Array, Aux]]],
    layout: Layout,
    trained: PyTree,
    mutable: PyTree,
    batch: Batch,
    key: Key[Array, ""],
) -> Gradient:
    """The gradient of one batch or microbatch."""
    gradients, (weight, aux) = jax.grad(loss, has_aux=True)(
        trained, mutable, batch, mapped.own_key(key)
    )
    return layout.gradients(gradients), weight, aux.mutable, aux.metrics


def player_loss(
    player: Player,
    layout: Layout,
    rest: PyTree,
    step: Array,
    trained: PyTree,
    mutable: PyTree,
    batch: Batch,
    key: Key[Array, ""],
) -> tuple[Array, tuple[Array, Aux]]:
    """The loss as a function of what is trained; its weight among replicas, and its ``Aux``."""
    with layout.activations(batch):
        value, aux = player.loss(join_frozen(trained, rest), mutable, batch, key, step)
    check_sums(aux.metrics)
    weight = jnp.asarray(aux.weight, jnp.float32)
    if mapped.is_mapped():
        # Before the gradient: batch norm takes it from one replica's loss to all images.
        mean = mapped.mean(weight)
        value, weight = value * _ratio(weight, mean), mean
    return value, (weight, aux)


def cut(batch: Batch, parts: int, layout: Layout) -> Batch:
    """The batch as microbatches along a new leading axis, each sharded as the whole batch."""
    if parts == 1:
        return jax.tree.map(lambda x: x[None], batch)
    # Every parts-th image goes to one part: then each device cuts up its own slice.
    stacked = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    return layout.batch(stacked, leading=1)


def largest(tree: PyTree) -> Array:
    """The largest absolute value in any leaf; NaN if there is one. A norm would overflow first."""
    maxima = [jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(maxima))


def _at(tree: PyTree, index: Array | int | slice) -> PyTree:
    return jax.tree.map(lambda x: x[index], tree)


def _ratio(total: Array, weight: Array) -> Array:
    """A mean from its sum; 0 where nothing counts."""
    return total / jnp.where(weight == 0, 1, weight).astype(total.dtype)
