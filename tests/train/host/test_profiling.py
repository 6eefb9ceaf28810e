"""A trace of the steps that were asked for, and of no others."""

import gzip
import json
import statistics
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from opsin.config.tree import override, resolve
from opsin.train.host.profiling import Profiler, Steps
from opsin.train.loop import fit
from opsin.train.settings import SettingError
from tests.train.conftest import make_tiny

pytestmark = pytest.mark.usefixtures("training_alone")

LATE = {"parallel.data": 1, "data.eval_splits": {}, "loop.checkpoint_every": "6 steps"}


@pytest.mark.parametrize(
    ("length", "traced", "count"),
    [pytest.param(1, "2 to 3", 2, marks=pytest.mark.proofs), (3, "1 to 3", 3)],
)
def test_the_steps_are_traced_in_whole_dispatches(tmp_path: Path, capsys, length, traced, count):
    experiment = override(make_tiny(), {**LATE, "loop.steps_per_dispatch": length})
    fit(experiment, tmp_path, config=resolve(experiment), progress=False, profile=Steps(2, 3))
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "trace of" in text]
    said, file, view = line.split(": ", 2)
    assert said == f"trace of steps {traced}"
    assert view == "open it in https://ui.perfetto.dev"
    assert tmp_path in Path(file).parents
    events = json.loads(gzip.decompress(Path(file).read_bytes()))["traceEvents"]
    operations = Counter(e["name"] for e in events if e.get("name", "").startswith("end: "))
    assert statistics.mode(operations.values()) == count  # most run once a step


def test_a_trace_does_not_outlive_an_error(tmp_path: Path):
    def interrupted() -> bool:
        raise KeyboardInterrupt

    experiment = override(make_tiny(), LATE)
    with pytest.raises(KeyboardInterrupt):
        fit(
            experiment,
            tmp_path,
            config=resolve(experiment),
            progress=False,
            stop=interrupted,
            profile=Steps(1, 2),
        )
    jax.profiler.start_trace(str(tmp_path / "next"))  # raises while another is under way
    jax.profiler.stop_trace()


@pytest.mark.parametrize(
    ("steps", "done"), [(Steps(5, 11), 0), (Steps(11, 11), 0), (Steps(3, 4), 3)]
)
def test_steps_that_will_not_be_taken_are_refused(tmp_path: Path, steps: Steps, done: int):
    with pytest.raises(SettingError, match=f"this run takes the steps {done + 1} to 10"):
        Profiler(steps, tmp_path, done=done, total=10)


def test_without_steps_there_is_no_trace(tmp_path: Path):
    profiler = Profiler(None, tmp_path, done=0, total=10)
    profiler.before(0, 10, jnp.zeros(()))
    profiler.after(10, jnp.zeros(()))
    profiler.close()
    assert list(tmp_path.iterdir()) == []
