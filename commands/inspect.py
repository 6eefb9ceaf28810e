"""``opsin inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from opsin.commands.groups import Runtime, named
from opsin.commands.values import Name, NewFile, Overrides, whole
from opsin.config.tree import override


def inspect(
    name: Name,
    overrides: Overrides = (),
    /,
    *,
    batches: Annotated[int, whole(1, 36)] = 1,
    output: NewFile[Path | None] = None,
    runtime: Runtime,
) -> int:
    """Draws training batches.

    Args:
        batches: how many
        output: default: NAME_batch.png
    """
    runtime.set_up()
    name, _, experiment, changes = named(name, overrides)
    from opsin.commands.inspection import draw_batches

    path = output or Path(f"{name}_batch.png")
    draw_batches(override(experiment, changes), batches, path)
    print(path)
    return 0
