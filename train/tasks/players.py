"""What tasks of a generator and a discriminator share: variables by player, ranges, a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from opsin.metrics.state import Mean
from opsin.train.settings import SettingError
from opsin.train.tasks.checks import in_range

SATURATED = 0.99
"""Share of pairs that a discriminator tells apart, above which it has won."""

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


SIGNED = (-1.0, 1.0)
"""The range of images that networks of these tasks take (``Experiment.preprocessing``)."""


def signed(images: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """From [0, 1] to [−1, 1]; NaN outside, as of images that ``check_range`` has not seen."""
    return 2 * in_range(images) - 1


def unsigned(images: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """From [−1, 1] to [0, 1]."""
    return (images + 1) / 2


def by_player(networks: Mapping[str, PyTree]) -> PyTree:
    """Variables of several networks in one tree: collections first, then players."""
    collections = {name for variables in networks.values() for name in variables}
    return {
        name: {player: own[name] for player, own in networks.items() if name in own}
        for name in sorted(collections - {"intermediates"})
    }


def apply_network(
    model: nn.Module, player: str, params: PyTree, mutable: PyTree, *args: Any, **options: Any
) -> tuple[Array, Any, dict[str, Any]]:
    """What one of several networks gives, the features that it sows, and all mutable variables."""
    own = {name: values[player] for name, values in mutable.items() if player in values}
    returned: Any = model.apply(
        {"params": params[player], **own}, *args, **options, mutable=[*own, "intermediates"]
    )
    result, updated = returned
    after = {
        name: {**values, player: updated[name]} if name in own else values
        for name, values in mutable.items()
    }
    (features,) = updated.get("intermediates", {}).get("features", (None,))
    return result, features, after


def told_apart(
    real: Float[Array, "batch ..."],
    fake: Float[Array, "batch ..."],
    valid: Bool[Array, " batch"] | None = None,
) -> Mean:
    """The share of pairs of a real and a made image of which the real one has the higher logit.

    The area under the ROC curve, and so the same for any threshold: losses differ in where they put
    it, and some have none. Ties count half.
    """
    real, fake = by_image(real), by_image(fake)
    counts = jnp.ones(len(fake)) if valid is None else valid.astype(jnp.float32)
    above = (real[:, None] > fake) + 0.5 * (real[:, None] == fake)
    share = jnp.sum(above * counts, axis=1) / jnp.maximum(jnp.sum(counts), 1)
    return Mean.from_values(share, valid)


def by_image(logits: Array) -> Array:
    """One logit an image: the mean of a map."""
    return jnp.mean(logits, axis=tuple(range(1, logits.ndim)))


def of_trained(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers of an evaluation without those of moving averages, against which nobody trains."""
    return {
        name: value for name, value in numbers.items() if not name.split("/")[0].endswith("_ema")
    }


def saturation(numbers: Mapping[str, float]) -> list[str]:
    """What to tell of an evaluation of ``told_apart``: a discriminator that has won."""
    return [
        f"{name} is {value:.3f}: the discriminator is saturated, and tells the generator little or "
        "changes too fast for it (lower task.optimizer.learning_rate, or hold its slope)"
        for name, value in of_trained(numbers).items()
        if name.endswith("/discriminator_auc") and value > SATURATED
    ]


def check_whole_batch(compares_means: bool, accumulate: int) -> None:
    """Raises SettingError for losses that compare means of a batch, if it comes in parts."""
    if accumulate > 1 and compares_means:
        raise SettingError(
            "relativistic losses and feature matching compare means of the whole batch: set "
            "loop.accumulate=1"
        )
