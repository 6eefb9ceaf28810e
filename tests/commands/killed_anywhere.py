"""Run by a test in a process of its own: kills commands at random moments, and begins them again.

python -m tests.commands.killed_anywhere WORKDIR KILLS prints a line of JSON. The commands run in
forks of this process, which has imported all that takes time and has not started jax.
"""

import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{sys.argv[1]}/compiled"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

from opsin.commands import evaluating, runtime, sampling  # noqa: F401
from opsin.commands.main import main
from opsin.train import conclusion, evaluate, loop
from opsin.train.host import accounting
from tests.commands.remains import left, only

PHASES = ("starting", "training", "saving", "evaluating", "drawing", "measuring")
CADENCE = ("loop.log_every=1 step", "loop.evaluate_every=4 steps", "loop.checkpoint_every=2 steps")
TRAINED = {
    "digits_lenet": ("loop.duration=6 steps", "loop.previews=4", *CADENCE),
    "mnist_dcgan_losses": ("loop.duration=5 steps", "task.generator.width=8", *CADENCE),
}
Command = tuple[str, ...]


def during(phase: int, function: Callable[..., Any], now: mmap.mmap) -> Callable[..., Any]:
    """The function, which says that it is at work."""

    def told(*arguments: Any, **options: Any) -> Any:
        before, now[0] = now[0], phase
        try:
            return function(*arguments, **options)
        finally:
            now[0] = before

    return told


def begun(command: Command, now: mmap.mmap) -> int:
    """The process of a command in a fork of this one."""
    child = os.fork()
    if child:
        return child
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    now[0] = 0
    for module, name, phase in (
        (loop, "train", 1),
        (loop, "save", 2),
        (loop, "evaluate_sets", 3),
        (evaluate, "draw", 4),
        (loop, "measure_all", 5),
        (evaluating, "evaluate", 3),
        (conclusion, "summary", 4),
    ):
        setattr(module, name, during(phase, getattr(module, name), now))
    loop.summary = conclusion.summary
    runtime.set_up = lambda asked: None
    accounting.matmul_peak = lambda dtype: 1e12
    code: Any = 1
    try:
        main(command)
    except SystemExit as ended:
        code = ended.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


def finished(command: Command, now: mmap.mmap) -> None:
    """Runs a command to its end."""
    _, status = os.waitpid(begun(command, now), 0)
    assert os.waitstatus_to_exitcode(status) == 0, command


def killed(
    command: Command, now: mmap.mmap, drawn: random.Random, targets: Sequence[int]
) -> int | None:
    """The phase in which a command was killed, one drawn or the next; None if it ended before."""
    now[0] = 0
    child = begun(command, now)
    target, wait = drawn.choice(targets), drawn.choice([0, drawn.uniform(0, 0.02), drawn.random()])
    while now[0] != target and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    time.sleep(wait)
    phase = now[0]
    try:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        return None
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return phase if code else None


def proved(place: Path, name: str, kills: int, drawn: random.Random, now: mmap.mmap) -> Counter:
    """Kills the training of an experiment so often; each time it ends it is what it should be."""
    command = ("run", name, "--smoke", "--quiet", *TRAINED[name])
    straight, other = place / "straight", place / "other"
    finished((*command, f"--workdir={straight}"), now)
    expected, phases = left(only(straight / name)), Counter()
    while phases.total() < kills:
        again = (*command, f"--workdir={other}")
        phase = killed(again, now, drawn, range(len(PHASES)))
        phases.update([PHASES[phase]] if phase is not None else [])
        if phase is None or phases.total() == kills:
            finished(again, now)
            assert left(only(other / name)) == expected
            leftovers = [*other.rglob("*.part"), *other.rglob("*-tmp*")]
            assert phase is not None or leftovers == []
            shutil.rmtree(other)
    return phases


def proved_evaluation(place: Path, kills: int, drawn: random.Random, now: mmap.mmap) -> Counter:
    """The same for the evaluation of a run that is trained."""
    run = only(place / "straight" / "digits_lenet")
    command, phases = ("evaluate", str(run)), Counter()
    finished(command, now)
    expected = left(run)
    while phases.total() < kills:
        for path in (run / "evaluations").iterdir():
            path.unlink()
        phase = killed(command, now, drawn, (0, 3))
        phases["evaluation"] += phase is not None
        finished(command, now)
        assert left(run) == expected
    return phases


if __name__ == "__main__":
    where, count = Path(sys.argv[1]), int(sys.argv[2])
    shared, chance = mmap.mmap(-1, 1), random.Random(0)
    hit = proved(where, "digits_lenet", count // 2, chance, shared)
    hit += proved(where, "mnist_dcgan_losses", count - count // 2 - count // 10, chance, shared)
    hit += proved_evaluation(where, count // 10, chance, shared)
    print(json.dumps(hit))
