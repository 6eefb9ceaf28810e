"""The best state by validation: which one is kept, and that all that is reported is of it."""

import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import opsin
from opsin.config.identity import identity
from opsin.config.tree import names_in, override, rebuild, resolve
from opsin.data.files import read_lines
from opsin.data.sources import synthetic
from opsin.data.validation import with_validation
from opsin.experiments.generation import mnist_ddpm
from opsin.experiments.segmentation import shapes_unet
from opsin.metrics.classification import ranking
from opsin.train.best import BEST, best_state, check_keep_best, choosing_split, keep_if_best
from opsin.train.checkpoint import saved_step
from opsin.train.settings import SettingError
from opsin.train.state import State
from tests.commands import tiny

SPLITS = {"val": "val", "test": "test"}
LOSSES = ("loss", "nll", "ece", "mse", "distortion", "rate", "l1", "generator_loss", "fd_lenet")
RECORD = {
    "config": {"seed": 0},
    "position": {"next_index": 0},
    "window": None,
    "seconds": 0.0,
}


def state(step: int) -> State:
    numbers = np.int32(step), {"w": np.full(2, step, np.float32)}, {}, {}, None, np.uint32(0)
    return jax.device_put(State(*numbers))


def shapes(of: State) -> State:
    there = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), of)


@pytest.mark.parametrize(
    ("keep_best", "values", "best"),
    [
        ("val/accuracy", [0.1, 0.9, 0.5], 2),
        ("val/accuracy", [0.9, 0.9, 0.1], 1),  # of equal ones the first
        ("-val/accuracy", [0.5, 0.9, 0.1], 3),
        ("+val/accuracy", [0.5, 0.9, 0.1], 2),
        ("val/accuracy", [float("nan"), 0.2, float("nan")], 2),
        ("val/accuracy", [float("nan")] * 3, 3),  # none: the last
    ],
)
def test_the_best_is_kept_and_stands_for_the_last_step(tmp_path, keep_best, values, best):
    for step, value in enumerate(values, start=1):
        numbers = {"val/accuracy": value, "val/nll": 0.0}
        keep_if_best(keep_best, tmp_path, state(step), numbers, lambda: RECORD)
    found = best_state(tmp_path, state(3), shapes(state(3)), {"seed": 0})
    assert int(found.step) == best
    np.testing.assert_array_equal(found.params["w"], np.full(2, best, np.float32))


def test_without_it_nothing_is_written(tmp_path):
    keep_if_best(None, tmp_path, state(1), {}, dict)
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SettingError, match="there is no val/acc, but val/accuracy, val/nll"):
        keep_if_best("val/acc", tmp_path, state(1), {"val/nll": 1, "val/accuracy": 1}, dict)


@pytest.mark.parametrize(
    ("keep_best", "complaint"),
    [
        ("accuracy", "is no metric of a split that is evaluated"),
        ("dev/accuracy", "is no metric of a split that is evaluated"),
        ("val/", "is no metric of a split"),
        ("test/accuracy", "would select on what is reported"),
        ("test_ema/accuracy", "would select on what is reported"),
        *(
            (f"val/{loss}", f"write -val/{loss} for the lowest, or \\+val/{loss}")
            for loss in LOSSES
        ),
    ],
)
def test_what_may_not_choose(keep_best, complaint):
    with pytest.raises(SettingError, match=complaint):
        check_keep_best(keep_best, SPLITS)


def test_what_may_choose():
    signed = [f"{sign}val/{metric}" for sign in "+-" for metric in (*LOSSES, "recall/3", "own")]
    for keep_best in ("val/accuracy", "val_ema/accuracy", "val/miou", "+val/accuracy", *signed):
        check_keep_best(keep_best, SPLITS)
        assert choosing_split(keep_best) == "val"


@pytest.mark.parametrize(
    "splits",
    [
        *({"val": split} for split in ("test", "test[:50%]", "train[:9%] + test[50%:]")),
        {"val": "validation", "test": "validation"},
    ],
)
def test_what_is_reported_under_another_name_does_not_choose(splits):
    with pytest.raises(SettingError, match="would select"):
        check_keep_best("val/accuracy", splits)
    check_keep_best("val/accuracy", {"val": "train[90%:]", "fit": "train[:90%]", "test": "test"})


CHOICES = {
    "data.eval_splits": {"val": "train[90%:]", "test": "test"},
    "data.eval_batch": 3,
    "loop.evaluate_every": "7 steps",
    "task.more_metrics": (ranking,),
    "task.groups": (("few", (1, 2)),),
}


