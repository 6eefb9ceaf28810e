"""``opsin embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from opsin.commands.groups import Features, Runtime
from opsin.commands.values import Allow, Folder, Run, whole


def embed(
    run: Run,
    data: Annotated[str | None, arg(metavar="[DATA]")] = None,
    /,
    *,
    n: Annotated[int, whole(3, 1_000_000)] = 2000,
    before: bool = False,
    output: Folder[Path | None] = None,
    allow: Allow = (),
    features: Features,
    runtime: Runtime,
) -> int:
    """Writes features of images, and a map of them.

    Args:
        data: such as folder:PATH; default: the data of the run
        n: largest number of images
        before: also by the network as it was before training, to compare
        output: default: RUN/embedding
    """
    runtime.set_up()
    from opsin.commands import embedding
    from opsin.train.logging import bar

    for path in embedding.embed(
        run,
        data,
        split=features.split,
        count=n,
        before=before,
        layer=features.layer,
        seed=features.seed,
        output=output or run / "embedding",
        track=bar,
        allow=allow,
    ):
        print(path)
    return 0
