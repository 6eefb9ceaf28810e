"""Fonts for what Matplotlib's own has no glyph of, such as names of classes in Chinese."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from matplotlib import artist, font_manager, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from opsin.errors import visible

MISSING = re.compile(r"Glyph (\d+) .* missing from font")
BOXES = "Last Resort"
"""The font that Matplotlib draws what no other has in: a box for any character."""


def print_png(figure: Figure, file: IO[bytes]) -> None:
    """Writes a figure as PNG, its text in fonts of this machine where the usual one lacks glyphs.

    Where none has them, boxes are drawn, and the log says so in a line.
    """
    lacking = _printed(figure, file)
    if not lacking:
        return
    families, left = covering(lacking)
    if families:
        chosen = [*rcParams["font.family"], *families]
        artist.setp(figure.findobj(Text), family=chosen)  # pyright: ignore[reportArgumentType]
        file.seek(0)
        file.truncate()
        with _unasked_weights():
            left = _printed(figure, file)
    if left:
        logging.getLogger(__name__).warning(
            "pictures show boxes for %s: no installed font has them; install one that has, such as "
            "Debian's fonts-noto-cjk for Chinese, Japanese and Korean",
            visible(" ".join(sorted(left))),
        )


def covering(characters: set[str]) -> tuple[list[str], set[str]]:
    """Families of installed fonts that together have these characters, and what none has."""
    families: list[str] = []
    left = set(characters)
    for font in sorted(font_manager.fontManager.ttflist, key=_unlike_text):
        has: set[str] = set()
        if not left or font.name.startswith(BOXES) or not Path(font.fname).exists():
            continue
        with suppress(OSError, RuntimeError):  # a font that cannot be read
            has = {c for c in left if ord(c) in font_manager.get_font(font.fname).get_charmap()}
        if has:
            families.append(font.name)
            left -= has
    return families, left


def _unlike_text(font: font_manager.FontEntry) -> tuple[bool, int]:
    """Orders fonts: upright before slanted ones, then those of about a regular weight."""
    weight = font.weight
    known = font_manager.weight_dict[weight] if isinstance(weight, str) else weight
    return font.style != "normal", abs(known - 400)


@contextmanager
def _unasked_weights() -> Iterator[None]:
    """Without Matplotlib's word on each text in a font that is not there in a regular weight."""
    log = logging.getLogger("matplotlib.font_manager")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _printed(figure: Figure, file: IO[bytes]) -> set[str]:
    """Writes a figure; the characters that it has no glyph of."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        FigureCanvasAgg(figure).print_png(file)  # pyright: ignore[reportArgumentType]
    lacking: set[str] = set()
    for warning in heard:
        if glyph := MISSING.match(str(warning.message)):
            lacking.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return lacking
