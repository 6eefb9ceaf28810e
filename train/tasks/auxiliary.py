"""Heads that only train: a model sows their logits, and their losses are added to that of its own.

They give layers far from the output a gradient (Szegedy et al., 2014, arXiv:1409.4842, section 5;
Zhao et al., 2017, arXiv:1612.01105, section 3.3). A model sows one or several as "logits" into the
collection "auxiliary", with ``models.layers.sow_auxiliary``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import reduce

import flax.linen as nn
from jaxtyping import Array, Float, Key, PyTree

AUXILIARY = "auxiliary"
"""The collection, which no state keeps."""


def initial_variables(model: nn.Module, key: Key[Array, ""], images: Array) -> PyTree:
    """All variables of a model, without what its auxiliary heads may sow."""
    variables = model.init(key, images, train=False)
    return {name: value for name, value in variables.items() if name != AUXILIARY}


def training_logits(
    model: nn.Module, params: PyTree, mutable: PyTree, images: Array, key: Key[Array, ""]
) -> tuple[Array, tuple[Array, ...], PyTree]:
    """What a model gives for normalised images in training.

    Args:
        model: ``model(images, train=…) -> logits``.
        params: of it.
        mutable: its other variables.
        images: as it sees them.
        key: of its dropout.

    Returns:
        Its logits, those of its auxiliary heads, and the mutable variables after.
    """
    logits, updated = model.apply(
        {"params": params, **mutable},
        images,
        train=True,
        rngs={"dropout": key},
        mutable=[*mutable, AUXILIARY],
    )
    updated = dict(updated)
    return logits, updated.pop(AUXILIARY, {}).get("logits", ()), updated


def with_auxiliary(
    main: Float[Array, ""], auxiliary: Iterable[Float[Array, ""]], weight: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a model and ``weight`` times the sum of those of its auxiliary heads.

    Returns:
        Total, and its terms by name: ``main_loss`` and ``auxiliary_loss``; none without heads.
    """
    losses = list(auxiliary)
    if not losses:
        return main, {}
    total = reduce(operator.add, losses)
    return main + weight * total, {"main_loss": main, "auxiliary_loss": total}
