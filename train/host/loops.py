"""Event loops that end what began in them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class _Patient(asyncio.SelectorEventLoop):
    """Waits for its tasks when it is closed."""

    def close(self) -> None:
        if not self.is_closed() and (left := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        super().close()


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Patient()


@contextmanager
def patient_loops() -> Iterator[None]:
    """Event loops that are made meanwhile wait for their tasks when they are closed.

    orbax closes its own when the first array cannot be read. Other reads that end later then find
    no loop, and each prints a trace that nobody can catch.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Policy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
