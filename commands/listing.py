"""``opsin list``."""

from __future__ import annotations

from opsin.commands.terminal import listed
from opsin.config import catalogue, shelves


def listing(
    *,
    models: bool = False,
    losses: bool = False,
    data: bool = False,
    augmentations: bool = False,
    selections: bool = False,
    measurements: bool = False,
    optimizers: bool = False,
    schedules: bool = False,
) -> int:
    """Lists every experiment with its claim, or the names that an override can hold.

    Args:
        models: networks, for task.model
        losses: for task.loss_function
        data: data sets, for data.source
        augmentations: for data.augment
        selections: of training images, for data.select
        measurements: of a finished run, for opsin evaluate
        optimizers: for optimizer.method
        schedules: of the learning rate, for optimizer.schedule
    """
    asked = dict(locals())
    kinds = [kind for kind in shelves.SHELVES if asked[kind]]
    if not kinds:
        claims = {name: catalogue.claim(path) for name, path in catalogue.experiments().items()}
        print(listed(claims))
    for kind in kinds:
        print(f"{kind}: {shelves.SHELVES[kind].usage}")
        print(listed(shelves.found(kind)))
    return 0
