"""Features of a network: the input of its layer called ``head``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array, PyTree

from opsin.train.settings import SettingError


def around_head(
    model: nn.Module, variables: PyTree, images: Array, **options: Any
) -> tuple[Array, Any]:
    """The input of the layer called ``head`` [images, features], and the output of the network.

    Args:
        model: ``model(images, train=False)``, with a layer ``head`` at its end, as in ``models``.
        variables: of it.
        images: as it sees them.
        **options: of ``apply``.

    Raises:
        SettingError: if there is no such layer, or it takes something else than vectors.
    """
    seen = []

    def watch(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.path == ("head",) and context.method_name == "__call__":
            seen.append(args[0])
        return method(*args, **kwargs)

    with nn.intercept_methods(watch):
        output = model.apply(variables, images, train=False, **options)
    if len(seen) != 1 or seen[0].ndim != 2:
        raise SettingError(
            f"{type(model).__name__} has no layer called head that takes one vector an image: its "
            "features cannot be separated from its outputs; take a classifier or SimCLR"
        )
    return seen[0], output
