"""Where activations live when parameters are sharded: along the batch, as the images do.

XLA infers the sharding of what a network computes from that of its inputs. Where parameters are
sharded too it may follow them, keep the whole batch on every device and cut its channels up: other
communication than that of the mesh that was asked for, and up to all of the batch's activations on
each device. So outputs of modules are told to stay where the images are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key, PyTree

from train.sharding import BATCH_AXES
from train.tasks.task import Batch, Loss


def along_batch(loss: Loss, mesh: Mesh) -> Loss:
    """The loss, with the outputs of linen modules sharded over the batch axes of a mesh.

    That is what a method of a module returns and has as many rows as the batch has images, or a
    multiple of that; its other axes are left to XLA, and so to tensor parallelism. A mesh whose
    parameters are whole needs none of it, and gets the loss as it is.
    """
    if mesh.size == mesh.shape["data"]:
        return loss

    def constrained(params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""], step: Any):
        images = len(jax.tree.leaves(batch)[0])

        def keep(x: Any) -> Any:
            if not isinstance(x, jax.Array) or x.ndim < 2 or len(x) % images:
                return x
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            spec = P(BATCH_AXES, *[P.UNCONSTRAINED] * (x.ndim - 1))
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        def intercept(
            method: Callable[..., Any],
            args: Any,
            kwargs: Any,
            context: nn.module.InterceptorContext,
        ) -> Any:
            del context
            return jax.tree.map(keep, method(*args, **kwargs))

        with nn.intercept_methods(intercept):
            return loss(params, mutable, batch, key, step)

    return constrained
