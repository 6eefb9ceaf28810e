"""What keeps the folder of a run to itself, whoever sent it."""

from __future__ import annotations

import math
import os
import stat
from contextlib import suppress
from pathlib import Path

from opsin.data.examples import DataError
from opsin.data.records import LARGEST

_AT_ONCE = (".json", "metadata", "_METADATA", "_CHECKPOINT_METADATA", "_sharding")
_AT_ONCE += (".ocdbt", "array_metadatas", "commit_success.txt")
_MOST = {".jsonl": 2**30, **dict.fromkeys(_AT_ONCE, LARGEST)}
"""Bytes of a file of a run, by its suffix, its name or its folder: lines are read one by one."""


def check_enclosed(directory: Path) -> None:
    """Raises DataError for a folder that reaches outside itself, or holds what no run writes.

    Somebody may have sent it. To write beside a link that leads out would be to write there; a pipe
    or a device has no end.
    """
    root = os.path.realpath(directory)
    for folder, folders, files in os.walk(root):  # which follows no link
        for name in (*folders, *files):
            with suppress(FileNotFoundError):  # a run that is live has removed it meanwhile
                _check_entry(Path(folder, name), root)


def _check_entry(path: Path, root: str) -> None:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        target = os.path.realpath(path)  # also of a link to nowhere
        if not Path(target).is_relative_to(root):
            raise DataError(
                f"{path} is a link to {target}, outside the folder of the run: move that here, or "
                "link to the whole folder instead"
            )
    elif not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise DataError(f"{path} is neither a file nor a folder: remove it")
    kinds = (path.suffix, path.name, path.parent.name)
    largest = min(_MOST.get(kind, math.inf) for kind in kinds)
    if found.st_size > largest:
        raise DataError(f"{path} has {found.st_size} bytes, and no run writes more than {largest}")


def component(what: str, name: str) -> str:
    """A name that becomes part of the name of a file, if the file stays in its folder.

    Args:
        what: the name is of, for the message.
        name: that a file or a user gives.

    Raises:
        DataError: if it is empty, long or hidden, or has a slash or a character that nobody sees.
    """
    fits = name.isprintable() and 0 < len(name.encode()) <= 200 and name[0] not in ".-"
    if not fits or "/" in name or "\\" in name:
        raise DataError(f"{what}: {name!r} cannot be part of the name of a file: choose another")
    return name
