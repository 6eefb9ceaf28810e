"""Run by tests in a process of its own: trains, and is killed after so many dispatches.

python -m tests.train.killed DIRECTORY DISPATCHES [DEVICES [path=value …]]
"""

import os
import signal
import sys
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(sys.argv[3]) if len(sys.argv) > 3 else 8)

from opsin.config.tree import override, parse_all, resolve  # noqa: E402
from opsin.train.loop import fit  # noqa: E402
from tests.train.conftest import make_tiny, train_alone  # noqa: E402


def main() -> None:
    """Trains the tiny experiment of the tests."""
    directory, step = Path(sys.argv[1]), int(sys.argv[2])
    changes = {"parallel.data": 1, "loop.log_every": "1 step"} | parse_all(sys.argv[4:])
    experiment = override(make_tiny(), changes)
    dispatched = 0

    def stop() -> bool:
        nonlocal dispatched
        dispatched += 1
        if dispatched == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    patch = pytest.MonkeyPatch()
    patch.setattr("opsin.train.host.accounting.matmul_peak", lambda dtype: 1e12)
    train_alone(patch)
    fit(experiment, directory, config=resolve(experiment), stop=stop, progress=False)


if __name__ == "__main__":
    main()
