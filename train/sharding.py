"""Where arrays live: a mesh of devices, and the rules from parameters to its axes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from opsin.errors import UserError
from opsin.ranges import Count, Devices, StepsOrZero
from opsin.train.paths import flatten
from opsin.train.state import State

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

WIDE = 256
"""Output channels from which on a convolution is worth sharing."""

TENSOR_RULES: tuple[tuple[str, int, int, int], ...] = (
    # Path, number of axes of one layer, the axis that is shared, its least length.
    (r"attention/(query|key|value)/kernel$", 3, 1, 1),  # [width, heads, head]: by heads
    (r"attention/out/kernel$", 3, 0, 1),  # [heads, head, width]: by heads
    (r"mlp1/kernel$", 2, 1, 1),  # [width, hidden]: by hidden channels
    (r"mlp2/kernel$", 2, 0, 1),  # [hidden, width]: by hidden channels
    (r"kernel$", 4, 3, WIDE),  # [height, width, in, out]: by output channels
)
"""What goes over ``tensor``: Shoeybi et al., 2019, arXiv:1909.08053, section 3, for transformers.

Nothing is exchanged between a first and a second kernel, and one sum follows the second. The first
rule that fits the path and the number of axes counts."""

STACKED = r"(^|/)blocks/"
"""Paths of parameters that ``nn.scan`` stacks along a leading axis of layers."""


class DeviceError(UserError):
    """Devices, mesh and batch do not fit one another."""


@dataclass(frozen=True)
class Parallel:
    """How many devices there are along each axis of the mesh.

    Attributes:
        data: copies of the model that share the batch; −1 takes all devices that are left.
        fsdp: devices that share the batch *and* hold a slice of each large parameter each; −1
            takes all that are left, and goes with a ``data`` of at least 1.
        tensor: devices that share the work on each image: heads and MLPs of transformers, output
            channels of wide convolutions.
        min_shard_size: parameters with fewer elements than this in a layer stay whole: gathering
            them would cost more than it saves.
    """

    data: Devices = -1
    fsdp: Devices = 1
    tensor: Count = 1
    min_shard_size: StepsOrZero = 2**14


def make_mesh(parallel: Parallel, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ``(data, fsdp, tensor)``; an axis of size one is the same code path.

    Neighbours along ``tensor``, which exchange most, are neighbours among the devices.

    Raises:
        DeviceError: if more devices are asked for than there are, they do not divide, or a process
            would have none.
    """
    devices = jax.devices() if devices is None else devices
    shape = _mesh_shape(parallel, len(devices))
    grid = np.asarray(devices[: math.prod(shape)]).reshape(shape)
    idle = {d.process_index for d in devices} - {d.process_index for d in grid.flat}
    if idle:
        raise DeviceError(
            f"parallel takes {grid.size} of {len(devices)} devices, and process {min(idle)} has "
            "none of them: set parallel.data=-1, or start fewer processes"
        )
    # Explicit axes (the default of jax.make_mesh) make linen's Dropout raise.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _mesh_shape(parallel: Parallel, devices: int) -> tuple[int, ...]:
    sizes = {axis: getattr(parallel, axis) for axis in AXES}
    left = [axis for axis, size in sizes.items() if size == -1]
    if len(left) > 1 or parallel.tensor < 1 or any(n < 1 and n != -1 for n in sizes.values()):
        raise DeviceError(
            "parallel.data, parallel.fsdp and parallel.tensor are at least 1; -1, for all devices "
            "that are left, may be one of the first two"
        )
    asked = " x ".join(str(size) for size in sizes.values() if size != -1)
    taken = math.prod(size for size in sizes.values() if size != -1)
    if left and devices % taken:
        named = " x ".join(f"parallel.{a}={n}" for a, n in sizes.items() if n not in (-1, 1))
        raise DeviceError(
            f"{named} does not divide the {devices} devices here: choose sizes that do"
        )
    if taken > devices:
        raise DeviceError(
            f"parallel asks for {asked} = {taken} devices, there are {devices}: make its sizes "
            "smaller, or take more (--devices N fakes N on the CPU)"
        )
    return tuple(devices // taken if size == -1 else size for size in sizes.values())


def batch_shards(mesh: Mesh) -> int:
    """The number of parts that a batch is cut into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of a batch over all data-parallel devices, after ``leading`` whole axes."""
    return NamedSharding(mesh, P(*[None] * leading, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def parameter_spec(
    path: str, shape: tuple[int, ...], sizes: Mapping[str, int], min_shard_size: int
) -> P:
    """How a parameter is cut: one axis over ``tensor`` by rule, the largest other over ``fsdp``.

    Small parameters stay whole, and so does the axis of layers that a scan has stacked: a device
    holds a slice of each layer, and gathers one layer at a time. ``sizes`` are those of the axes of
    the mesh; layers of ``min_shard_size`` elements or more are cut.

    >>> sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    >>> parameter_spec("stage4/conv2/kernel", (3, 3, 512, 512), sizes, 2**14)
    PartitionSpec(None, None, 'fsdp', 'tensor')
    >>> parameter_spec("encoder/blocks/mlp1/kernel", (12, 384, 1536), sizes, 2**14)
    PartitionSpec(None, 'fsdp', 'tensor')
    """
    layers = 1 if re.search(STACKED, path) else 0
    layer = shape[layers:]
    if math.prod(layer) < min_shard_size:
        return P()
    axes: list[str | None] = [None] * len(layer)
    rules = (r for r in TENSOR_RULES if len(layer) == r[1] and re.search(r[0], path))
    for _, _, axis, least in itertools.islice(rules, 1):  # the first that fits
        if sizes["tensor"] > 1 and layer[axis] >= least and layer[axis] % sizes["tensor"] == 0:
            axes[axis] = "tensor"
    free = [i for i, n in enumerate(layer) if axes[i] is None and n % sizes["fsdp"] == 0]
    if sizes["fsdp"] > 1 and free:
        axes[max(free, key=lambda axis: (layer[axis], axis))] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return P(*[None] * layers, *axes) if axes else P()


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a program live, and the constraints that keep XLA to it.

    Attributes:
        mesh: the devices; None is one device that computes for itself, as under ``pmap``, where
            nothing is constrained.
        min_shard_size: see ``Parallel``.
    """

    mesh: Mesh | None
    min_shard_size: StepsOrZero = 2**14

    def state(self, shapes: State) -> State:
        """Abstract arrays with their shardings.

        Moments and moving averages are laid out as the parameter whose path theirs ends in, and
        whole if they have another shape; other arrays go by the rules for their own path.
        """
        params = {path: leaf.shape for path, leaf in flatten(shapes.params).items()}

        def laid_out(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            owner = next((end for end in _endings(name) if end in params), name)
            whole = params.get(owner, leaf.shape) != leaf.shape
            sharding = self._sharding("", ()) if whole else self._sharding(owner, leaf.shape)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(laid_out, shapes)

    def batch(self, batch: PyTree, leading: int = 0) -> PyTree:
        """Keeps each image on its device, after ``leading`` whole axes."""
        if self.mesh is None:
            return batch
        return jax.lax.with_sharding_constraint(batch, batch_sharding(self.mesh, leading))

    def gradients(self, gradients: PyTree) -> PyTree:
        """Lays gradients out as their parameters; XLA may else sum each one whole everywhere."""
        if self.mesh is None:
            return gradients

        def constrain(path: Any, leaf: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return jax.lax.with_sharding_constraint(leaf, self._sharding(name, leaf.shape))

        return jax.tree_util.tree_map_with_path(constrain, gradients)

    @contextmanager
    def activations(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Keeps the outputs of all modules on the devices of their images.

        These are the outputs with as many rows as images, or a multiple, such as views of them. XLA
        would otherwise spread activations as the parameters are, and gather the batch: 471 GB a
        chip for ViT-L/16 on 256 chips.
        """
        mesh = self.mesh
        if mesh is None or batch_shards(mesh) == 1:
            yield
            return
        images = len(next(iter(batch.values())))

        def constrain(x: Any) -> Any:
            floats = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
            if not floats or x.ndim < 2 or len(x) % images:
                return x
            # Features stay as XLA and the kernels have them: cut by heads or channels.
            spec = P(BATCH_AXES, *[P.UNCONSTRAINED] * (x.ndim - 1))
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        def intercept(method: Callable[..., Any], args: Any, options: Any, context: Any) -> Any:
            return jax.tree.map(constrain, method(*args, **options))

        with nn.intercept_methods(intercept):
            yield

    def _sharding(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        assert self.mesh is not None, "parameters are laid out on a mesh"
        spec = parameter_spec(path, shape, self.mesh.shape, self.min_shard_size)
        return NamedSharding(self.mesh, spec)


def _endings(path: str) -> Iterator[str]:
    """``a/b/c``, ``b/c``, ``c``."""
    names = path.split("/")
    return ("/".join(names[start:]) for start in range(len(names)))
