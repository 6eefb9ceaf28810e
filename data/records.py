"""JSON that Opsin wrote, read as if anybody could have: of bounded size, and as its schema says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from opsin.errors import UserError

Record = TypeVar("Record")

LARGEST = 64 * 2**20
"""Bytes of a file, or of a line of one."""
DEEPEST = 64
"""Levels of lists and objects within one another."""


class RecordError(UserError):
    """A file of records that is missing or damaged."""


def read_record(path: Path, kind: type[Record], way_out: str) -> Record:
    """What a JSON file holds.

    Args:
        path: of the file.
        kind: its schema, see ``parse``.
        way_out: what to do if it cannot be read.

    Raises:
        RecordError: it is missing, too large or damaged.
    """
    try:
        return parse(bounded(path), kind)
    except (OSError, ValueError) as error:
        raise unreadable(path, error, way_out) from error


def read_records(path: Path, read: Callable[[bytes], Record], way_out: str) -> list[Record]:
    """What each line of a file holds.

    Args:
        path: of the file.
        read: one line, such as ``parse`` for a schema.
        way_out: what to do if one cannot be read.

    Raises:
        RecordError: the file is missing or too large, or a line is damaged: says which.
    """
    try:
        lines = bounded(path).splitlines()
    except (OSError, ValueError) as error:
        raise unreadable(path, error, way_out) from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(read(line))
        except ValueError as error:
            raise RecordError(
                f"{path}, line {number} cannot be read ({cause(error)}): {way_out}"
            ) from error
    return records


def parse(text: bytes | str, kind: type[Record]) -> Record:
    """What a JSON text says, if it is what the schema says.

    Args:
        text: JSON by the standard, without NaN and infinity.
        kind: a schema, such as a ``TypedDict``, ``dict[str, float]`` or a dataclass.

    Returns:
        The dataclass; for any other kind the JSON as it stands, fields that the schema does not
        know included.

    Raises:
        ValueError: it is no JSON, too deep, or not of this kind.
    """
    try:
        content = json.loads(
            text if isinstance(text, str) else text.decode(),
            parse_constant=_refuse,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels of nesting") from None
    return conform(content, kind)


def conform(content: Any, kind: type[Record]) -> Record:
    """JSON that is read already, if it is what the schema says; see ``parse``.

    Raises:
        ValueError: it is too deep, or not of this kind.
    """
    _check_depth(content)
    found = msgspec.convert(content, kind)
    return found if is_dataclass(kind) else content


def unreadable(path: Path, error: Exception, way_out: str) -> RecordError:
    """What to raise of a file that cannot be read; one that is forbidden is not damaged."""
    if isinstance(error, PermissionError):
        way_out = "make it readable for you, as by chmod u+r"
    return RecordError(f"{path} cannot be read ({cause(error)}): {way_out}")


def cause(error: Exception) -> str:
    """What an error says, in one short line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:200] or type(error).__name__


def bounded(path: Path) -> bytes:
    """The bytes of a regular file: a device or a pipe would never end.

    Raises:
        OSError: it is missing, or no regular file.
        ValueError: it has more than ``LARGEST`` bytes.
    """
    with open_regular(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    return content


def open_regular(path: Path) -> Any:
    """A regular file, open to read bytes; what is none is refused before it is opened.

    Raises:
        OSError: it is missing, or no regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError(None, "no regular file")
    return path.open("rb")


def _check_depth(content: Any) -> None:
    level, depth = [content], 0
    while level := [below for each in level for below in _below(each)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels of nesting")


def _below(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
