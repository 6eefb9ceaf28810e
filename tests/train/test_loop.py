"""The loop: resuming is bit for bit, evaluation is exact, nothing is compiled twice."""

import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    log_loss,
    roc_auc_score,
)

from opsin.config.tree import override, resolve
from opsin.data.examples import Arrays, DataError, Examples
from opsin.data.files import read_lines
from opsin.data.sources import synthetic
from opsin.metrics.classification import ranking
from opsin.metrics.state import Collected
from opsin.train import loop
from opsin.train.checkpoint import Checkpoints, SaveError, saved_step
from opsin.train.durations import DurationError
from opsin.train.evaluate import evaluate
from opsin.train.experiment import Experiment
from opsin.train.logging import JsonLines, NonFiniteError, last_evaluation
from opsin.train.loop import fit
from opsin.train.methods import Lookahead, sgd
from opsin.train.settings import SettingError
from opsin.train.state import State
from opsin.train.tasks.classify import Classify
from tests.train.conftest import assert_trees_equal, make_tiny
from tests.train.test_step import lay_out

pytestmark = pytest.mark.usefixtures("training_alone")

TIMES = ("train/images_per_second", "train/model_flops_per_second", "train/utilization")


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return override(make_tiny(), {"parallel.data": 1, "loop.log_every": "1 step"})


@pytest.fixture(scope="module")
def straight(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("straight")
    result = fit(experiment, directory, config=resolve(experiment), progress=False)
    assert result.finished
    assert result.step == 6
    return directory


def last_state(directory: Path, experiment: Experiment) -> tuple[State, Any]:
    with Checkpoints(directory / "checkpoints") as checkpoints:
        state, record = checkpoints.restore(lay_out(experiment)[1].state, resolve(experiment))
    return state, record["position"]


def lines(directory: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_lines(directory / "metrics.jsonl")
    ]


def assert_same_run(one: Path, other: Path, experiment: Experiment) -> None:
    state, position = last_state(one, experiment)
    other_state, other_position = last_state(other, experiment)
    assert_trees_equal(state, other_state)  # parameters, statistics, momentum, averages, key, step
    assert position == other_position
    assert lines(one) == lines(other)


def killed(directory: Path, dispatches: int) -> int:
    """The code of a process that is killed after so many; it shares our compiled programs."""
    environment = os.environ | {
        name.upper(): str(jax.config.values[name])
        for name in (
            "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes",
        )
    }
    command = [sys.executable, "-m", "tests.train.killed", str(directory), str(dispatches)]
    house = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, cwd=house, env=environment).returncode


def test_killed_and_resumed_is_the_straight_run_bit_for_bit(experiment, straight, tmp_path: Path):
    assert killed(tmp_path, 6) == -9
    before = lines(tmp_path)
    assert max(line["step"] for line in before) == 4  # past the checkpoint of step 3
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')  # cut off in the middle of a line
    result = fit(experiment, tmp_path, config=resolve(experiment), progress=False)
    assert result.finished
    assert_same_run(tmp_path, straight, experiment)
    kinds = [(line["step"], frozenset(line)) for line in lines(tmp_path)]
    assert len(set(kinds)) == len(kinds)  # no line twice


@pytest.mark.parametrize(
    "layout",
    [
        {"data.resident_megabytes": 0, "loop.steps_per_dispatch": 2},
        pytest.param(
            {"parallel.fsdp": 4, "parallel.data": 2, "parallel.min_shard_size": 8},
            marks=pytest.mark.proofs,
        ),
        pytest.param(
            {"parallel.data": 2, "loop.strategy": "pmap", "loop.replicas": 2},
            marks=pytest.mark.proofs,
        ),
        pytest.param(
            {"optimizer.unfreeze": (("hidden", 0.5), ("conv|norm", 0.7))}
            | {"optimizer.lookahead": Lookahead(every=2)},
            marks=pytest.mark.proofs,
        ),
    ],
    ids=["streamed-two-a-dispatch", "fsdp", "pmap", "unfrozen-in-steps"],
)
def test_stopped_and_resumed_is_the_straight_run_bit_for_bit(experiment, layout, tmp_path: Path):
    """Logged every four steps, so that the open window of metrics outlives the stop as well."""
    experiment = override(experiment, {**layout, "loop.log_every": "4 steps"})
    config = resolve(experiment)
    fit(experiment, tmp_path / "straight", config=config, progress=False)
    asked = iter([False, True])
    stopped = fit(
        experiment, tmp_path / "again", config=config, stop=lambda: next(asked), progress=False
    )
    assert not stopped.finished
    assert 2 <= stopped.step < 6
    assert fit(experiment, tmp_path / "again", config=config, progress=False).finished
    assert_same_run(tmp_path / "again", tmp_path / "straight", experiment)


