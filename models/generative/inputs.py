"""What generative networks ask of their inputs, and how labels are joined to them."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from opsin.ops.labels import one_hot


def join(
    x: Float[Array, "*batch d"], condition: Float[Array, "#*batch classes"] | None
) -> Float[Array, "*batch d_and_classes"]:
    """``x`` with the condition, if there is one, along its last axis; the others broadcast."""
    if condition is None:
        return x
    condition = jnp.broadcast_to(condition, (*x.shape[:-1], condition.shape[-1]))
    return jnp.concatenate([x, condition.astype(x.dtype)], axis=-1)


def one_hot_condition(
    labels: Int[Array, " batch"] | None, num_classes: int | None
) -> Float[Array, "batch classes"] | None:
    """The labels as one-hot; None for a model without classes.

    Raises:
        ValueError: for labels that are missing, or given to a model without classes. A label that
            is no class is NaN: values are not known when a program is traced.
    """
    if num_classes is None:
        if labels is not None:
            raise ValueError("the model is not conditional: give no labels, or set num_classes")
        return None
    if labels is None:
        raise ValueError(f"the model is conditional on {num_classes} classes: give labels")
    return one_hot(labels, num_classes)


def check_image(x: Array, image: tuple[int, int, int]) -> None:
    """Raises ValueError unless ``x`` is a batch of images of this height, width and channels."""
    if x.shape[1:] != tuple(image):
        shape = ", ".join(map(str, image))
        raise ValueError(f"the model takes images [batch, {shape}]; got {list(x.shape)}")


def check_latent(z: Array, size: int) -> None:
    """Raises ValueError unless ``z`` is a batch of vectors of this size."""
    if z.ndim < 2 or z.shape[-1] != size:
        raise ValueError(f"the model has latents [..., batch, {size}]; got {list(z.shape)}")


def check_halves(size: Sequence[int], times: int) -> None:
    """Raises ValueError unless height and width can be halved so many times without a rest."""
    if any(side % 2**times for side in size):
        raise ValueError(
            f"a network that halves images {times} times takes sides that {2**times} divides; "
            f"got {tuple(size)}"
        )
