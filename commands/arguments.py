"""From the signature of a command to its call: tyro parses the words, we word the errors."""

from __future__ import annotations

import difflib
import functools
import io
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes

from opsin.commands.values import refusals
from opsin.errors import ConfigError

SETTINGS = (
    OmitArgPrefixes,  # a group of flags is a dataclass: --platform, not --runtime.platform
    FlagCreatePairsOff,  # no --no-quiet
    DisallowNone,  # no --cache None
)


def parse(command: Callable[..., int], words: Sequence[str], program: str) -> partial[int]:
    """The call that words ask for. Overrides may stand anywhere among them.

    Args:
        command: a function whose signature and docstring are its arguments and their help. It
            may take ``overrides``.
        words: without the name of the command.
        program: what is typed before them.

    Raises:
        ConfigError: they do not fit the command.
        SystemExit: help was requested, and is printed.
    """

    @functools.wraps(command)
    def asked(*arguments: Any, **options: Any) -> partial[int]:
        return partial(command, *arguments, **options)

    said = io.StringIO()  # no terminal: neither colours nor boxes
    try:
        with refusals(words, program), redirect_stdout(said), redirect_stderr(said):
            call, rest = tyro.cli(
                asked, prog=program, args=words, return_unknown_args=True, config=SETTINGS
            )
    except SystemExit as ended:
        if not ended.code:
            print(_plain(said.getvalue()), flush=True)
            raise
        raise ConfigError(f"{_complaint(said.getvalue())}: see {program} --help") from None
    flags = [word for word in rest if word.startswith("-")]
    if flags or (rest and "overrides" not in asked.__wrapped__.__annotations__):
        near = _nearest(flags, asked, program)
        if overrides := [flag.lstrip("-") for flag in flags if "." in flag.partition("=")[0]]:
            near = f", did you mean {overrides[0]}, which has no dashes?"
        raise ConfigError(
            f"unrecognized arguments: {' '.join(flags or rest)}{near}: see {program} --help"
        )
    name, overrides, *more = call.args if rest else (None, ())
    if rest:
        call = partial(command, name, (*overrides, *rest), *more, **call.keywords)
    return call


def _plain(text: str) -> str:
    """A page of help without what fills lines or goes beyond, and defaults that say nothing."""
    lines = re.sub(r"\s+\(default:\s*(None|False)?\)", "", text).splitlines()
    across = max(shutil.get_terminal_size().columns, 40)
    folded = (textwrap.fill(line, across, break_on_hyphens=False) for line in lines)
    return "\n".join(line.rstrip() for line in folded).rstrip()


def _complaint(text: str) -> str:
    """What is wrong, in one line: tyro prints a title, that, and help, with rules between."""
    message = re.split(r"^\s*-{3,}\s*$", text, flags=re.MULTILINE)[1]
    return " ".join(message.split()).removeprefix("Error parsing ").rstrip(".")


def _nearest(flags: Iterable[str], asked: Callable[..., Any], program: str) -> str:
    """``", did you mean --seeds?"``, or nothing where no flag is near."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            tyro.cli(asked, prog=program, args=["--help"], config=SETTINGS)
    except SystemExit:
        known = re.findall(r"(?<=\s)--[a-z][a-z-]*", said.getvalue())
        typed = [flag.partition("=")[0] for flag in flags]
        near = [n for flag in typed for n in difflib.get_close_matches(flag, known, 1, 0.7)]
        return f", did you mean {near[0]}?" if near else ""
    return ""
