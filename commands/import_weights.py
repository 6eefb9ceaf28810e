"""``opsin import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from opsin.commands.groups import Runtime
from opsin.commands.values import Count, NewFile, Numbers, Place, one_of


def import_weights(
    file: Annotated[Place[Path], arg(metavar="FILE")],
    output: NewFile[Path],
    /,
    *,
    model: Annotated[str, arg(metavar="MODEL")],
    size: Count[int] = 224,
    mean: Numbers[tuple[float, ...] | None] = None,
    std: Numbers[tuple[float, ...] | None] = None,
    resize: Count[int | None] = None,
    interpolation: Annotated[str, one_of("bilinear", "bicubic")] = "bilinear",
    licence: Annotated[str, arg(metavar="TEXT")] = "not given",
    runtime: Runtime,
) -> int:
    """Turns weights of torchvision or timm into a file for ``weights.path``.

    Every array is accounted for, or none is taken.

    Args:
        file: their state_dict, as .safetensors, or as .pth with the extra torch
        output: such as resnet50.safetensors
        model: its name here, as in opsin list --models
        size: of the images that it sees
        mean: of each channel, by which images were scaled; default: as of the published weights
        std: likewise
        resize: to how many pixels the shorter side is brought before the crop, for the record
        interpolation: in that, for the record
        licence: of the weights, for the record
    """
    runtime.set_up()
    from opsin.commands import importing
    from opsin.interchange.taking import Seen

    seen = Seen(size, mean, std, resize, interpolation)
    for line in importing.import_file(file, output, model, seen, licence):
        print(line)
    print(output)
    return 0
