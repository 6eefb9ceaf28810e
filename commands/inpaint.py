"""``opsin inpaint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from opsin.commands.groups import Images, Runtime
from opsin.commands.values import Count, Run


def inpaint(
    run: Run,
    image: Annotated[Path, arg(metavar="IMAGE")],
    mask: Annotated[Path, arg(metavar="MASK")],
    /,
    *,
    n: Count[int] = 8,
    resamplings: Count[int] = 10,
    output: Path = Path("inpainted"),
    images: Images,
    runtime: Runtime,
) -> int:
    """Fills in the rest of an image by a diffusion model.

    In place of a sampler that remembers its steps, as dpm++2m, stand 100 steps of ancestral, each
    done --resamplings times.

    Args:
        image: of the size that the run makes
        mask: white where to fill in
        n: how many versions
        resamplings: of each step
        output: directory of the images
    """
    runtime.set_up()
    from opsin.commands import sampling

    for written in sampling.inpaint(
        run, image, mask, n, images.asked(), resamplings=resamplings, output=output
    ):
        print(written)
    return 0
