"""Values as they are typed behind a flag: how each is read, and refused in one line.

Each is a type of its own: ``Count[int]`` is always there, ``Count[int | None]`` may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

Value = TypeVar("Value")


def _typed(read: Callable[[str], Any], metavar: str) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
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


def _whole(text: str) -> int:
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _index(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number, counted from 0")
    return int(text)


def _process_count(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _share(text: str) -> float:
    if not 0 < (share := _number(text)) <= 1:
        raise ValueError(f"{text!r} is not a share between 0 and 1")
    return share


def _seconds(text: str) -> float:
    if not (seconds := _number(text)) > 0:
        raise ValueError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"{text!r} is not HOST:PORT, as in 10.0.0.1:7777")
    return text


def _steps(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"{text!r} is not first:last, two steps counted from 1, as in 10:12")
    return int(first), int(last)


def _axes(text: str) -> dict[str, int]:
    axes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not axis.isidentifier() or not size.removeprefix("-").isdecimal() or axis in axes:
            raise ValueError(f"{text!r} is not axes with their sizes, as in data=16,fsdp=16")
        axes[axis] = int(size)
    return axes


Whole = Annotated[Value, _typed(_whole, "N")]
Count = Annotated[Value, _typed(_count, "N")]
Index = Annotated[Value, _typed(_index, "I")]
ProcessCount = Annotated[Value, _typed(_process_count, "N")]
Number = Annotated[Value, _typed(_number, "X")]
Share = Annotated[Value, _typed(_share, "F")]
Seconds = Annotated[Value, _typed(_seconds, "SECONDS")]
Address = Annotated[Value, _typed(_address, "HOST:PORT")]
Steps = Annotated[Value, _typed(_steps, "A:B")]
Axes = Annotated[Value, _typed(_axes, "AXIS=N,…")]

Name = Annotated[str, arg(metavar="NAME", help="of an experiment, see opsin list; or ./FILE.py")]
Overrides = Annotated[tuple[str, ...], arg(metavar="[path=value …]", help="such as data.batch=64")]
Trust = Annotated[bool, arg(help="execute code of others that RUN names")]
Run = Annotated[Path, arg(metavar="RUN", help="its directory, runs/NAME/ID")]
