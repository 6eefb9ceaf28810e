"""Classes as numbers. An index below 0 would count from the end: a label of −1 is no class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Num


def known(labels: Integer[Array, "*batch"], classes: int) -> Bool[Array, "*batch"]:
    """Whether a label is one of the classes, 0 to ``classes`` − 1."""
    labels = labels.astype(jnp.int32)  # bytes cannot be compared with 300
    return (labels >= 0) & (labels < classes)


def one_hot(labels: Integer[Array, "*batch"], classes: int) -> Float[Array, "*batch classes"]:
    """The labels as distributions, float32; NaN where a label is no class."""
    return or_nan(jax.nn.one_hot(labels, classes), labels, classes)


def or_nan(
    values: Num[Array, "*batch d"], labels: Integer[Array, "*batch"], classes: int
) -> Num[Array, "*batch d"]:
    """What was looked up for each label, but NaN where that is no class: it must not pass."""
    return jnp.where(known(labels, classes)[..., None], values, jnp.nan)
