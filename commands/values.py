"""Values as they are typed behind a flag: how each is read, and refused in one line.

Each is a type of its own: ``Count[int]`` is always there, ``Count[int | None]`` may be left out.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from opsin import ranges
from opsin.data.files import at_home, check_new
from opsin.errors import ConfigError

Value = TypeVar("Value")


class _RefusedError(Exception):
    """A value that is none of its kind, and why. tyro breaks a ValueError's text in lines."""

    def __init__(self, value: str, why: str):
        super().__init__(why)
        self.value = value


@contextmanager
def refusals(words: Sequence[str], program: str) -> Iterator[None]:
    """Words the refusal of a value that is read meanwhile, and names the flag before it.

    Raises:
        ConfigError: a value is none of its kind.
    """
    try:
        yield
    except _RefusedError as refused:
        flag = _flag_of(refused.value, words)
        raise ConfigError(f"{flag}{refused}: see {program} --help") from None


def _flag_of(value: str, words: Sequence[str]) -> str:
    """``"--seeds: "``, or all flags that the value stands behind."""
    found: list[str] = []
    for before, word in itertools.pairwise(("", *words)):
        flag, equals, given = word.partition("=")
        if flag.startswith("--") and equals and given == value:
            found.append(flag)
        elif before.startswith("--") and word == value:
            found.append(before)
    return f"{' or '.join(found)}: " if found else ""


def _typed(read: Callable[[str], Any], metavar: str) -> PrimitiveConstructorSpec[Any]:
    def value(words: list[str]) -> Any:
        try:
            return read(words[0])
        except (ValueError, OSError) as error:
            told = error.strerror if isinstance(error, OSError) else None
            raise _RefusedError(words[0], told or str(error)) from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=value,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def one_of(*choices: str) -> PrimitiveConstructorSpec[Any]:
    """One of some words."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(choices) + "}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or value in choices,
        str_from_instance=lambda value: [str(value)],
        choices=choices,
    )


def whole(least: int, most: int) -> PrimitiveConstructorSpec[Any]:
    """A value that is a whole number, not below ``least`` and not above ``most``."""

    def read(text: str) -> int:
        if not (_digits(text.removeprefix("-")) and least <= int(text) <= most):
            raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return _typed(read, "N")


def number(above: float, most: float, what: str) -> PrimitiveConstructorSpec[Any]:
    """For numbers of a range without its lower end, and what they are."""

    def read(text: str) -> float:
        if not _NUMBER.fullmatch(text):
            raise ValueError(f"{text!r} is not a number")
        if not above < (value := float(text)) <= most:
            raise ValueError(f"{text!r} is not {what} above {above:g}, {most:g} at most")
        return value

    return _typed(read, "X")


_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)


def _digits(text: str) -> bool:
    """Whether a text is 1 to 20 digits as programs write them: Python reads those of any script."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def _process_count(text: str) -> int | None:
    if text == "auto":
        return None
    return COUNT.instance_from_str([text])


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not _digits(port) or not 0 < int(port) < 2**16:
        raise ValueError(f"{text!r} is not HOST:PORT, as in 10.0.0.1:7777")
    return text


def _window(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and _digits(first) and _digits(last) and 1 <= int(first) <= int(last)):
        raise ValueError(f"{text!r} is not first:last, two steps counted from 1, as in 10:12")
    return int(first), int(last)


def _numbers(text: str) -> tuple[float, ...]:
    parts = text.split(",")
    if not all(_NUMBER.fullmatch(part) for part in parts):
        raise ValueError(f"{text!r} is not numbers, as in 0.485,0.456,0.406")
    return tuple(map(float, parts))


def _axes(text: str) -> dict[str, int]:
    axes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not axis.isidentifier() or not _digits(size.removeprefix("-")) or axis in axes:
            raise ValueError(f"{text!r} is not axes with their sizes, as in data=16,fsdp=16")
        axes[axis] = int(size)
    return axes


def _place(text: str) -> Path:
    if not text:
        raise ValueError("nothing is named: this folder is written as .")
    return at_home(text)


def _folder(text: str) -> Path:
    path = _place(text)
    if path.exists() and not path.is_dir():
        raise ValueError(f"cannot write to {text}, which is no folder: choose another place")
    _check_place(path)
    return path


def _file(text: str) -> Path:
    path = _place(text)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device"
        raise ValueError(f"cannot write to {text}, which is {what}: choose another place")
    _check_place(path.parent)
    return path


def _new_file(text: str) -> Path:
    path = _file(text)
    check_new([path], "choose another place")
    return path


def _check_place(folder: Path) -> None:
    """Raises ValueError if a folder can be neither written to nor made."""
    there = next(each for each in [folder, *folder.absolute().parents] if each.exists())
    if not there.is_dir():
        raise ValueError(f"cannot write to {folder}: {there} is no folder: choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {folder}: {there} is read-only: choose another place")


def _ranged(kind: Any) -> PrimitiveConstructorSpec[Any]:
    """A value that is a number of a kind in ``opsin.ranges``."""
    (interval,) = kind.__metadata__
    return whole(interval.ge, interval.le)


COUNT = _ranged(ranges.Count)
Count = Annotated[Value, COUNT]
Index = Annotated[Value, _ranged(ranges.CountOrZero)]
Seed = Annotated[Value, _ranged(ranges.Seed)]
ProcessCount = Annotated[Value, _typed(_process_count, "N")]
Address = Annotated[Value, _typed(_address, "HOST:PORT")]
Window = Annotated[Value, _typed(_window, "A:B")]
"""Of steps, both included."""
Axes = Annotated[Value, _typed(_axes, "AXIS=N,…")]
Numbers = Annotated[Value, _typed(_numbers, "X,…")]
"""One a channel."""
Folder = Annotated[Value, _typed(_folder, "FOLDER")]
"""One to write into, which need not be there. A wrong one is answered before any work is done."""
File = Annotated[Value, _typed(_file, "FILE")]
"""A regular file to write, which need not be there."""
NewFile = Annotated[Value, _typed(_new_file, "FILE")]
"""One that must not be there: what a user names is never written over."""

Name = Annotated[str, arg(metavar="NAME", help="of an experiment, see opsin list; or ./FILE.py")]
Overrides = Annotated[tuple[str, ...], arg(metavar="[path=value …]", help="such as data.batch=64")]
Allow = UseAppendAction[
    Annotated[
        tuple[str, ...],
        arg(metavar="MODULE", help="code that RUN may name too: my_module, or ./my_losses.py;"),
    ]
]
Place = Annotated[Value, _typed(_place, "PATH")]
"""One to read, which the command itself looks for."""
Run = Annotated[Place[Path], arg(metavar="RUN", help="its directory, runs/NAME/ID")]
