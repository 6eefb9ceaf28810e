"""How a command ends."""

from __future__ import annotations

import errno
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from opsin.config.names import is_users
from opsin.errors import ConfigError, RunFailed, UserError, visible

if TYPE_CHECKING:
    from opsin.commands.runs import Outcome

INTERRUPTED = 128 + signal.SIGINT
"""The exit status that a shell expects after Ctrl-C."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""After these a run saves and ends. SIGHUP comes where a terminal is closed, but for ``nohup``."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that fills when a signal of ``STOPPING`` comes; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield received
        return
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in STOPPING if not (ignored and number == signal.SIGHUP)]
    before = {number: signal.signal(number, receive) for number in heard}
    try:
        with _answered(received):
            yield received
    finally:
        for number, handler in before.items():
            # None is one that Python did not install: jax has one among several processes.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _answered(received: list[int]) -> Iterator[None]:
    """A thread that answers Ctrl-C as it comes: in compilation, Python runs no handler for long."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    if before != -1:  # somebody else listens, such as the loop of a notebook
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
        yield
        return

    def answer() -> None:
        while number := os.read(reading, 1)[0]:
            if number == signal.SIGINT and received in ([], [signal.SIGINT]):  # no other came first
                with suppress(OSError):  # nobody reads what we say
                    os.write(2, b"\nstopping as soon as what runs now is done\n")
                return

    answering = threading.Thread(target=answer, daemon=True)
    answering.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        with suppress(BlockingIOError):
            os.write(writing, b"\0")  # not by closing: a process that was forked has it open too
        answering.join(timeout=1)
        if not answering.is_alive():
            os.close(reading)
            os.close(writing)


def interrupt(number: int, frame: FrameType | None) -> None:
    """What Ctrl-C does: ends the process during an import, elsewhere raises KeyboardInterrupt.

    Extension modules that are being imported swallow that, or make an ImportError of it.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def exit_code(error: BaseException) -> int | None:
    """2 for a user's mistake, 1 for a run that failed, None for a bug, which keeps its trace.

    A path that cannot be looked at is a mistake too, wherever the look was.
    """
    if isinstance(error, OSError):
        return 2 if error.filename is not None and error.errno in _OF_PATHS else None
    if _of_environment(error):
        return 2
    return error.exit_code if isinstance(error, UserError | RunFailed) else None


def _of_environment(error: BaseException) -> bool:
    """Whether jax does not take a variable of the environment.

    It reads them as it is imported, whoever does that first, and the platform later.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("Unable to initialize backend")
    frames = traceback.extract_tb(error.__traceback__) if isinstance(error, ValueError) else []
    return bool(frames) and Path(frames[-1].filename).match("jax/_src/config.py")


_OF_PATHS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}


def in_a_line(error: BaseException) -> str:
    """What is said of an error that has an exit code."""
    text = str(error)
    if isinstance(error, OSError):
        name = visible(os.fsdecode(error.filename))
        text = f"{name if len(name) < 200 else f'{name[:200]}…'}: {error.strerror}"
    elif _of_environment(error):
        text = f"jax does not start: {text}; correct that variable of the environment, or unset it"
    return " ".join(text.split())


def own_trace(error: BaseException) -> str | None:
    """The trace of what a function of the user's own raised, without the frames of others.

    None for what the user's files have no part in, and for what is one line by itself. An error
    that we put into words for the user counts as what it was raised from.
    """
    if isinstance(error, ConfigError):  # names a file that cannot be imported
        return None
    for each in _causes(error):
        frames = [x for x in traceback.extract_tb(each.__traceback__) if is_users(Path(x.filename))]
        if frames and exit_code(each) is None:
            lines = "".join(traceback.format_list(frames))
            title = "Traceback, of your files alone (--trace shows all):"
            return f"{title}\n{lines}{type(each).__name__}: {each}"  # without the notes of jax
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def after_signal(outcome: Outcome) -> int:
    """130 after Ctrl-C, as a shell expects; 0 otherwise, for a scheduler's SIGTERM too."""
    return INTERRUPTED if outcome.signal == signal.SIGINT else 0