# Of the other arrays of the checkpoint, whose writer is gone once the first has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_keeps_the_last_good_checkpoint(experiment, straight, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    dispatches = count(1)

    def fill() -> bool:
        if next(dispatches) == 4:
            began = time.monotonic()
            while not (tmp_path / "checkpoints" / "3").exists():  # it is written beside training
                assert time.monotonic() - began < 60
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
        return False

    try:  # of all that this process writes, its cache of programs, too
        jax.config.update("jax_enable_compilation_cache", False)
        with pytest.raises(SaveError, match=r"^cannot write to .*: the last good one is step 3;"):
            fit(experiment, tmp_path, config=resolve(experiment), stop=fill, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update("jax_enable_compilation_cache", True)
        gc.collect()  # what the failed save left, while its complaints are ignored
    assert fit(experiment, tmp_path, config=resolve(experiment), progress=False).finished
    assert_same_run(tmp_path, straight, experiment)


def test_a_finished_run_is_read_and_not_trained_again(experiment, straight, tmp_path: Path):
    before = (straight / "metrics.jsonl").read_text()
    result = fit(experiment, straight, config=resolve(experiment), progress=False)
    assert result.finished
    assert (straight / "metrics.jsonl").read_text() == before
    final = lines(straight)[-1]
    assert result.metrics["test/accuracy"] == final["test/accuracy"]
    assert result.metrics["test_ema/nll"] == final["test_ema/nll"]
    assert result.metrics["parameters"] == 9 * 8 + 8 + 2 * 8 + 128 * 16 + 16 + 16 * 4 + 4


def test_each_program_is_compiled_once(experiment: Experiment, tmp_path: Path):
    compiled: list[str] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(details.get("fun_name")))

    uneven = override(
        experiment, {"loop.steps_per_dispatch": 4, "loop.evaluate_every": "5 steps"}
    )  # dispatches of 3, 2 and 1 steps, and a padded last evaluation batch
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fit(uneven, tmp_path, config=resolve(uneven), progress=False)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for name in ("several", "evaluate", "init"):
        assert sum(name in function for function in compiled) == 1, compiled


@pytest.mark.parametrize("layout", [{"parallel.data": 1}, {"parallel.data": 8}])
@pytest.mark.parametrize("batch", [16, 19])
def test_evaluation_is_that_of_numpy_on_sizes_that_do_not_divide(layout, batch: int):
    """37 images in padded batches, on one device and on eight, against scikit-learn."""
    source = partial(synthetic, n=37, size=8, channels=1, classes=4)
    changes = {"data.source": source, "loop.ema_decay": None}
    changes |= {"task.more_metrics": (ranking,)}
    experiment = override(make_tiny(), {**layout, **changes})
    program = lay_out(experiment)[1]
    state, examples = program.init(), source("test")
    states = evaluate(program, state, examples, batch, "test")["test"]

    images, labels = examples.records.arrays["image"], examples.records.arrays["label"]
    variables = {"params": jax.device_get(state.params), **jax.device_get(state.mutable)}
    logits = jax.jit(experiment.task.model.apply)(variables, images / 255)
    probabilities = softmax(np.asarray(logits), axis=-1).astype(np.float64)
    predictions = probabilities.argmax(axis=-1)
    accuracy = accuracy_score(labels, predictions)
    assert states["accuracy"].compute()[""] == pytest.approx(accuracy, abs=1e-12)
    nll = log_loss(labels, probabilities / probabilities.sum(axis=-1, keepdims=True))
    assert states["nll"].compute()[""] == pytest.approx(nll, rel=1e-5)
    np.testing.assert_array_equal(
        states["confusion"].counts, confusion_matrix(labels, predictions, labels=range(4))
    )
    assert states["confusion"].counts.sum() == 37
    collected = states["ranking"]
    np.testing.assert_array_equal(collected.labels, labels)  # every example once, in order
    assert collected.compute()["auroc"] == pytest.approx(
        roc_auc_score(labels, probabilities, multi_class="ovr"), rel=1e-9
    )
    assert collected.compute()["average_precision"] == pytest.approx(
        average_precision_score(labels[:, None] == range(4), probabilities), rel=1e-9
    )


