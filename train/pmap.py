"""The pmap strategy: the same task step, mapped over devices instead of partitioned by XLA.

Each device mixes images (mixup, CutMix) among its own, and draws its own randomness (augmentation,
dropout, latents, noise), as a microbatch of ``loop.accumulate`` does: without randomness it gives
the numbers of ``jit`` over the global batch, and with it those of ``jit`` over as many
microbatches; so their number, ``loop.replicas``, is part of a run's id. It is for one process and
whole copies of the state: more processes, FSDP and tensor parallelism are refused.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from opsin.ops.mapped import REPLICAS
from opsin.train.state import State
from opsin.train.step import Metrics, Step
from opsin.train.tasks.task import Batch


def make_pmap_dispatch(
    step: Step, fetch: Callable[[PyTree, PyTree], Batch], mesh: Mesh
) -> Callable:
    """One step over the devices of a mesh, called as ``train.dispatch.make_dispatch`` is.

    Args:
        step: averages and sums over the axis ``ops.mapped.REPLICAS``.
        fetch: ``(store, item) -> batch``.
        mesh: its devices are used; the state stays whole on each.
    """
    devices = list(mesh.devices.flat)
    # Unstacked in and out: the state keeps the shapes that checkpoints and evaluation know.
    mapped = jax.pmap(
        step,
        axis_name=REPLICAS,
        in_axes=(None, 0),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=0,
    )

    @jax.jit
    def shards(store: PyTree, items: PyTree) -> Batch:
        batch = fetch(store, jax.tree.map(lambda x: x[0], items))
        return jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)

    def dispatch(state: State, store: PyTree, items: PyTree, count: Array) -> tuple[State, Metrics]:
        state, metrics = mapped(state, shards(store, items))
        return state, jax.tree.map(lambda m: m[None], metrics)

    return dispatch
