"""What a training step of a network costs, without running one."""

from typing import Any

import jax
import jax.numpy as jnp

from opsin.train.host.accounting import model_flops


def cost(model: Any, *images: int) -> tuple[int, float]:
    """Parameters, and floating-point operations of a training step on images of this shape."""
    key, images_of = jax.random.key(0), jax.ShapeDtypeStruct(images, jnp.float32)
    variables = dict(jax.eval_shape(model.init, key, images_of))
    params = variables.pop("params")

    def total(params: Any, mutable: Any, images: Any) -> Any:
        options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
        return model.apply({"params": params, **mutable}, images, **options)[0].sum()

    flops = model_flops(jax.grad(total), params, variables, images_of).total()
    return sum(leaf.size for leaf in jax.tree.leaves(params)), flops
