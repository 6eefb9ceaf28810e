"""How weights of another library become a file that runs here begin with."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import flax.linen as nn
import jax

from opsin.config.names import named
from opsin.data.files import check_new
from opsin.errors import ConfigError
from opsin.interchange import conversion, files
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
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    resize: int | None
    interpolation: str


def import_file(file: Path, output: Path, typed: str, seen: Seen, licence: str) -> list[str]:
    """Writes the weights of a file by our names; says in lines what it did.

    Args:
        file: of another library.
        output: a new file.
        typed: the name of a model of ours.
        seen: goes into the file, and is compared to that of the runs that begin with it.
        licence: goes into the file.

    Raises:
        ConfigError: there is no such model.
        WeightsError: the file cannot be read, or is not of this model.
        WriteError: ``output`` cannot be written, or is there already.
    """
    check_new([output], "give another name")
    model = _made(typed)
    arrays, digest = files.read(file)
    mean, std = _scale(model, seen)
    image = (seen.size, seen.size, len(mean))
    converted = conversion.to_ours(arrays, model, image)
    classes = getattr(converted.model, "num_classes", None)
    described = {
        "network": typed.rpartition(":")[2],
        **asdict(Preprocessing(mean, std, image)),
        "resize": seen.resize,
        "interpolation": seen.interpolation,
        "classes": classes,
        "licence": licence,
        "origin": {"file": file.name, "sha256": digest, "names": converted.dialect},
    }
    ours = save_weights(output, converted.variables, described)
    count = sum(x.size for x in jax.tree.leaves(converted.variables["params"]))
    return [
        f"{len(arrays)} arrays by {converted.dialect}'s names: {count:,} parameters, {classes} "
        f"classes; {len(converted.unused)} say nothing here (num_batches_tracked)",
        f"of images with mean {mean} and std {std}; --mean and --std, if it saw others",
        f"sha256 {ours}",
    ]


def _scale(model: nn.Module, seen: Seen) -> Scale:
    known = conversion.scale_of(model)
    mean, std = seen.mean or known[0], seen.std or known[1]
    if len(mean) != len(std):
        raise ConfigError(f"--mean has {len(mean)} numbers and --std {len(std)}: one a channel")
    if not all(math.isfinite(x) for x in (*mean, *std)) or min(std) <= 0:
        raise ConfigError(f"--mean and --std are finite, --std above 0; got {mean} and {std}")
    return mean, std


def _made(typed: str) -> nn.Module:
    """The model of a name, with its defaults."""
    maker = named(typed)
    try:
        model = None if maker is typed else maker()
    except TypeError as error:
        raise ConfigError(f"{typed} needs options ({error}): name a variant of it") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"there is no model {typed!r}: see opsin list --models")
    return model
