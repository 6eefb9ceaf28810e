"""What identifies the files of a data set, without opening one."""

import hashlib
import inspect
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from opsin.data.examples import Examples, Source, stack
from opsin.data.files import at_home
from opsin.data.selection import drawn_places

_READERS = ("opsin.data.folder", "opsin.data.mask_folder", "opsin.data.tfds_source")
_VALIDATION = "opsin.data.validation"


def source_fingerprint(source: str | Source, split: str) -> str | None:
    """Number, bytes and digest of the files of a split, as text; None without files.

    The digest is that of their names below the folder and of their sizes: a set that was moved
    stays the same, and one in which files were replaced, renamed or moved to another class does
    not, unless sizes and names stayed. Of a set of TFDS the files of all splits count.

    Args:
        source: as for ``open_source``; one that is made of another (``source=…``) has its files.
        split: of the source.

    Raises:
        DataError: if the folder or the split is not there.
    """
    while isinstance(source, partial) and "source" in source.keywords:
        if split == "val" and source.func.__module__ == _VALIDATION:
            split = "train"  # of which it is a part
        source = source.keywords["source"]
    kind, path, options = _files_of(source)
    root = at_home(path)
    if kind == "tfds":
        from opsin.data.tfds_source import set_fingerprint

        return set_fingerprint(path, **options) or None
    if kind == "folder":
        from opsin.data.folder import folder_files

        return identified((file for file, _ in folder_files(path, split)[1]), root)
    if kind == "mask_folder":
        from opsin.data.mask_folder import mask_files

        return identified_pairs(mask_files(path, split)[0], root)
    return None


def _files_of(source: str | Source) -> tuple[str, str, dict[str, Any]]:
    """The function that reads files, what it is told first, and ``data_dir``; else empty."""
    if isinstance(source, str):
        kind, _, path = source.partition(":")
        return {"masks": "mask_folder"}.get(kind, kind), path, {}
    if not isinstance(source, partial) or source.func.__module__ not in _READERS:
        return "", "", {}
    given = inspect.signature(source.func).bind_partial(*source.args, **source.keywords).arguments
    options = {"data_dir": given["data_dir"]} if "data_dir" in given else {}
    return source.func.__name__, os.fspath(given.get("path", given.get("name", ""))), options


def identified(files: Iterable[Path], root: Path) -> str:
    """Number, bytes and digest of files below ``root``; empty without any."""
    digest, count, total = hashlib.sha256(), 0, 0
    for file in files:
        size = file.stat().st_size
        digest.update(os.fsencode(f"{file.relative_to(root).as_posix()}\0{size}\0"))
        count, total = count + 1, total + size
    return f"{count} of {total:,} bytes, digest {digest.hexdigest()[:12]}" if count else ""


def identified_pairs(pairs: Iterable[tuple[Path, Path]], root: Path) -> str:
    """The same of images with their masks, and of the file that names the classes."""
    files = [file for pair in pairs for file in pair]
    names = root / "classes.txt"
    return identified([*files, names] if names.is_file() else files, root)


def drawn_labels(examples: Examples) -> str | None:
    """Digest of 64 labels that are drawn, where no files identify a set; None without labels."""
    records = examples.records
    if examples.files or not len(records) or "label" not in stack(records, [0]):
        return None
    labels = stack(records, drawn_places(64, len(records)))["label"]
    return f"{len(labels)} of digest {hashlib.sha256(labels.tobytes()).hexdigest()[:12]}"
