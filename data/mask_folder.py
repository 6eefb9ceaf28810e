"""A folder of images and one of masks with the same names."""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from opsin.data.examples import Arrays, DataError, Examples, fits_in_memory, materialize
from opsin.data.files import at_home
from opsin.data.fingerprint import identified_pairs
from opsin.data.folder import is_test, visible_files
from opsin.data.images import MODES, bits_per_channel, opened, read_image, turn_of
from opsin.data.masks import IGNORE, CheckedMasks
from opsin.ranges import Bytes, Count


def mask_folder(
    path: str | os.PathLike[str],
    split: str,
    *,
    size: tuple[Count, Count] | None = None,
    mixed: bool = False,
    channels: Count = 3,
    limit_bytes: Bytes = 256 * 2**20,
) -> Examples:
    """Opens a folder of images and masks.

    The mask of ``images/…/name.jpg`` is ``masks/…/name.png``. With ``path/train/images`` each
    folder beside "train" with images of its own is a split. Otherwise ``path/images`` holds both
    splits, and every image whose name below it has a SHA-256 divisible by five is in "test", about
    20 %, the others in "train".

    A mask is a PNG file, grey with 8 bits or a palette: its numbers are the labels, 255 means
    ignored. One with 1 bit has the labels 0 and 1. Class names are the lines of
    ``path/classes.txt``, for the labels 0, 1, …; without that file, they are the numbers up to the
    largest label of the training split, or of all masks where the splits have no folders.

    Images may be of any kind that Pillow reads: they are turned upright (EXIF), transparency is
    dropped, and a palette, grey or RGB become what ``channels`` asks for. Hidden files are ignored.
    A split of at most ``limit_bytes`` is read at once, so that a bad file is found at the start; a
    larger one is read file by file.

    Args:
        path: the folder.
        split: "train", "test", or the name of another folder beside "train".
        size: height and width that images (bilinear, antialiased) and masks (nearest) are resized
            to, whatever their aspect ratio; None requires all to be of one size, unless ``mixed``.
        mixed: leave images of different sizes as they are, for sources that resize them, such as
            ``data.squares.squared``.
        channels: 1 (grey) or 3 (RGB).
        limit_bytes: the largest split that is kept in memory.

    Returns:
        Examples with ``image``, uint8 [height, width, channels], and ``mask``, uint8 [height,
        width].

    Raises:
        DataError: if the folder or the split is missing or empty, there are fewer than two classes,
            an image or a mask lacks the other, a file cannot be read or has more than 8 bits a
            channel, a mask has colours instead of labels, a label that is no class or no pixel that
            counts, or it does not lie on its image pixel by pixel (in a split above
            ``limit_bytes``, when that file is read).
    """
    if channels not in MODES:
        raise DataError(f"images of {channels} channels: use 1 or 3")
    root = at_home(path)
    pairs, training = mask_files(path, split)
    class_names = _class_names(root / "classes.txt", [mask for _, mask in training])
    first = None
    if size is None and not mixed:
        image = read_image(pairs[0][0], channels)
        first = image.height, image.width
    read = _Pairs(pairs, channels, size, first)
    records = CheckedMasks(read, lambda index: f"mask {pairs[index][1]}", len(class_names))
    what = identified_pairs(pairs, root)
    examples = Examples(records, class_names, resized=size is not None, files=what)
    if mixed or not fits_in_memory(examples, limit_bytes):
        return examples
    arrays = materialize(examples)
    masks = arrays["mask"]
    if np.any(masks == IGNORE) and not np.any((masks > 0) & (masks < IGNORE)):
        raise DataError(
            f'masks in split "{split}" of {root} are 0 and {IGNORE} alone, and {IGNORE} means '
            "ignored; save the foreground as 1"
        )
    return replace(examples, records=Arrays(arrays))


def mask_files(
    path: str | os.PathLike[str], split: str
) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """Images with their masks, of a split and of what says which classes there are; all unopened.

    Args:
        path: see ``mask_folder``.
        split: likewise.

    Raises:
        DataError: as ``mask_folder``, but for the files themselves.
    """
    root = at_home(path)
    has_splits = (root / "train" / "images").is_dir()
    if not has_splits and not (root / "images").is_dir():
        raise DataError(
            f"no images in {root}; put them into {root / 'images'} and their masks into "
            f"{root / 'masks'}, or make folders train and test that hold both"
        )
    splits = sorted(images.parent.name for images in root.glob("*/images") if images.is_dir())
    available = splits if has_splits else ["train", "test"]
    if split not in available:
        raise DataError(f'{root} has no split "{split}"; it has {", ".join(available)}')
    training = _pairs(root / "train" if has_splits else root)
    if has_splits:
        pairs = training if split == "train" else _pairs(root / split)
    else:
        names = [image.relative_to(root / "images") for image, _ in training]
        chosen = [is_test(name) == (split == "test") for name in names]
        pairs = list(itertools.compress(training, chosen))
    if not pairs:
        raise DataError(
            f'split "{split}" of {root} has no images; make folders {root / "train"} and '
            f"{root / 'test'} with folders images and masks inside"
        )
    return pairs, training


