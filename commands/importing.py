"""How weights of another library become a file that runs here begin with."""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn
import jax

from opsin.config.names import named
from opsin.data.files import check_new
from opsin.errors import ConfigError
from opsin.interchange.taking import Seen, take


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
    network = typed.rpartition(":")[2]
    taken = take(file, output, _made(typed), network=network, seen=seen, licence=licence)
    converted, (mean, std) = taken.converted, taken.scale
    count = sum(x.size for x in jax.tree.leaves(converted.variables["params"]))
    classes = getattr(converted.model, "num_classes", None)
    return [
        f"{taken.arrays} arrays by {converted.dialect}'s names: {count:,} parameters, {classes} "
        f"classes; {len(converted.unused)} say nothing here (num_batches_tracked)",
        f"of images with mean {mean} and std {std}; --mean and --std, if it saw others",
        f"sha256 {taken.sha256}",
    ]


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
