"""Run by tests in a process of its own: trains, and comes to harm after so many dispatches.

python -m tests.train.killed DIRECTORY DISPATCHES kill|disk-full [DEVICES [path=value …]]
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(sys.argv[4]) if len(sys.argv) > 4 else 8)

from opsin.config.tree import override, parse_all, resolve  # noqa: E402
from opsin.train.loop import fit  # noqa: E402
from tests.train.conftest import make_tiny  # noqa: E402


def main() -> None:
    """Trains the tiny experiment of the tests."""
    directory, step, harm = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    changes = {"parallel.data": 1, "loop.log_every": "1 step"} | parse_all(sys.argv[5:])
    experiment = override(make_tiny(), changes)
    dispatched = 0

    def stop() -> bool:
        nonlocal dispatched
        dispatched += 1
        if dispatched == step and harm == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if dispatched == step and harm == "disk-full":
            while not (directory / "checkpoints" / "3").exists():  # it is written beside training
                time.sleep(0.01)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
        return False

    fit(experiment, directory, config=resolve(experiment), stop=stop, progress=False)


if __name__ == "__main__":
    main()
