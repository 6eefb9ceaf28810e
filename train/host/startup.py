"""The time from the command to the first finished step, in parts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax

from opsin.data.files import replace_text
from opsin.train.host.accounting import Work


class StartUp:
    """A clock with laps: each part lasts from the end of the one before to its own end.

    Attributes:
        seconds: of each part that is over, in order.
    """

    def __init__(self, began: float | None = None):
        """``began`` is the ``time.monotonic()`` of the command, which ran up to now on imports."""
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic() if began is None else began
        if began is not None:
            self.lap("imports")

    def lap(self, part: str) -> None:
        """Ends a part."""
        now = time.monotonic()
        self.seconds[part] = now - self._since
        self._since = now

    def finish(self, state: Any) -> bool:
        """Ends the last part once the first step is done; True that one time, False later."""
        if "first step" in self.seconds:
            return False
        jax.block_until_ready(state)
        self.lap("first step")
        return True

    def line(self) -> str:
        """For the screen, the four longest parts: ``ready in 5.1 s: imports 1.2, data 3.6``."""
        least = sorted(self.seconds.values())[-4:][0]  # more do not fit into a line
        parts = ", ".join(f"{part} {x:.1f}" for part, x in self.seconds.items() if x >= least)
        return f"ready in {sum(self.seconds.values()):.1f} s: {parts}"


def record_speed(path: Path, clock: StartUp, work: Work) -> None:
    """Writes what a start took, and the constants that utilization is computed from, as JSON."""
    content = {
        "startup_seconds": clock.seconds,
        "images_per_step": work.images,
        "model_flops_per_step": work.flops,
        "matmul_peak_flops_per_second": work.peak,
    }
    replace_text(path, json.dumps(content, indent=2) + "\n")
