"""``opsin sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from opsin.commands.groups import Images, Runtime
from opsin.commands.values import Allow, Folder, Run, whole


def sample(
    run: Run,
    /,
    *,
    n: Annotated[int, whole(1, 100_000)] = 64,
    path: bool = False,
    output: Folder[Path] = Path("samples"),
    allow: Allow = (),
    images: Images,
    runtime: Runtime,
) -> int:
    """Makes images with a trained generator.

    Args:
        n: how many images
        path: also an animation of how they emerge from noise
        output: directory of the images
    """
    runtime.set_up()
    from opsin.commands import sampling

    for written in sampling.sample(run, n, images, path=path, output=output, allow=allow):
        print(written)
    return 0
