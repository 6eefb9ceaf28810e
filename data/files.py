"""Files of runs: lines of JSON, and writing whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import itertools
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, TypedDict

from opsin.data.records import LARGEST, bounded, cause, conform, open_regular, parse, unreadable
from opsin.errors import UserError, in_one_line


class WriteError(UserError):
    """A place that cannot be written to."""


class Line(TypedDict):
    """A line of ``metrics.jsonl``, whose other names are those of numbers; null is none."""

    step: int
    note: NotRequired[str]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that are whole; see ``read_log``."""
    return read_log(path)[0]


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of ``metrics.jsonl`` that are whole, and the numbers, from 1, of the damaged ones.

    A last line that was cut off is neither: its run was killed while it wrote. One that is whole
    but for the byte that ends it is damaged.

    Raises:
        RecordError: it is no file, or cannot be read.
    """
    lines, damaged = [], []
    if not path.exists():
        return lines, damaged
    try:
        with open_regular(path) as file:
            for number in itertools.count(1):
                text = file.readline(LARGEST)
                if not text:
                    break
                try:
                    lines.append(_line(text))
                except ValueError:
                    cut_off = not text.endswith(b"\n") and not text[:-1].endswith(b"}")
                    damaged += [] if cut_off else [number]
    except OSError as error:
        raise unreadable(path, error, "mv it away") from error
    return lines, damaged


def _line(text: bytes) -> dict[str, Any]:
    line: Any = parse(text, Line)
    conform({name: x for name, x in line.items() if name != "note"}, dict[str, float | None])
    return line


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
    r"""A name as text in one line: bytes that are no UTF-8 are written out, as in "caf\xe9"."""
    return in_one_line(os.fsencode(name).decode(errors="backslashreplace"))


def holds(path: Path, content: bytes) -> bool:
    """Whether a file is there that holds exactly this."""
    try:
        return bounded(path) == content
    except (OSError, ValueError):  # a folder, say
        return False


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, as ``replacing``."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, as ``replacing``."""
    with replacing(path) as file:
        file.write(content)


def save_bytes(path: Path, content: bytes) -> str:
    """Writes a file whole or not at all, in a folder that is made, and returns its sha256.

    Raises:
        WriteError: it cannot be written.
    """
    with writing(path, "give another place"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, whole or not at all: it lies beside ``path``, and takes its name at the end.

    Raises:
        OSError: something is there that is no regular file, or the disk does not take it.
    """
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "a device"
        raise FileExistsError(errno.EEXIST, f"{what} is there", str(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # another process may write it too
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def clear_parts(directory: Path) -> None:
    """Removes what ``replacing`` left of processes that were killed; for who holds the folder."""
    for path in directory.rglob(".*.part"):
        if re.fullmatch(r"\..+\.\d+\.part", path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def writing(place: Path, way_out: str = "make room, or make it writable") -> Iterator[None]:
    """Turns an error of the disk into one line.

    Raises:
        WriteError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write to {place} ({cause(error)}): {way_out}") from error


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path whose ``~`` stands for the user's home: behind ``=`` or ``:`` no shell replaces it."""
    return Path(os.path.expanduser(path))


def in_shell(path: str | os.PathLike[str]) -> str:
    """A path as it is typed into a shell, for errors that say what to type; no option."""
    text = os.fspath(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def users_cache(name: str) -> Path:
    """The user's folder of what can be made again, ``~/.cache/opsin/NAME``; it may be missing."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "opsin" / name


def check_new(paths: Iterable[Path], way_out: str = "choose another place with --output") -> None:
    """Refuses to write over what is there, whoever made it.

    Raises:
        WriteError: something is there: names it.
    """
    for path in paths:
        if os.path.lexists(path):  # a link to nowhere would be followed
            raise WriteError(f"{readable(path)} is there already: move it away, or {way_out}")


def aside(path: Path, why: str = "damaged") -> Path:
    """A free name beside a file or folder, to keep it: ``NAME.damaged``, or ``NAME.damaged-2``."""
    names = (f"{path.name}.{why}{n}" for n in ("", *(f"-{i}" for i in range(2, 10_000))))
    return next(p for name in names if not (p := path.with_name(name)).exists())
