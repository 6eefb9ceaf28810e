"""What tasks of a generator and a discriminator share: variables by player, ranges, a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from opsin.metrics.classification import PairScores
from opsin.metrics.state import Mean
from opsin.train.settings import SettingError
from opsin.train.tasks.checks import in_range

SATURATED = 0.99
"""AUC above which a discriminator is called saturated."""

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


SIGNED = (-1.0, 1.0)
"""The range of images that networks of these tasks take (``Experiment.preprocessing``)."""


def signed(images: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """From [0, 1] to [−1, 1]; NaN where images are out of range (``check_range`` sees a few)."""
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
    """The output of one of several networks, its sown features, and all mutable variables."""
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


def pairwise_auc(
    real: Float[Array, "batch ..."],
    fake: Float[Array, "batch ..."],
) -> Mean:
    """The share of (real, generated) pairs of a batch in which the real image has a higher logit.

    This is the area under the ROC curve. It needs no threshold, which losses place differently, if
    at all. Ties count half. It is for training, where states are sums; see ``pair_scores``.
    """
    real, fake = by_image(real), by_image(fake)
    above = (real[:, None] > fake) + 0.5 * (real[:, None] == fake)
    return Mean.from_values(jnp.mean(above, axis=1))


def pair_scores(
    real: Float[Array, "batch ..."],
    fake: Float[Array, "batch ..."],
    valid: Bool[Array, " batch"],
) -> PairScores:
    """The logits of an evaluation, whose ``pairwise_auc`` is over all pairs of the set."""
    return PairScores(valid=valid, real=by_image(real), generated=by_image(fake))


def by_image(logits: Array) -> Array:
    """One logit an image: the mean of a map."""
    return jnp.mean(logits, axis=tuple(range(1, logits.ndim)))


def without_averages(numbers: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the trained parameters, without those of their moving averages."""
    return {
        name: value for name, value in numbers.items() if not name.split("/")[0].endswith("_ema")
    }


def saturation(numbers: Mapping[str, float]) -> list[str]:
    """Warns of a discriminator whose ``pairwise_auc`` is near 1."""
    return [
        f"{name} is {value:.3f}: the discriminator is saturated and gives the generator little "
        "gradient (lower task.optimizer.learning_rate, or set task.penalty)"
        for name, value in without_averages(numbers).items()
        if name.endswith("/discriminator_auc") and value > SATURATED
    ]


def check_whole_batch(compares_means: bool, accumulate: int) -> None:
    """Raises SettingError for microbatches under losses that compare means of a batch."""
    if accumulate > 1 and compares_means:
        raise SettingError(
            "relativistic losses and feature matching compare means of the whole batch: set "
            "loop.accumulate=1"
        )
