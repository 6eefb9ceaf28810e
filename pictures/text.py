"""Text in pictures. All that a user may have written, such as names of classes, goes through here.

Matplotlib reads formulas between two dollars, and leaves names that begin with "_" out of legends.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opsin.errors import in_one_line, visible


def as_written(text: str) -> str:
    """Text that Matplotlib draws as it is, also a file name that is not UTF-8."""
    return visible(text).replace("$", r"\$")


def all_written(texts: Iterable[str]) -> list[str]:
    """``as_written`` of each."""
    return [as_written(text) for text in texts]


def legend(of: Axes | Figure, handles: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """A legend of all the handles, whatever their names begin with."""
    drawn = of.legend(handles, [""] * len(handles), **options)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_text(as_written(name))


def class_name(label: int, class_names: Sequence[str]) -> str:
    """The name of a class, or the number of what is none, such as −1."""
    return in_one_line(class_names[label]) if 0 <= label < len(class_names) else str(label)


def fitted(caption: str) -> str:
    """A caption in lines that are as wide as an image of a grid, three at most."""
    lines = textwrap.wrap(caption, 22, max_lines=3, placeholder=" …")
    return "\n".join(all_written(lines))


def class_caption(label: np.ndarray, class_names: Sequence[str]) -> str:
    """The name of a class, or the shares of a soft label: ``cat 0.7 dog 0.3``."""
    if np.ndim(label) == 0:
        return class_name(int(label), class_names)
    class_names = class_names or [str(index) for index in range(len(label))]
    parts = [(share, name) for share, name in zip(label, class_names, strict=True) if share > 0.005]
    if len(parts) == 1:
        return in_one_line(parts[0][1])
    likeliest = sorted(parts, reverse=True)[:2]
    return " ".join(f"{in_one_line(name)} {share:.2f}" for share, name in likeliest)
