"""A run goes on with fewer devices and with more, wherever it was killed."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opsin.config.identity import essence_of_resolved
from opsin.config.tree import override, resolve
from opsin.train.checkpoint import CheckpointError
from opsin.train.conclusion import Result
from opsin.train.experiment import Experiment
from opsin.train.loop import fit
from tests.train.conftest import assert_trees_close, assert_trees_equal, make_tiny
from tests.train.test_loop import last_state, lines

pytestmark = pytest.mark.usefixtures("training_alone")

HOUSE = Path(__file__).parents[2]
STEPS, KILLS = 120, 20
# All devices hold slices, whatever their number.
CHANGES = {
    "parallel.data": 1,
    "parallel.fsdp": -1,
    "parallel.min_shard_size": 8,
    "optimizer.learning_rate": 0.01,
    "loop.duration": f"{STEPS} steps",
    "loop.log_every": "1 step",
    "loop.evaluate_every": "40 steps",
    "loop.checkpoint_every": "2 steps",
}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return override(make_tiny(), CHANGES)


@pytest.fixture(scope="module")
def straight(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On eight devices, which nothing disturbed."""
    directory = tmp_path_factory.mktemp("straight")
    fit(experiment, directory, config=resolve(experiment), progress=False)
    return directory


def train(directory: Path, devices: int, kill_after: int) -> int:
    """The code of a process that trains, and is killed after so many dispatches."""
    overrides = [f"{path}={value}" for path, value in CHANGES.items()]
    command = [sys.executable, "-m", "tests.train.killed", str(directory), str(kill_after)]
    done = subprocess.run(
        [*command, str(devices), *overrides],
        cwd=HOUSE,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(directory.parent / "compiled")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


@pytest.mark.proofs
def test_another_layout_and_other_cadences_go_on_with_the_run(tmp_path: Path):
    """Slices over two devices, then over four: the same numbers up to the order of sums."""
    layout = {"parallel.data": 1, "parallel.fsdp": 2, "parallel.min_shard_size": 8}
    experiment = override(make_tiny(), {**layout, "data.eval_splits": {}})
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    fit(experiment, whole, config=resolve(experiment), progress=False)
    asked = iter([False, False, True])

    def go_on(stop: Callable[[], bool] = lambda: False, **changes: Any) -> Result:
        now = override(experiment, changes)
        config = resolve(now)
        return fit(
            now, moved, config=config, essence=essence_of_resolved, stop=stop, progress=False
        )

    assert not go_on(lambda: next(asked)).finished
    changes = {"loop.checkpoint_every": "2 steps", "loop.steps_per_dispatch": 2}
    told = r"loop.accumulate is 1 there and 2 here; optimizer.learning_rate is 0.1 there and 0.2"
    with pytest.raises(CheckpointError, match=told + " here. Move"):  # and nothing else
        go_on(**{**changes, "loop.accumulate": 2, "optimizer.learning_rate": 0.2})
    changes |= {"parallel.data": 2, "parallel.fsdp": 4}
    assert go_on(**changes).finished
    state, position = last_state(moved, override(experiment, changes))
    expected, expected_position = last_state(whole, experiment)
    assert int(state.step) == 6
    assert position == expected_position
    for part in ("params", "mutable", "opt_state", "ema"):
        assert_trees_close(getattr(state, part), getattr(expected, part), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [(8, 4), (8,)], ids=["8-4-8", "8"])
def test_twenty_kills_at_random_steps_change_nothing(
    experiment: Experiment, straight: Path, tmp_path: Path, devices: tuple[int, ...]
):
    """Up to the order of sums on other devices; bit for bit on the same."""
    drawn = random.Random(len(devices))
    directory = tmp_path / "run"
    for kill in range(KILLS):
        # Five dispatches on average, and a checkpoint every second step: it gets on.
        killed = train(directory, devices[kill % len(devices)], drawn.randint(3, 7))
        assert killed == -9, f"it ended before kill {kill}"
    assert train(directory, 8, 10 * STEPS) == 0

    state, position = last_state(directory, experiment)
    expected, expected_position = last_state(straight, experiment)
    assert int(state.step) == STEPS
    assert position == expected_position
    if len(devices) == 1:
        assert_trees_equal(state, expected)
        assert lines(directory) == lines(straight)
    else:
        for part in ("params", "mutable", "opt_state", "ema"):
            both = (getattr(s, part) for s in (state, expected))
            assert_trees_close(*both, rtol=1e-3, atol=1e-5)
        assert [line["step"] for line in lines(directory)] == [
            line["step"] for line in lines(straight)
        ]
