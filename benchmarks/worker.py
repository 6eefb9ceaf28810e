"""A process in which one peer runs alone, so that no two thread pools share one.

    python -m opsin.benchmarks.worker opsin.benchmarks.flax_peer:prepare

It reads a line of JSON for each run, ``{"case": "lenet5", "phase": "training", "steps": 20}``, and
answers with one, ``{"seconds": 0.7, "about": {…}}`` or ``{"error": "…", "trace": "…"}``.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from opsin.commands.runtime import Runtime, set_up
from opsin.errors import RunFailed

RIVALS = ("opsin.benchmarks.flax_peer", "opsin.benchmarks.torch_peer")
"""What runs as its own users start it, without the settings of ``commands.runtime``."""


class PeerError(RunFailed):
    """A peer that cannot run what it is asked to."""


@dataclass(frozen=True)
class Prepared:
    """Something to time, compiled and warm.

    Attributes:
        run: takes so many steps and waits for the last.
        about: what the table says of it: ``parameters``, ``flops`` of a step, ``layout``.
    """

    run: Callable[[int], object]
    about: Mapping[str, Any] = field(default_factory=dict)


Prepare = Callable[[str, str], Prepared]
"""A peer: ``(case, phase) -> Prepared``."""


class Worker:
    """The parent's end: starts the process of a peer and asks it for runs.

    Args:
        peer: ``package.module:function``, a ``Prepare``.
    """

    def __init__(self, peer: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "opsin.benchmarks.worker", peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C comes to the parent alone, which ends this one
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # it may be in the middle of a run
            self._process.terminate()
        self._process.communicate()

    def run(self, case: str, phase: str, steps: int) -> tuple[float, dict[str, Any]]:
        """Seconds that so many steps took, and what there is to know of them.

        The first run of a case and phase also prepares it, outside of the time.

        Raises:
            PeerError: if it cannot, with the reason.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = json.dumps({"case": case, "phase": phase, "steps": steps})
        try:
            print(request, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = (
            json.loads(line) if line else {"error": "its process ended", "trace": ""}
        )
        if "error" in answer:
            error = PeerError(answer["error"])
            error.add_note(answer["trace"])
            raise error
        return answer["seconds"], answer["about"]


def serve(prepare: Prepare, requests: Iterable[str], answers: TextIO) -> None:
    """Answers each line of ``requests``; what is prepared once stays so."""
    prepared: dict[tuple[str, str], Prepared] = {}
    for line in requests:
        request = json.loads(line)
        what = request["case"], request["phase"]
        try:
            if what not in prepared:
                prepared[what] = prepare(*what)
            began = time.perf_counter()
            prepared[what].run(request["steps"])
            seconds = time.perf_counter() - began
            answer = {"seconds": seconds, "about": dict(prepared[what].about)}
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            answer = {"error": line, "trace": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Serves the peer that the command line names."""
    module, _, name = sys.argv[1].partition(":")
    # Libraries that print to the standard output must not break the conversation.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(getattr(importlib.import_module(module), name), sys.stdin, answers)


if __name__ == "__main__":
    if sys.argv[1].startswith(RIVALS):
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        set_up(Runtime(platform="cpu"))
    main()
