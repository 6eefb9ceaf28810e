"""The two bases of all exceptions of the house that are no bugs, and the exit code of each.

``ConfigError`` is raised in too many rooms to live in one of them. ``visible`` is here
because pictures and the terminal both show what a stranger wrote.
"""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake. Its text is one line: the cause and the way out."""

    exit_code = 2


class RunFailed(RuntimeError):
    """A run that failed by itself, such as by a loss that is no number. Its text is one line."""

    exit_code = 1


class ConfigError(UserError):
    """An override, a flag or a name that does not fit."""


_UNSEEN = {
    code: ascii(chr(code))[1:-1]
    for code in (
        *(code for code in range(0x20) if chr(code) not in "\t\n"),
        *range(0x7F, 0xA0),  # control characters: colours, the cursor, the title of a window
        *(0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)),  # of direction
    )
}


def visible(text: str) -> str:
    r"""A text, perhaps a stranger's, without what steers a terminal or turns the text around.

    Such characters are written out, as in ``\x1b[31m``; so are bytes that are no UTF-8.
    """
    return text.translate(_UNSEEN).encode(errors="backslashreplace").decode()


def in_one_line(text: str) -> str:
    r"""As ``visible``, and with tabs and new lines written out too, as in ``\n``."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")