class Collecting(Classify):
    """Returns examples from its loss, where states are summed."""

    def loss(self, params, mutable, batch, key, step):
        value, aux = super().loss(params, mutable, batch, key, step)
        metrics = aux.metrics | {"rows": Collected(valid=batch["label"] > 0)}
        return value, replace(aux, metrics=metrics)


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_a_loss_that_collects_examples_is_refused(strategy):
    experiment = override(make_tiny(), {"parallel.data": 1, "loop.strategy": strategy})
    experiment = replace(experiment, task=Collecting(model=experiment.task.model))
    _, program = lay_out(experiment)
    with pytest.raises(SettingError, match="the metric 'rows' collects examples, and training"):
        program.flops()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_term_step_and_checkpoint(
    experiment: Experiment, tmp_path: Path
):
    explosive = override(
        experiment,
        {
            "optimizer.method": partial(sgd, momentum=0.0, nesterov=False),
            "optimizer.learning_rate": 1e30,
            "data.eval_splits": {},
            "loop.checkpoint_every": "1 step",
        },
    )
    with pytest.raises(NonFiniteError) as caught:
        fit(explosive, tmp_path, config=resolve(explosive), progress=False)
    text = str(caught.value)
    assert "train/loss is nan at step 2" in text
    assert "step 1 is saved in" in text
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 1


def test_parameters_that_overflow_in_the_last_step_are_not_saved(tmp_path: Path):
    """The loss before the update is fine, the gradient too; what they make is not."""
    experiment = override(
        make_tiny(),
        {
            "parallel.data": 1,
            "optimizer.method": partial(sgd, momentum=0.0, nesterov=False),
            "optimizer.learning_rate": 1e30,
            "data.eval_splits": {},
            "optimizer.weight_decay": 1e12,
            "loop.duration": "1 step",
        },
    )
    with pytest.raises(NonFiniteError, match=r"train/largest_parameter is inf at step 1"):
        fit(experiment, tmp_path, config=resolve(experiment), progress=False)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None


def test_a_number_that_is_none_at_the_end_is_not_replaced_by_an_older_one(tmp_path: Path):
    log = JsonLines(tmp_path / "metrics.jsonl", 0)
    log.write(1, {"train/loss": 1.0, "test/nll": 0.5, "test/accuracy": 0.5})
    log.write(2, {"test/nll": float("nan"), "test/accuracy": 0.1})
    log.close()
    final = last_evaluation(tmp_path / "metrics.jsonl")
    assert np.isnan(final.pop("test/nll"))
    assert final == {"test/accuracy": 0.1}


@pytest.mark.parametrize("steps", ["0 steps", "nonsense"])
def test_writers_are_closed_also_by_a_run_that_does_not_open(experiment, tmp_path: Path, steps):
    class Fake:
        wrote, closed = 0, 0

        def write(self, step, metrics):
            self.wrote += 1

        def note(self, step, text): ...

        def close(self):
            self.closed += 1

    fake, run = Fake(), override(experiment, {"loop.duration": steps})
    with nullcontext() if steps == "0 steps" else pytest.raises(DurationError):
        fit(run, tmp_path, config={}, writers=iter([fake]), progress=False)
    assert (fake.wrote, fake.closed) == (int(steps == "0 steps"), 1)


