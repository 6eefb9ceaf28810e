"""Where arrays live: a mesh of devices, and the rules from parameters to its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


class DeviceError(ValueError):
    """Devices, mesh and batch do not fit one another."""


@dataclass(frozen=True)
class Parallel:
    """How many devices there are along each axis of the mesh.

    Attributes:
        data: copies of the model that share the batch; −1 takes all devices that are left.
        fsdp: devices that share the batch *and* hold a slice of each large parameter each.
        min_shard_size: parameters with fewer elements than this stay whole: gathering them would
            cost more than it saves.
    """

    data: int = -1
    fsdp: int = 1
    min_shard_size: int = 2**14


def make_mesh(parallel: Parallel, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ``(data, fsdp, tensor)``; an axis of size one is the same code path.

    Raises:
        DeviceError: if more devices are asked for than there are, or they do not divide.
    """
    devices = jax.devices() if devices is None else devices
    if parallel.fsdp < 1 or parallel.data == 0 or parallel.data < -1:
        raise DeviceError("parallel.data is -1 or at least 1, and parallel.fsdp at least 1")
    if parallel.data == -1 and len(devices) % parallel.fsdp:
        raise DeviceError(
            f"parallel.fsdp={parallel.fsdp} does not divide the {len(devices)} devices here"
        )
    data = len(devices) // parallel.fsdp if parallel.data == -1 else parallel.data
    if data * parallel.fsdp > len(devices):
        raise DeviceError(
            f"parallel asks for {data} x {parallel.fsdp} = {data * parallel.fsdp} devices, "
            f"there are {len(devices)}: lower parallel.data or parallel.fsdp, "
            "or pass --devices N to fake N on the CPU"
        )
    grid = np.asarray(devices[: data * parallel.fsdp]).reshape(data, parallel.fsdp, 1)
    # Explicit axes (the default of jax.make_mesh) make linen's Dropout raise.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """The number of devices that share a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch: int, mesh: Mesh, parts: int = 1, what: str = "microbatches") -> None:
    """Raises DeviceError unless every device gets the same number of images in every part."""
    shards = batch_shards(mesh)
    if batch % (shards * parts):
        whole = f"{shards} devices" + (f" times {parts} {what}" if parts > 1 else "")
        nearest = batch // (shards * parts) * shards * parts or shards * parts
        raise DeviceError(
            f"data.batch={batch} does not divide by {whole}: try data.batch={nearest}"
        )


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of a batch over all data-parallel devices, after ``leading`` whole axes."""
    return NamedSharding(mesh, P(*[None] * leading, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def fsdp_spec(shape: tuple[int, ...], size: int, min_shard_size: int) -> P:
    """Shards the largest axis that ``size`` devices divide; small arrays stay whole.

    >>> fsdp_spec((3, 3, 256, 512), 8, 2**14)
    PartitionSpec(None, None, None, 'fsdp')
    """
    if size == 1 or np.prod(shape, dtype=np.int64) < min_shard_size:
        return P()
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
    if not divisible:
        return P()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*["fsdp" if axis == chosen else None for axis in range(chosen + 1)])


def state_sharding(state: PyTree, mesh: Mesh, min_shard_size: int) -> PyTree:
    """A sharding for each leaf; optimiser state and moving averages follow from their shapes."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, fsdp_spec(leaf.shape, mesh.shape["fsdp"], min_shard_size)),
        state,
    )


def beside(tree: PyTree, batch: PyTree) -> PyTree:
    """Arrays of one batch, shared by the devices that a tree is on; as they are if it is on none.

    They are whole on each device where these do not divide the batch.
    """
    shardings = (leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    mesh = next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)
    if not isinstance(mesh, Mesh):
        return batch
    divides = all(len(x) % batch_shards(mesh) == 0 for x in jax.tree.leaves(batch))
    return jax.device_put(batch, batch_sharding(mesh) if divides else replicated(mesh))
