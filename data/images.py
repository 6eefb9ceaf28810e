"""Image files as pixels: one picture a file, of a format of this list, upright."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from opsin.data.examples import DataError
from opsin.ranges import Count

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for a number of channels."""

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF", "TGA", "PSD")
"""What is read, by content and not by suffix: Pillow would start other programs for some others."""

# TIFF 6.0, section 8: tags, and two bits of the one that says what a picture of a file is.
_BITS_PER_SAMPLE, _NEW_SUBFILE_TYPE, _REDUCED, _MASK = 258, 254, 1, 4
_BITS = {"1": 1, "1;I": 1, "L;2": 2, "L;4": 4}


def read_image(path: Path, channels: int, *, deep: bool = False) -> Image.Image:
    """Reads an image file, turned upright (EXIF), without its transparency, 8 bits a channel.

    Args:
        path: of the file.
        channels: 1 (grey) or 3 (RGB); images of the other kind, and of a palette, are converted.
        deep: take images of up to 16 bits a channel too, and keep the 8 highest.

    Raises:
        DataError: if the file is missing, empty, truncated, too large or no image of ``FORMATS``,
            has several pages, or has more than 8 bits a channel where ``deep`` does not allow it.
    """
    with opened(path) as image:
        bits = bits_per_channel(image)
        if bits > (16 if deep else 8):
            raise ValueError(f"it has more than 8 bits a channel ({bits})")
        upright = ImageOps.exif_transpose(image)
        if deep and upright.mode[0] == "I":  # grey; Pillow halves colours of 16 bits itself
            highest = np.asarray(upright) >> (bits - 8)
            if highest.min() < 0:
                raise ValueError("it has numbers below 0")
            upright = Image.fromarray(highest.astype(np.uint8))
        return converted(upright, channels)


def converted(image: Image.Image, channels: int) -> Image.Image:
    """An image of 8 bits a channel in grey (1) or RGB (3), without its transparency."""
    # Pillow warns about palettes, and turns LAB into RGB alone.
    if "transparency" in image.info or image.mode == "LAB":
        image = image.convert("RGB" if image.mode == "LAB" else "RGBA")
    return image.convert(MODES[channels])


@contextmanager
def opened(
    path: Path,
    what: str = "image",
    way_out: str = "repair it, save it as one picture of 8 bits a channel, or remove it",
) -> Iterator[ImageFile.ImageFile]:
    """Opens a file of one picture, and reads no pixel yet.

    Raises:
        DataError: instead of whatever is raised meanwhile, in the name of the file.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is no {what} but a device or a pipe, which may never end")
    try:
        with Image.open(path, formats=FORMATS) as image:
            _to_the_picture(image)
            yield image
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"there is no {what} {path}: {error.strerror}") from error
    except PermissionError as error:
        raise DataError(f"cannot read {what} {path}: {error.strerror}; make it readable") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(
            f"cannot read {what} {path}: it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file; "
            "convert it or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"cannot read {what} {path}: it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} "
            "pixels; cut it into parts"
        ) from error
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"cannot read {what} {path}: {error}; {way_out}") from error


def turn_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8: 1 is upright; from 5 on, height and width are exchanged."""
    turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    return turn if turn in range(2, 9) else 1


def bits_per_channel(image: ImageFile.ImageFile) -> int:
    """How many bits a channel, or a colour of a palette, has in the file.

    Pillow reads colours of 16 bits as 8, and its modes do not tell.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    if image.mode == "F":
        return 32
    form, *more = _decoding(image)
    if image.format == "PPM" and (image.mode == "I" or more[:1] > [255]):  # its largest value
        return 16
    return 16 if form.endswith(";16B") else _BITS.get(form, 8)


def _decoding(image: ImageFile.ImageFile) -> tuple[Any, ...]:
    """What Pillow decodes a file by: the form of its pixels, as "RGB;16B" or "L;4", and more."""
    for tile in image.tile:  # (codec, extents, offset, arguments)
        arguments: Any = tile[3]
        listed = arguments if isinstance(arguments, tuple) else (arguments,)
        if listed and isinstance(listed[0], str):
            return listed
    return ("",)


def _to_the_picture(image: ImageFile.ImageFile) -> None:
    """Turns to the one picture that stands for itself: no preview, layer or mask of another.

    Raises:
        ValueError: there are several.
    """
    frames = getattr(image, "n_frames", 1)
    # Of a camera's MPO Pillow opens the picture itself, and all layers of a PSD as one.
    if frames == 1 or image.format in ("MPO", "PSD"):
        return
    pages = range(frames)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        pages = [page for page in pages if not _is_auxiliary(image, page)] or [0]
    if len(pages) > 1:
        raise ValueError(f"it has {len(pages)} pages")
    image.seek(pages[0])


def _is_auxiliary(image: TiffImagePlugin.TiffImageFile, page: int) -> bool:
    image.seek(page)
    return bool(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & (_REDUCED | _MASK))


def recoded(
    image: UInt8[np.ndarray, "height width channels"], *, quality: Count
) -> UInt8[np.ndarray, "height width channels"]:
    """An image after it was coded as JPEG, with chroma of half the size, and decoded."""
    coded = io.BytesIO()
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    pixels.save(coded, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(coded)).reshape(image.shape)