def test_a_run_of_no_steps_that_is_killed_before_it_is_saved_has_no_line_twice(
    experiment, tmp_path: Path, monkeypatch
):
    run = override(experiment, {"loop.duration": "0 steps"})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save", None)  # calling it raises
        with pytest.raises(TypeError):
            fit(run, tmp_path, config=resolve(run), progress=False)
    before = lines(tmp_path)
    assert [line["step"] for line in before] == [0]
    for _ in range(2):  # the second finds it saved, and keeps the lines
        fit(run, tmp_path, config=resolve(run), progress=False)
        assert lines(tmp_path) == before


def test_what_belongs_to_states_that_are_gone_is_kept_and_not_used(
    experiment, straight, tmp_path: Path, capsys
):
    here = tmp_path / "run"
    shutil.copytree(straight, here)
    (here / "checkpoints").rename(here / "best")  # as if the newest had been moved away
    (here / "evaluations").mkdir()
    (here / "evaluations" / "splits.json").write_text("{}")
    before, run = lines(here), override(experiment, {"loop.duration": "0 steps"})
    fit(run, here, config=resolve(run), progress=False)
    assert capsys.readouterr().err == (
        f"{here} has no checkpoint, so training begins anew: what was there of an earlier start is "
        "kept as best.earlier and metrics.jsonl.earlier and evaluations.earlier\n"
    )
    assert not (here / "evaluations").exists()
    assert not (here / "best").exists()
    assert saved_step(here / "best.earlier") == 6
    assert [line["step"] for line in lines(here)] == [0]
    (here / "metrics.jsonl.earlier").replace(here / "metrics.jsonl")
    assert lines(here) == before
    fit(run, here, config=resolve(run), progress=False)  # of step 0, which is saved
    assert capsys.readouterr().err == ""


def test_the_term_that_broke_is_named_before_the_total(tmp_path: Path):
    """One kernel grows beyond the root of float32: its square is infinite, the logits are not."""
    scale = (("hidden/kernel", 1e22),)
    changes = {"parallel.data": 1, "optimizer.lr_scale": scale, "data.eval_splits": {}}
    experiment = override(make_tiny(), changes)
    experiment = replace(experiment, task=replace(experiment.task, l2=1e-3))
    with pytest.raises(NonFiniteError, match=r"train/l2_loss is inf at step"):
        fit(experiment, tmp_path, config=resolve(experiment), progress=False)


def test_json_lines_hold_null_for_what_json_cannot(tmp_path: Path):
    log = JsonLines(tmp_path / "metrics.jsonl", 0)
    log.write(1, {"test/nll": float("nan"), "test/accuracy": 0.5})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "test/nll": None,
        "test/accuracy": 0.5,
    }


def test_a_run_does_not_go_on_with_other_data(experiment, tmp_path):
    """Classes that were renamed are in another order, and labels mean something else."""

    def fruit(split, *, first):
        return replace(
            synthetic(split, n=40, size=8, channels=1, classes=4), class_names=(first, *"bcd")
        )

    def swapped(split):
        records = fruit(split, first="apple").records.arrays
        labels = {"label": np.array([1, 0, 2, 3], np.int32)[records["label"]]}
        return Examples(Arrays({**records, **labels}), ("apple", *"bcd"))

    def again(first, stop, source=None):
        data = replace(experiment.data, source=source or partial(fruit, first=first))
        changed = override(replace(experiment, data=data), {"data.eval_splits": {}})
        return fit(changed, tmp_path, config={}, stop=lambda: stop, progress=False)

    assert not again("apple", stop=True).finished
    with pytest.raises(DataError, match="a class called 'apple', and the data have 'red_apple'"):
        again("red_apple", stop=False)
    with pytest.raises(DataError, match=r"labels '40 of digest .*, and the data have"):
        again("apple", stop=False, source=swapped)
    assert again("apple", stop=True).step == 2
