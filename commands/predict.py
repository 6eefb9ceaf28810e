"""``opsin predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from opsin.commands.groups import Runtime
from opsin.commands.values import Allow, Folder, Place
from opsin.errors import ConfigError


def predict(
    run: Annotated[
        Place[Path],
        arg(metavar="RUN", help="its directory, runs/NAME/ID; or the name of a published network"),
    ],
    images: Annotated[tuple[Place[Path], ...], arg(metavar="IMAGE …")],
    /,
    *,
    output: Folder[Path] = Path("predictions"),
    allow: Allow = (),
    runtime: Runtime,
) -> int:
    """Predicts labels or masks of images.

    Args:
        images: of any size and mode, or folders of them
        output: directory of the predictions; files in it are kept
    """
    if not images:
        raise ConfigError("name at least one image: see opsin predict --help")
    runtime.set_up()
    from opsin.commands.prediction import load
    from opsin.commands.prediction import predict as predictions

    for line in predictions(load(run, allow=allow), images, output):
        print(line, flush=True)
    print(output)
    return 0