def test_what_chooses_counts_where_something_is_chosen():
    base = override(tiny.config(), {"data.eval_splits": SPLITS})
    assert identity(base) == identity(tiny.config())
    for path, value in CHOICES.items():
        assert identity(override(base, {path: value})) == identity(base)
    best = [override(base, {"loop.keep_best": of}) for of in ("val/accuracy", "val_ema/accuracy")]
    others = [override(best[0], {path: value}) for path, value in CHOICES.items()]
    ids = [identity(each) for each in (base, *best, *others)]
    assert len(set(ids)) == len(ids)
    for each in best:  # what is evaluated beside it chooses nothing
        more = {"data.eval_splits": SPLITS | {"more": "test", "v": "v", "val_": "v"}}
        assert identity(override(each, more)) == identity(each)
        assert identity(rebuild(resolve(each), names_in(resolve(each)))) == identity(each)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (shapes_unet.config, "task.boundary_tolerance", 3.0),
        (shapes_unet.config, "task.rand", True),
    ],
)
def test_so_does_how_a_task_is_evaluated(config, field, value):
    base = config()
    assert identity(override(base, {field: value})) == identity(base)
    best = override(base, {"loop.keep_best": "val/miou"})
    assert identity(override(best, {field: value})) != identity(best)


def test_how_is_sampled_does_not_choose():
    """No evaluation samples: measurements do, of the state that was chosen."""
    best = override(mnist_ddpm.config(), {"loop.keep_best": "-val/loss"})
    assert identity(override(best, {"task.sampling.steps": 7})) == identity(best)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> opsin.Outcome:
    """A run whose last steps undo what it learned: the learning rate is far too high."""
    small = partial(synthetic, n=64, size=6, classes=4)
    experiment = override(
        tiny.config(),
        {
            "data.source": partial(with_validation, source=small, share=0.25),
            "data.eval_splits": SPLITS,
            "loop.keep_best": "val/accuracy",
            "loop.evaluate_every": "1 step",
            "loop.duration": "6 steps",
            "optimizer.learning_rate": 1.0,
        },
    )
    return opsin.fit(experiment, "best", workdir=tmp_path_factory.mktemp("runs"), progress=False)


def numbers_of(directory: Path) -> list[dict]:
    return [line for line in read_lines(directory / "metrics.jsonl") if "note" not in line]


def test_all_splits_are_evaluated_at_the_best_state_alone(outcome):
    lines = numbers_of(outcome.directory)
    chosen = {x["step"]: x["val/accuracy"] for x in lines if "val/accuracy" in x}
    assert sorted(chosen) == [1, 2, 3, 4, 5, 6]
    best = max(chosen, key=lambda step: (chosen[step], -step))
    assert best < 6  # else this shows nothing
    assert outcome.metrics["best_step"] == best == saved_step(outcome.directory / BEST)
    assert outcome.metrics["val/accuracy"] == chosen[best]
    assert [x for x in lines if "test/accuracy" in x] == []  # it could be selected by
    assert outcome.metrics["steps"] == 6
    assert len(lines) == 12  # one of training and one of evaluation a step


@pytest.mark.parametrize("again", [False, True])
def test_an_end_that_is_begun_anew_writes_no_line_twice(outcome, tmp_path, capsys, again):
    """It was killed before ``DONE``; or a finished one is evaluated by a metric that is new."""
    place = tmp_path / outcome.directory.relative_to(outcome.directory.parents[1])
    shutil.copytree(outcome.directory, place)
    before = numbers_of(place)
    experiment = opsin.load(outcome.directory).experiment
    if again:
        experiment = override(experiment, {"data.eval_splits": SPLITS | {"more": "test"}})
    else:
        (place / "DONE").unlink()
    found = opsin.fit(experiment, "best", workdir=tmp_path)
    assert numbers_of(place) == before
    assert found.directory == place
    assert found.metrics["test/accuracy"] == outcome.metrics["test/accuracy"]
    assert found.metrics["best_step"] == outcome.metrics["best_step"]
    assert found.metrics.get("more/accuracy") == (found.metrics["test/accuracy"] if again else None)
    said = capsys.readouterr().err
    assert f"step {found.metrics['best_step']}: test/accuracy" in said
    assert "step 6:" not in said


def test_it_is_what_python_and_commands_open(outcome):
    loaded = opsin.load(outcome.directory)
    test = synthetic("test", n=64, size=6, classes=4)
    images = np.stack([test.records[i]["image"] for i in range(64)])
    labels = np.array([int(test.records[i]["label"]) for i in range(64)])
    right = np.mean(loaded.predict(images).argmax(-1) == labels)
    assert right == outcome.metrics["test/accuracy"]
    assert loaded.step == 6


def test_it_is_read_and_not_trained_again(outcome):
    experiment = opsin.load(outcome.directory).experiment
    workdir = outcome.directory.parents[1]
    same = override(experiment, {"parallel.data": -1})
    again = opsin.fit(same, "best", workdir=workdir, progress=False)
    assert again.trained_before
    assert not again.measured
    assert again.metrics["best_step"] == outcome.metrics["best_step"]
