"""How a command ends."""

from __future__ import annotations

import signal
import sysconfig
import traceback
from types import FrameType
from typing import TYPE_CHECKING

from opsin.errors import RunFailed, UserError

if TYPE_CHECKING:
    from opsin.commands.runs import Outcome


def exit_code(error: Exception) -> int | None:
    """2 for a user's mistake, 1 for a run that failed, None for a bug, which keeps its trace."""
    return error.exit_code if isinstance(error, UserError | RunFailed) else None


def print_trace(error: Exception) -> None:
    """Prints where an error was raised; if in a user's own function, without what called it."""
    trace = error.__traceback__
    while trace is not None and not _is_theirs(trace.tb_frame):
        trace = trace.tb_next
    traceback.print_exception(error.with_traceback(trace or error.__traceback__))


def _is_theirs(frame: FrameType) -> bool:
    """Whether code is neither of this house nor of a library."""
    file, module = frame.f_code.co_filename, frame.f_globals.get("__name__", "")
    library = file.startswith(("<", sysconfig.get_path("stdlib"))) or "-packages" in file
    return not library and module.partition(".")[0] != "opsin"


def after_signal(outcome: Outcome) -> int:
    """130 after Ctrl-C, as a shell expects; 0 otherwise, for a scheduler's SIGTERM too."""
    return 130 if outcome.signal == signal.SIGINT else 0
