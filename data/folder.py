"""A folder of images, one sub-folder a class."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps

from data.examples import Arrays, DataError, Examples, fits_in_memory, materialize
from data.images import MODES, read_image

_LEFT_BY_DESKTOPS = {"Thumbs.db", "desktop.ini"}


def folder(
    path: str | os.PathLike[str],
    split: str,
    *,
    size: int = 32,
    channels: int = 3,
    limit_bytes: int = 256 * 2**20,
) -> Examples:
    """Opens a folder of images.

    With `path/train/<class>/…` each folder beside "train" is a split, and the classes are the
    sub-folders of "train", in alphabetical order. Otherwise the classes are the sub-folders of
    `path`, and every image whose `class/name` has a SHA-256 divisible by five is in "test", about
    20 %, the others in "train": adding images does not move others to the other side. A folder
    without sub-folders is a set without classes, for generators; it is split in the same way.

    Images may lie deeper inside a class folder. Hidden files are ignored, any other file must be an
    image that Pillow reads. It is turned upright (EXIF), its transparency is dropped, and its
    largest centred square is resized (bilinear, antialiased). A split of at most
    `limit_bytes` after that is read at once, so that a bad file is found at the start; a larger
    one is read image by image.

    Args:
      path: the folder.
      split: "train", "test", or the name of another folder beside "train".
      size: height and width of the images, in pixels.
      channels: 1 (grey) or 3 (RGB); images of the other kind are converted.
      limit_bytes: the largest split that is kept in memory.

    Raises:
      DataError: if the folder or the split is missing or empty, there is only one class,
        or a file is not an image, is truncated, or has more than 8 bits a channel (in a
        split above `limit_bytes`, when that image is read).
    """
    if channels not in MODES or size < 1:
        raise DataError(f"size {size} with {channels} channels; use 1 or 3 and at least one pixel")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder {root}; give the folder whose sub-folders are the classes")
    # A folder "train" with files but no folders of its own is a class (of vehicles, say).
    has_splits = bool(_subfolders(root / "train"))
    directory = root / split if has_splits else root
    names = _subfolders(root / "train" if has_splits else root)
    available = _subfolders(root) if has_splits else ["train", "test"]
    if not has_splits and not names:
        return _flat(root, split, size, channels, limit_bytes)
    if len(names) < 2:
        found = f'only "{names[0]}"' if names else "none"
        raise DataError(f"{root} needs two or more sub-folders of images, one a class; has {found}")
    if split not in available:
        raise DataError(f'{root} has no split "{split}"; it has {", ".join(available)}')
    if extra := sorted(set(_subfolders(directory)) - set(names)):
        raise DataError(f"{directory / extra[0]} is not a class of {root / 'train'}; rename it")
    files = [
        (file, label)
        for label, name in enumerate(names)
        for file in _class_files(directory / name)
        if has_splits or is_test(file.relative_to(root)) == (split == "test")
    ]
    if not files:
        raise DataError(
            f'split "{split}" of {root} has no images; make folders {root / "train"} and '
            f"{root / 'test'} with a folder for each class inside"
        )
    paths, label = zip(*files, strict=True)
    classes = np.array(label, np.int32)
    records = _Images(paths, classes, size, channels)
    return _kept(Examples(records, tuple(names), lambda: classes, resized=True), limit_bytes)


def _flat(root: Path, split: str, size: int, channels: int, limit_bytes: int) -> Examples:
    """Images without classes, which generators may learn."""
    if split not in ("train", "test"):
        raise DataError(f'{root} has no split "{split}"; it has train, test')
    files = visible_files(root)
    if not files:
        raise DataError(f"{root} has no images: add some, for classes in two or more sub-folders")
    own = [file for file in files if is_test(file.relative_to(root)) == (split == "test")]
    if not own:
        raise DataError(f'split "{split}" of {root} has no images; add more')
    return _kept(Examples(_Images(tuple(own), None, size, channels), resized=True), limit_bytes)


def _kept(examples: Examples, limit_bytes: int) -> Examples:
    """The same examples, in memory if they fit."""
    if not fits_in_memory(examples, limit_bytes):
        return examples
    return replace(examples, records=Arrays(materialize(examples)), read_labels=None)


@dataclass(frozen=True)
class _Images:
    paths: tuple[Path, ...]
    label: Int[np.ndarray, " n"] | None
    size: int
    channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        upright = read_image(self.paths[index], self.channels)
        square = ImageOps.fit(upright, (self.size, self.size), Image.Resampling.BILINEAR)
        image = np.asarray(square).reshape(self.size, self.size, self.channels)
        return (
            {"image": image} if self.label is None else {"image": image, "label": self.label[index]}
        )


def is_test(relative: Path) -> bool:
    """Whether a file of a set without split folders is for testing: every fifth, by its name."""
    return int(hashlib.sha256(relative.as_posix().encode()).hexdigest(), 16) % 5 == 0


def visible_files(directory: Path) -> list[Path]:
    """The files in a folder, however deep, in order; not hidden ones, nor what desktops leave."""
    if not directory.is_dir():
        return []
    return sorted(
        file
        for file in directory.rglob("*")
        if file.is_file()
        and file.name not in _LEFT_BY_DESKTOPS
        and not any(part.startswith(".") for part in file.relative_to(directory).parts)
    )


def _subfolders(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(p.name for p in directory.iterdir() if p.is_dir() and p.name[0] != ".")


def _class_files(directory: Path) -> list[Path]:
    files = visible_files(directory)
    if directory.is_dir() and not files:  # a test split may lack a class
        raise DataError(f"class folder {directory} has no images; add some or remove the folder")
    return files
