"""Image files as they are met: what each holds, and what is right to read from it.

A picture is 6 pixels wide and 4 high, one colour all over, but for those that are turned.
"""

import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin


class Right(NamedTuple):
    """What is read: the colour of the first pixel, and the size of the image.

    ``bits`` above 8 are refused unless deep images are wanted; ``near`` is the rounding of a codec.
    """

    first: tuple[int, int, int]
    width: int = 6
    height: int = 4
    bits: int = 8
    near: int = 0


RED = (200, 10, 30)
WHITE = (255, 255, 255)


def grey(value: int, **more: Any) -> Right:
    return Right((value,) * 3, **more)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def plain(mode: str, colour: Any, form: str = "PNG", **options: Any) -> bytes:
    return encoded(Image.new(mode, (6, 4), colour), form, **options)


def palette(**options: Any) -> bytes:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, "PNG", **options)


def several(form: str, count: int = 2, **options: Any) -> bytes:
    frames = [Image.new("RGB", (6, 4), (200 - 100 * i, 10, 30)) for i in range(count)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)


def png(depth: int, kind: int, row: bytes, *, width=6, height=4, interlaced=0) -> bytes:
    """A PNG of rows of one content, of what Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([depth, kind, 0, 0, interlaced]))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * min(height, 4)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def tiff(bits: int, samples: int, pixels: bytes, *, signed: bool = False) -> bytes:
    """A TIFF of 6 × 4 pixels in one strip, little-endian, of what Pillow does not write."""
    kind = {1: 1, 3: 2}[samples]
    tags = [
        (256, 3, 1, 6),
        (257, 3, 1, 4),
        (258, 3, 1, bits) if samples == 1 else (258, 3, 3, 8 + 2 + 12 * 9 + 4),
        (259, 3, 1, 1),
        (262, 3, 1, kind),
        (273, 4, 1, 8 + 2 + 12 * 9 + 4 + 6),
        (277, 3, 1, samples),
        (279, 4, 1, len(pixels)),
        (339, 3, 1, 2 if signed else 1),
    ]
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + bytes(4)
    return head + struct.pack("<HHH", bits, bits, bits) + pixels


def bmp_565() -> bytes:
    """16 bits a pixel, of which green has 6: 8 bits a channel are enough."""
    form = struct.pack("<IiiHHIIiiII", 40, 6, 4, 1, 16, 3, 48, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(form) + len(masks)
    head = b"BM" + struct.pack("<IHHI", start + 48, 0, 0, start)
    return head + form + masks + struct.pack("<H", 0xF800) * 24


def pages_with(kinds: tuple[int, ...]) -> bytes:
    """A TIFF whose pages say what they are: 0 a picture, 1 a smaller copy, 4 a mask."""
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer, True) as file:
        for place, kind in enumerate(kinds):
            if place:
                file.newFrame()
            size = (6, 4) if kind == 0 else (3, 2)
            colour = RED if kind == 0 else (1, 2, 3)
            Image.new("RGB", size, colour).save(file, format="TIFF", tiffinfo={254: kind})
        file.finalize()
    return buffer.getvalue()


def turned(orientation: int, form: str = "PNG") -> bytes:
    """Stored so that, turned upright, it is 6 wide and 4 high, and white at the first pixel."""
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = 255
    back = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }.get(orientation, lambda x: x)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    image = Image.fromarray(np.ascontiguousarray(back(upright)))
    return encoded(image, form, exif=exif, **options)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def noise(form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return encoded(Image.fromarray(pixels), form)


NO_FORM = "it is no PNG, JPEG, .* or PSD file"

WILD: dict[str, tuple[bytes, Right | str]] = {
    # Modes of PNG.
    "1.png": (plain("1", 1), grey(255)),
    "L.png": (plain("L", 7), grey(7)),
    "LA.png": (plain("LA", (100, 0)), grey(100)),
    "P.png": (palette(), Right(RED)),
    "P-transparent.png": (palette(transparency=1), Right(RED)),
    "P-opacities.png": (palette(transparency=b"\xff\x80"), Right(RED)),
    "P-1-bit.png": (palette(bits=1), Right(RED)),
    "P-4-bits.png": (palette(bits=4), Right(RED)),
    "RGB.png": (plain("RGB", RED), Right(RED)),
    "RGBA.png": (plain("RGBA", (*RED, 0)), Right(RED)),
    "1-transparent.png": (plain("1", 1, transparency=1), grey(255)),
    "L-transparent.png": (plain("L", 7, transparency=7), grey(7)),
    "RGB-transparent.png": (plain("RGB", RED, transparency=RED), Right(RED)),
    "grey-2-bits.png": (png(2, 0, b"\xaa\xaa"), grey(170)),
    "grey-4-bits.png": (png(4, 0, b"\x55" * 3), grey(85)),
    "grey-16-bits.png": (plain("I;16", 0x1234), grey(0x12, bits=16)),
    "LA-16-bits.png": (png(16, 4, b"\x12\x34\xff\xff" * 6), grey(0x12, bits=16)),
    "RGB-16-bits.png": (png(16, 2, b"\x12\x34" * 18), grey(0x12, bits=16)),
    "RGBA-16-bits.png": (png(16, 6, b"\x12\x34" * 24), grey(0x12, bits=16)),
    "interlaced.png": (
        png(8, 0, b"\x07", width=1, height=1, interlaced=1), grey(7, width=1, height=1)
    ),
    # JPEG and its kin.
    "RGB.jpg": (plain("RGB", RED, "JPEG", quality=95), Right(RED, near=3)),
    "L.jpg": (plain("L", 100, "JPEG"), grey(100, near=1)),
    "CMYK.jpg": (plain("CMYK", (0, 0, 0, 55), "JPEG", quality=95), grey(200, near=3)),
    "progressive.jpg": (plain("RGB", RED, "JPEG", progressive=True), Right(RED, near=4)),
    "garbled-exif.jpg": (plain("L", 100, "JPEG", exif=b"Exif\0\0nothing"), grey(100, near=1)),
    "camera.jpg": (several("MPO"), Right(RED, near=4)),
    "camera.mpo": (several("MPO", 3), Right(RED, near=4)),
    # How the camera was held.
    **{f"turned-{k}.png": (turned(k), Right(WHITE)) for k in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)},
    "turned.tif": (turned(6, "TIFF"), Right(WHITE)),
    "turned.webp": (turned(8, "WEBP"), Right(WHITE)),
    # GIF, WebP, AVIF, and several pictures in one file.
    "P.gif": (plain("P", 0, "GIF"), grey(0)),
    "transparent.gif": (plain("P", 0, "GIF", transparency=0), grey(0)),
    "moving.gif": (several("GIF"), "it has 2 pages"),
    "moving.png": (several("PNG"), "it has 2 pages"),
    "still.png": (several("PNG", 1), Right(RED)),
    "moving.webp": (several("WEBP"), "it has 2 pages"),
    "RGB.webp": (plain("RGB", RED, "WEBP", lossless=True), Right(RED)),
    "RGBA.webp": (plain("RGBA", (*RED, 128), "WEBP", lossless=True), Right(RED)),
    "RGB.avif": (plain("RGB", RED, "AVIF", quality=95), Right(RED, near=6)),
    # TIFF.
    "1.tif": (plain("1", 1, "TIFF"), grey(255)),
    "L.tif": (plain("L", 7, "TIFF"), grey(7)),
    "PA.tif": (plain("PA", (0, 9), "TIFF"), grey(0)),
    "RGBA.tif": (plain("RGBA", (*RED, 9), "TIFF"), Right(RED)),
    "CMYK.tif": (plain("CMYK", (55, 0, 0, 0), "TIFF"), Right((200, 255, 255))),
    "YCbCr.tif": (plain("YCbCr", (100, 128, 128), "TIFF"), grey(100)),
    "LAB.tif": (plain("LAB", (255, 128, 128), "TIFF"), grey(255, near=1)),
    "squeezed.tif": (plain("RGB", RED, "TIFF", compression="tiff_lzw"), Right(RED)),
    "12-bits.tif": (tiff(12, 1, b"\x12\x31\x23" * 12), grey(0x12, bits=12)),
    "16-bits.tif": (plain("I;16", 0x1234, "TIFF"), grey(0x12, bits=16)),
    "RGB-16-bits.tif": (tiff(16, 3, b"\x34\x12" * 72), grey(0x12, bits=16)),
    "signed.tif": (tiff(16, 1, b"\x00\x80" * 24, signed=True), "more than 8 bits|below 0"),
    "32-bits.tif": (plain("I", 7, "TIFF"), "more than 8 bits a channel .32."),
    "float.tif": (plain("F", 0.5, "TIFF"), "more than 8 bits a channel .32."),
    "pages.tif": (several("TIFF"), "it has 2 pages"),
    "pyramid.tif": (pages_with((0, 1, 1)), Right(RED)),
    "preview-first.tif": (pages_with((1, 0)), Right(RED)),
    "with-mask.tif": (pages_with((0, 4)), Right(RED)),
    # Older ones.
    "RGB.bmp": (plain("RGB", RED, "BMP"), Right(RED)),
    "16-bits-a-pixel.bmp": (bmp_565(), Right((255, 0, 0))),
    "RGB.tga": (plain("RGB", RED, "TGA"), Right(RED)),
    "P6.ppm": (plain("RGB", RED, "PPM"), Right(RED)),
    "P4.pbm": (plain("1", 0, "PPM"), grey(0)),
    "P5-15.pgm": (b"P5 6 4 15\n" + b"\x0f" * 24, grey(255)),
    "P5-1023.pgm": (b"P5 6 4 1023\n" + b"\x02\x00" * 24, grey(128, bits=16)),
    "P5-65535.pgm": (b"P5 6 4 65535\n" + b"\x12\x34" * 24, grey(0x12, bits=16)),
    "P6-65535.ppm": (b"P6 6 4 65535\n" + b"\x12\x34" * 72, grey(0x12, bits=16)),
    "float.pfm": (b"Pf 6 4 -1.0\n" + bytes(96), "more than 8 bits a channel .32."),
    # Extreme shapes.
    "long.png": (encoded(Image.new("L", (10_000, 1), 7), "PNG"), grey(7, width=10_000, height=1)),
    "tall.png": (encoded(Image.new("L", (1, 10_000), 7), "PNG"), grey(7, width=1, height=10_000)),
    # Names.
    "png.jpg": (plain("RGB", RED), Right(RED)),
    "no-suffix": (plain("RGB", RED), Right(RED)),
    "UPPER.PNG": (plain("RGB", RED), Right(RED)),
    "cost_$1_$2.png": (plain("RGB", RED), Right(RED)),
    "_first.png": (plain("RGB", RED), Right(RED)),
    "a b.c.png": (plain("RGB", RED), Right(RED)),
    "-n.png": (plain("RGB", RED), Right(RED)),
    "caf\udce9.png": (plain("RGB", RED), Right(RED)),
    # No images.
    "empty.png": (b"", NO_FORM),
    "notes.png": (b"not an image", NO_FORM),
    "page.jpg": (b"<html><body>404</body></html>", NO_FORM),
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n", NO_FORM),
    "paper.png": (b"%PDF-1.4\n", NO_FORM),
    "icon.png": (plain("RGB", RED, "ICO"), NO_FORM),
    "JPEG-2000.jpg": (plain("RGB", RED, "JPEG2000"), NO_FORM),
    "cut.png": (cut(noise("PNG")), "truncated|broken"),
    "cut.jpg": (cut(noise("JPEG")), "truncated"),
    "cut.tif": (cut(noise("TIFF")), "."),
    "head.png": (noise("PNG")[:20], "."),
    "bomb.png": (png(8, 0, b"", width=40_000, height=40_000), r"more than 178,\d+,\d+ pixels"),
}  # fmt: skip
