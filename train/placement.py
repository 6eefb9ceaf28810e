"""From arrays on the host to arrays on the devices of a mesh, for any number of processes."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import PyTree

from opsin.train.sharding import AXES, DeviceError, batch_sharding, batch_shards, replicated


def process_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which part of each global batch a process reads, by default this one, and of how many.

    Processes whose devices share the work on the same images read the same part.

    Raises:
        DeviceError: if the devices of the process do not make a part.
    """
    process = jax.process_index() if process is None else process
    shards = batch_shards(mesh)
    held = [
        shard
        for shard, devices in enumerate(mesh.devices.reshape(shards, -1))
        if any(device.process_index == process for device in devices)
    ]
    if (
        held != list(range(held[0], held[0] + len(held)))
        or shards % len(held)
        or held[0] % len(held)
    ):
        raise DeviceError(
            f"devices of process {process} hold the parts {held} of {shards} of a batch: choose "
            "a parallel.tensor that divides the devices of a process, or is a multiple of them"
        )
    return held[0] // len(held), shards // len(held)


def global_batch(local: PyTree, mesh: Mesh, size: int, leading: int = 0) -> PyTree:
    """Arrays of a batch of ``size`` on the devices, after ``leading`` whole axes.

    Each process gives the rows of its ``process_share``, or all of them.
    """
    sharding = batch_sharding(mesh, leading)

    def place(rows: np.ndarray) -> jax.Array:
        shape = (*rows.shape[:leading], size, *rows.shape[leading + 1 :])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree.map(place, local)


def on_all_devices(arrays: PyTree, mesh: Mesh) -> PyTree:
    """Arrays that every process has, whole on every device."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape), arrays
    )


def on_own_devices(tree: PyTree, mesh: Mesh) -> PyTree:
    """The arrays replicated on the devices of this process, for what it computes by itself.

    A single process gets them back as they are. To be called in all processes.
    """
    if jax.process_count() == 1:
        return tree
    whole = jax.jit(_itself, out_shardings=replicated(mesh))(tree)
    devices = np.asarray(jax.local_devices()).reshape(-1, 1, 1)
    own = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return jax.device_put(jax.device_get(whole), replicated(own))


def _itself(tree: PyTree) -> PyTree:
    return tree


def put_with(tree: PyTree, batch: PyTree) -> PyTree:
    """Shards a host batch over the devices of ``tree``, or returns it if ``tree`` has no mesh.

    The batch is replicated where the devices do not divide it.
    """
    shardings = (leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    mesh = next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)
    if not isinstance(mesh, Mesh):
        return batch
    divides = all(len(x) % batch_shards(mesh) == 0 for x in jax.tree.leaves(batch))
    return jax.device_put(batch, batch_sharding(mesh) if divides else replicated(mesh))
