"""Image files as pixels: any mode that Pillow reads, upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from opsin.data.examples import DataError

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for a number of channels."""

# TIFF 6.0, section 8: the tag that says what a picture of a file is, and two of its bits.
_NEW_SUBFILE_TYPE, _REDUCED, _MASK = 254, 1, 4


def read_image(path: Path, channels: int, *, deep: bool = False) -> Image.Image:
    """Reads an image file, turned upright (EXIF), without its transparency, 8 bits a channel.

    Args:
        path: of the file.
        channels: 1 (grey) or 3 (RGB); images of the other kind, and of a palette, are converted.
        deep: take images of 16 bits a channel too, and keep the 8 highest.

    Raises:
        DataError: if the file is missing, empty, truncated or no image, has several pages, or has
            more than 8 bits a channel where ``deep`` does not allow it.
    """
    try:
        with Image.open(path) as image:
            require_one_page(image)
            # Pillow reads the high bytes of colours of 16 bits, and says so nowhere else.
            if not deep and "16" in raw_mode(image):
                raise ValueError("it has more than 8 bits a channel")
            upright = ImageOps.exif_transpose(image)
            if deep and upright.mode.startswith("I;16"):
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.mode[0] in "IF":  # Pillow would clip them to white
                raise ValueError("it has more than 8 bits a channel")
            if "transparency" in upright.info:  # else Pillow warns about palettes
                upright = upright.convert("RGBA")
            return upright.convert(MODES[channels])
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"there is no image {path}: {error.strerror}") from error
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(
            f"cannot read image {path}: {error}; repair it, save it as an 8-bit image or remove it"
        ) from error


def raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores pixels, as "RGB;16B" or "L;4"; empty where its format does not say."""
    for tile in image.tile:  # (codec, extents, offset, arguments), the mode first of these
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if arguments and isinstance(arguments[0], str):
            return arguments[0]
    return ""


def require_one_page(image: Image.Image) -> None:
    """Raises ValueError for a file of several pages: Pillow would read the first alone."""
    pages = _pages(image)
    if pages > 1:
        raise ValueError(f"it has {pages} pages; save each as a file of its own")


def _pages(image: Image.Image) -> int:
    """Pictures that stand for themselves: neither a camera's previews, nor layers, nor masks."""
    frames = getattr(image, "n_frames", 1)
    if image.format in ("MPO", "PSD"):  # Pillow opens the picture itself, or all layers as one
        return 1
    if frames == 1 or not isinstance(image, TiffImagePlugin.TiffImageFile):
        return frames
    kinds = []
    for frame in range(frames):
        image.seek(frame)
        kinds.append(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0))
    image.seek(0)
    return 1 + sum(not kind & (_REDUCED | _MASK) for kind in kinds[1:])
