"""``opsin inpaint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from opsin.commands.groups import Images, Runtime
from opsin.commands.values import Allow, Folder, Place, Run, whole


def inpaint(
    run: Run,
    image: Annotated[Place[Path], arg(metavar="IMAGE")],
    mask: Annotated[Place[Path], arg(metavar="MASK")],
    /,
    *,
    n: Annotated[int, whole(1, 1000)] = 8,
    resamplings: Annotated[int, whole(1, 1000)] = 10,
    output: Folder[Path] = Path("inpainted"),
    allow: Allow = (),
    images: Images,
    runtime: Runtime,
) -> int:
    """Fills in a part of an image with a diffusion model.

    A sampler that remembers earlier steps, such as dpm++2m, is replaced by 100 steps of ancestral,
    each repeated --resamplings times.

    Args:
        image: of the size that the run makes
        mask: white where to fill in
        n: how many versions
        resamplings: how often each step is repeated
        output: directory of the images
    """
    runtime.set_up()
    from opsin.commands import sampling

    for written in sampling.inpaint(
        run, image, mask, n, images, resamplings=resamplings, output=output, allow=allow
    ):
        print(written)
    return 0
