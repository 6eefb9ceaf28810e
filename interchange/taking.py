"""Weights of another library as a file of ours, which says what images its network was shown."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import flax.linen as nn

from opsin.errors import ConfigError
from opsin.interchange import conversion, files
from opsin.interchange.conversion import Converted
from opsin.interchange.scales import Scale
from opsin.train.preprocessing import Preprocessing
from opsin.train.weights import save_weights


@dataclass(frozen=True)
class Seen:
    """The images that a network was trained to see.

    Attributes:
        size: of their sides.
        mean: by which they were scaled, of each channel; None is that of the published weights.
        std: likewise.
        resize: to what the shorter side was brought before the crop; None if that is not known.
        interpolation: in that.
    """

    size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    interpolation: str = "bilinear"

    def scale(self, model: nn.Module) -> Scale:
        """Mean and std, those of the published weights of a model where they are None.

        Raises:
            ConfigError: they do not go together, or no image can be scaled by them.
        """
        known = conversion.scale_of(model)
        mean, std = self.mean or known[0], self.std or known[1]
        if len(mean) != len(std):
            raise ConfigError(f"--mean has {len(mean)} numbers and --std {len(std)}: one a channel")
        if not all(math.isfinite(x) for x in (*mean, *std)) or min(std) <= 0:
            raise ConfigError(f"--mean and --std are finite, --std above 0; got {mean} and {std}")
        return mean, std


@dataclass(frozen=True)
class Taken:
    """What was taken of a file.

    Attributes:
        arrays: how many it has.
        converted: what they are here.
        scale: mean and std of the images.
        sha256: of the file of ours.
    """

    arrays: int
    converted: Converted
    scale: Scale
    sha256: str


def take(
    file: Path, output: Path, model: nn.Module, *, network: str, seen: Seen, licence: str
) -> Taken:
    """Writes the weights of a file by our names.

    Args:
        file: of another library.
        output: is written, whole or not at all.
        model: of the same architecture; it may have another number of classes.
        network: its name, which goes into the file.
        seen: goes into the file, and is compared to that of the runs that begin with it.
        licence: goes into the file.

    Raises:
        ConfigError: of no scale as ``seen`` says.
        WeightsError: the file cannot be read, or is not of this model.
        WriteError: ``output`` cannot be written.
    """
    arrays, digest = files.read(file)
    scale = seen.scale(model)
    image = (seen.size, seen.size, len(scale[0]))
    converted = conversion.to_ours(arrays, model, image)
    described = {
        "network": network,
        **asdict(Preprocessing(*scale, image)),
        "resize": seen.resize,
        "interpolation": seen.interpolation,
        "classes": getattr(converted.model, "num_classes", None),
        "licence": licence,
        "origin": {"file": file.name, "sha256": digest, "names": converted.dialect},
    }
    ours = save_weights(output, converted.variables, described)
    return Taken(len(arrays), converted, scale, ours)
