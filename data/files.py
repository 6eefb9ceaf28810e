"""Files of runs: lines of JSON, and writing whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def to_json(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers by name as JSON takes them, which knows no NaN: one that is not finite is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in numbers.items()
    }


def from_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """What ``to_json`` was given: null was a number that is not finite, and is NaN."""
    return {name: math.nan if value is None else value for name, value in content.items()}


def readable(name: str | os.PathLike[str]) -> str:
    r"""A name as text: bytes that are no UTF-8 are written out, as in "caf\xe9"."""
    return os.fsencode(name).decode(errors="backslashreplace")


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, as ``replace_bytes``."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: to a neighbour first, which then takes its name."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # another process may write it too
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
