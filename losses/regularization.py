"""Penalties on the parameters themselves."""

import re

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def l2_loss(params: PyTree[Float[Array, "..."]], *, match: str = r"kernel$") -> Float[Array, ""]:
    """½ Σ w² over the parameters whose path matches.

    Added to the mean loss L as λ · l2_loss, it turns a step of gradient descent with rate η into
    w ← (1 − ηλ) w − η ∇L, which is weight decay (without the ½ the factor is 1 − 2ηλ). The two
    differ under Adam, which divides the penalty's gradient by the running scale of all gradients:
    there use ``optax.adamw`` (Loshchilov & Hutter, 2019, arXiv:1711.05101, section 2).

    Args:
        params: tree of parameters.
        match: regular expression, searched in the path with "/" between names
            (``block_0/conv/kernel``). By default kernels only: biases, normalisation scales and
            embeddings are left alone.

    Returns:
        float32 scalar.

    Raises:
        ValueError: no parameter matches, so that a typing error does not turn the penalty off.
    """
    chosen = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if re.search(match, jax.tree_util.keystr(path, simple=True, separator="/"))
    ]
    if not chosen:
        raise ValueError(f"no parameter path matches {match!r}")
    return 0.5 * jnp.sum(jnp.stack([jnp.sum(jnp.square(w.astype(jnp.float32))) for w in chosen]))
