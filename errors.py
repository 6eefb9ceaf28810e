"""The two bases of all exceptions of the house that are no bugs, and the exit code of each.

``ConfigError`` is raised in too many rooms to live in one of them.
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
