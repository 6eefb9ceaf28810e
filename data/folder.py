"""A folder of images, one sub-folder a class."""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps

from opsin.data.examples import Arrays, DataError, Examples, fits_in_memory, materialize
from opsin.data.files import at_home, readable
from opsin.data.fingerprint import identified
from opsin.data.images import MODES, read_image
from opsin.ranges import Bytes, Count

_LEFT_BY_DESKTOPS = {"Thumbs.db", "desktop.ini"}
_NOTES = {".csv", ".json", ".jsonl", ".md", ".pyc", ".txt", ".xml", ".yaml", ".yml"}
"""What people and programs keep beside images, by the ends of names."""


def folder(
    path: str | os.PathLike[str],
    split: str,
    *,
    size: Count | None = 32,
    channels: Count = 3,
    limit_bytes: Bytes = 256 * 2**20,
) -> Examples:
    """Opens a folder of images.

    With ``path/train/<class>/…`` each folder beside "train" is a split, and the classes are the
    sub-folders of "train", in alphabetical order. Otherwise the classes are the sub-folders of
    ``path``, and every image whose ``class/name`` has a SHA-256 divisible by five is in "test",
    about 20 %, the others in "train": adding images does not move others to the other side. A
    folder without sub-folders is a set without classes, for generators; it is split in the same
    way.

    Images may lie deeper inside a class folder, and behind links. Hidden files are ignored, a link
    to nowhere and files beside class folders are left out with a warning, any other file must be an
    image (``data.images.FORMATS``). It is turned upright (EXIF), its transparency is dropped, and
    its largest centred square is resized (bilinear, antialiased). A split of at most
    ``limit_bytes`` after that is read at once, so that a bad file is found at the start; a larger
    one is read image by image.

    Args:
        path: the folder.
        split: "train", "test", or the name of another folder beside "train".
        size: height and width of the images, in pixels; None leaves them as they are, which is for
            sources that resize them, such as ``data.squares.squared``.
        channels: 1 (grey) or 3 (RGB); images of the other kind are converted.
        limit_bytes: the largest split that is kept in memory.

    Raises:
        DataError: if the folder or the split is missing or empty, there is only one class,
            or a file is not an image, is truncated, or has more than 8 bits a channel (in a
            split above ``limit_bytes``, when that image is read).
    """
    if channels not in MODES:
        raise DataError(f"images of {channels} channels: use 1 or 3")
    names, files = folder_files(path, split)
    paths, label = zip(*files, strict=True)
    classes = np.array(label, np.int32) if names else None
    read_labels = None if classes is None else lambda: classes
    records = _Images(paths, classes, size, channels)
    class_names = tuple(map(readable, names))
    what = identified(paths, at_home(path))
    examples = Examples(records, class_names, read_labels, resized=size is not None, files=what)
    if size is not None and fits_in_memory(examples, limit_bytes):
        return replace(examples, records=Arrays(materialize(examples)), read_labels=None)
    return examples


def folder_files(
    path: str | os.PathLike[str], split: str
) -> tuple[list[str], list[tuple[Path, int]]]:
    """Names of the class folders, and the files of a split with their labels; none is opened.

    Args:
        path: see ``folder``.
        split: likewise.

    Raises:
        DataError: as ``folder``, but for the files themselves.
    """
    root = at_home(path)
    if not root.is_dir():
        raise DataError(f"no folder {root}; give the folder whose sub-folders are the classes")
    # A folder "train" with files but no folders of its own is a class (of vehicles, say).
    training = _subfolders(root / "train")
    has_splits = bool(training)
    directory = root / split if has_splits else root
    names = training or _subfolders(root)
    available = _subfolders(root) if has_splits else ["train", "test"]
    if len(names) == 1:
        raise DataError(
            f'{root} needs two or more sub-folders of images, one a class; has only "{names[0]}"'
        )
    if split not in available:
        raise DataError(f'{root} has no split "{split}"; it has {", ".join(available)}')
    others = _subfolders(directory) if has_splits and split != "train" else []
    if extra := sorted(set(others) - set(names)):
        raise DataError(f"{directory / extra[0]} is not a class of {root / 'train'}; rename it")
    if names:
        _tell_of_files(directory)
        every = [(x, label) for label, n in enumerate(names) for x in _class_files(directory / n)]
    else:
        every = [(file, 0) for file in visible_files(root)]
    if not (every or names):
        raise DataError(f"{root} has no images: add some, for classes in two or more sub-folders")
    files = [
        (file, label)
        for file, label in every
        if has_splits or is_test(file.relative_to(root)) == (split == "test")
    ]
    if not files:
        raise DataError(
            f'split "{split}" of {root} has no images; make folders {root / "train"} and '
            f"{root / 'test'} with a folder for each class inside"
        )
    return names, files


