"""Text on its way to the terminal: nothing in it steers the terminal, and lists fit its width."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from opsin.errors import UserError, visible

_BAR = re.compile(r"\r|(?:\n|\x1b\[A)+\Z")
"""What a progress bar begins with, or is between two bars."""


class OutputError(UserError):
    """Standard output or standard error that takes no more."""


class Shown:
    """A stream that writes out what would steer a terminal, or what its encoding does not have.

    Names of classes and files, values of configs and messages of errors may be a stranger's. All
    that a command prints goes through here, so that no caller has to think of it.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text as it may be seen."""
        bar = _BAR.match(text)
        moved = bar.end() if bar else 0
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        seen = visible(text[moved:]).encode(encoding, "backslashreplace").decode(encoding)
        with _writable(self._stream):
            return self._stream.write(text[:moved] + seen)

    def flush(self) -> None:
        """Has all of it written."""
        with _writable(self._stream):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _writable(stream: TextIO) -> Iterator[None]:
    """One line where nothing more can be written; a reader that went away is no mistake.

    Raises:
        OutputError: instead of another OSError.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        name = getattr(stream, "name", "the output")
        raise OutputError(f"cannot write to {name} ({error.strerror}): make room there") from error


@contextmanager
def shown() -> Iterator[None]:
    """Has standard output and standard error write only what may be seen.

    One that is closed leads to nowhere, by its own number, which is the lowest that is free: else
    the next file to be opened would get what libraries print.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    out: Any = Shown(sys.stdout)
    err: Any = Shown(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield


def listed(lines: Mapping[str, str]) -> str:
    """Names, and what is said of each: a line each, which a terminal gets in its own width."""
    width = max(map(len, lines), default=0) + 2
    if not sys.stdout.isatty():
        return "\n".join(f"{name:<{width}}{says}" for name, says in lines.items())
    across = shutil.get_terminal_size().columns
    beside = across - width >= 40  # or else it goes below
    further = " " * (width if beside else 4)
    texts = []
    for name, says in lines.items():
        first = f"{name:<{width}}" if beside else further
        text = textwrap.fill(
            says, across, initial_indent=first, subsequent_indent=further, break_on_hyphens=False
        )
        texts += [text] if beside else [name, text]
    return "\n".join(texts)
