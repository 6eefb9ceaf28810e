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
    if len(names) == 1:
        raise DataError(
            f'{root} needs two or more sub-folders of images, one a class; has only "{names[0]}"'
        )
    if split not in available:
        raise DataError(f'{root} has no split "{split}"; it has {", ".join(available)}')
    if extra := sorted(set(_subfolders(directory)) - set(names)):
        raise DataError(f"{directory / extra[0]} is not a class of {root / 'train'}; rename it")
    if names:
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
    paths, label = zip(*files, strict=True)
    classes = np.array(label, np.int32) if names else None
    read_labels = None if classes is None else lambda: classes
    records = _Images(paths, classes, size, channels)
    examples = Examples(records, tuple(names), read_labels, resized=True)
    if fits_in_memory(examples, limit_bytes):
        return replace(examples, records=Arrays(materialize(examples)), read_labels=None)
    return examples


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
        label = {} if self.label is None else {"label": self.label[index]}
        return {"image": image, **label}


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