@dataclass(frozen=True)
class _Images:
    paths: tuple[Path, ...]
    label: Int[np.ndarray, " n"] | None
    size: int | None
    channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image = read_image(self.paths[index], self.channels)
        if self.size is not None:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        image = np.asarray(image).reshape(image.height, image.width, self.channels)
        label = {} if self.label is None else {"label": self.label[index]}
        return {"image": image, **label}


def is_test(relative: Path) -> bool:
    """Whether a file of a set without split folders is for testing: every fifth, by its name."""
    return int(hashlib.sha256(os.fsencode(relative.as_posix())).hexdigest(), 16) % 5 == 0


def visible_files(directory: Path) -> list[Path]:
    """The files in a folder, however deep, in order; not hidden ones, nor what desktops leave.

    Linked files and folders belong to it. Notes such as ``labels.csv``, what is neither a file nor
    a folder, such as a link to nowhere, and a link back to a folder above it, are left out with a
    warning.

    Raises:
        DataError: a folder that cannot be read.
    """
    files = list(_walk(directory, ())) if directory.is_dir() else []
    if notes := [path for path in files if path.suffix.lower() in _NOTES]:
        more = f", as {len(notes) - 1} more are" if len(notes) > 1 else ""
        _leave_out(notes[0], f"is no image by its name{more}")
    return [path for path in files if path.suffix.lower() not in _NOTES]


def _walk(directory: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    here = directory.resolve()
    above = (*above, here, *here.parents)
    for path, is_folder in _visible(directory):
        if not is_folder:
            if path.name not in _LEFT_BY_DESKTOPS:
                yield path
        elif path.resolve() in above:
            _leave_out(path, "links back to a folder above it")
        else:
            yield from _walk(path, above)


def _visible(directory: Path) -> Iterator[tuple[Path, bool]]:
    """Folders and files that are not hidden, in order, with whether each is a folder.

    All else is left out with a warning. A listing says what its entries are: links alone are looked
    up, for there may be a million files.
    """
    try:
        with os.scandir(directory) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"cannot read the folder {directory} ({error.strerror}): allow it, or move it away"
        ) from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = directory / entry.name
        known = path if entry.is_symlink() else entry  # a link to itself is an error to the latter
        if (is_folder := known.is_dir()) or known.is_file():
            yield path, is_folder
        elif known is path:
            _leave_out(path, f"is a link to {os.readlink(path)}, which is not there")
        else:
            _leave_out(path, "is neither a file nor a folder")


def _tell_of_files(directory: Path) -> None:
    """A warning of files that lie beside class folders, and so in no class."""
    entries = directory.iterdir() if directory.is_dir() else ()
    files = sorted(x for x in entries if x.is_file() and not x.name.startswith("."))
    if files := [x for x in files if x.name not in _LEFT_BY_DESKTOPS]:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        _leave_out(files[0], f"lies beside the folders of the classes{more}")


def _leave_out(entry: Path, why: str) -> None:
    logging.getLogger(__name__).warning("left out %s: it %s", entry, why)


def _subfolders(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return [path.name for path, is_folder in _visible(directory) if is_folder]


def _class_files(directory: Path) -> list[Path]:
    files = visible_files(directory)
    if directory.is_dir() and not files:  # a test split may lack a class
        raise DataError(f"class folder {directory} has no images; add some or remove the folder")
    return files
