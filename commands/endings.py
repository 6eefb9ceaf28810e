"""How a command ends."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from opsin.errors import RunFailed, UserError

if TYPE_CHECKING:
    from opsin.commands.runs import Outcome


def exit_code(error: Exception) -> int | None:
    """2 for a user's mistake, 1 for a run that failed, None for a bug, which keeps its trace."""
    return error.exit_code if isinstance(error, UserError | RunFailed) else None


def after_signal(outcome: Outcome) -> int:
    """130 after Ctrl-C, as a shell expects; 0 otherwise, for a scheduler's SIGTERM too."""
    return 130 if outcome.signal == signal.SIGINT else 0