@dataclass(frozen=True)
class _Pairs:
    """Files of images and masks, resized to ``size``, or all of the ``first`` size, or as is."""

    paths: Sequence[tuple[Path, Path]]
    channels: int
    size: tuple[int, int] | None
    first: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        path, mask_path = self.paths[index]
        image, (mask, mask_turn) = read_image(path, self.channels), _read_mask(mask_path)
        height, width = image.height, image.width
        if mask.size != image.size:
            raise DataError(
                f"mask {mask_path} has {mask.height}x{mask.width} pixels and image {path} has "
                f"{height}x{width}, upright (EXIF), height first; save both upright and of one size"
            )
        with opened(path) as stored:
            turn = turn_of(stored)
        if not _is_aligned(image, turn, mask_turn):
            raise DataError(
                f"image {path} and mask {mask_path} differ in their EXIF orientation, so how the "
                "mask lies on the image is unknown; save both upright"
            )
        if self.size is not None:
            height, width = self.size
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            mask = mask.resize((width, height), Image.Resampling.NEAREST)
        elif self.first is not None and (height, width) != self.first:
            raise DataError(
                f"image {path} has {height}x{width} pixels and {self.paths[0][0]} has "
                f"{self.first[0]}x{self.first[1]}; pass size=(height, width) to mask_folder"
            )
        pixels = np.asarray(image).reshape(height, width, self.channels)
        return {"image": pixels, "mask": _labels(mask)}


def _pairs(home: Path) -> list[tuple[Path, Path]]:
    """Images of a folder, in order, with their masks."""
    images, masks = _by_name(home / "images"), _by_name(home / "masks")
    for name, mask in masks.items():
        if mask.suffix.lower() != ".png":
            raise DataError(f"mask {mask} is not a PNG file, which keeps labels exact; convert it")
        if name not in images:
            raise DataError(f"mask {mask} has no image in {home / 'images'}; add it or remove it")
    for name, image in images.items():
        if name not in masks:
            mask = home / "masks" / f"{name}.png"
            raise DataError(f"image {image} has no mask {mask}; add it or remove the image")
    return [(image, masks[name]) for name, image in images.items()]


def _by_name(directory: Path) -> dict[str, Path]:
    """Files by their path in a folder, without the suffix."""
    found: dict[str, Path] = {}
    for file in visible_files(directory):
        other = found.setdefault(file.relative_to(directory).with_suffix("").as_posix(), file)
        if other != file:
            raise DataError(f"{other} and {file} have one name; rename or remove one of them")
    return found


def _class_names(file: Path, masks: Sequence[Path]) -> tuple[str, ...]:
    """The lines of a file, or else the numbers up to the largest label in the masks."""
    if file.is_file():
        try:
            names = [line.strip() for line in file.read_text("utf-8-sig").strip().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {file}: {error}; save it as UTF-8 text") from error
        if not 2 <= len(names) <= IGNORE or "" in names:
            raise DataError(
                f"{file} has {len(names)} lines, {names.count('')} of them empty; write one class "
                f"a line, for labels from 0 to at most {IGNORE - 1}"
            )
        return tuple(names)

    def largest(mask: Path) -> int:
        labels = _labels(_read_mask(mask)[0])
        return int(np.max(labels, where=labels != IGNORE, initial=0))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        last = max(pool.map(largest, masks), default=0)
    if last == 0:
        raise DataError(
            f"the training masks in {file.parent} have no label but 0, and {IGNORE} means ignored; "
            f"save the foreground as 1, or name all classes in {file}"
        )
    return tuple(map(str, range(last + 1)))


def _read_mask(path: Path) -> tuple[Image.Image, int]:
    """A mask turned upright, and the EXIF orientation that it was stored in."""
    way_out = "repair it, or save its classes as a PNG file of 8-bit grey, or of a palette"
    with opened(path, "mask", way_out) as mask:
        if mask.format != "PNG":
            raise ValueError(f"it is a {mask.format} file by its content, not PNG")
        if mask.mode not in ("1", "L", "P"):
            raise ValueError(f'it has colours or more than 8 bits a pixel (mode "{mask.mode}")')
        if bits_per_channel(mask) in (2, 4):
            raise ValueError("Pillow stretches grey of 2 or 4 bits to 0 to 255")
        return ImageOps.exif_transpose(mask), turn_of(mask)


def _labels(mask: Image.Image) -> UInt8[np.ndarray, "height width"]:
    return np.asarray(mask).astype(np.uint8)  # 1 bit reads as bool


def _is_aligned(upright: Image.Image, turn: int, mask_turn: int) -> bool:
    """Whether a mask is certain to lie on its image; upright, both have the same size.

    If both were stored with one orientation, it does. Otherwise the mask may have been drawn on the
    upright image or on the stored one, and only an exchange of height and width tells.
    """
    exchanged = (turn >= 5) != (mask_turn >= 5)
    return turn == mask_turn or (exchanged and upright.width != upright.height)
