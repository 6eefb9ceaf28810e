"""Every experiment is quiet to import, claims something, runs, and fits its own table."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

from opsin.commands import runtime
from opsin.commands.main import main
from opsin.commands.runs import Options, execute
from opsin.config import catalogue
from opsin.config.identity import identity
from opsin.config.sweep import arm_of, expand
from opsin.config.table import Report
from opsin.config.tree import override, parse_all, resolve
from opsin.experiments.extractors import MNIST_DDPM
from opsin.experiments.generation import mnist_ddpm_samplers
from opsin.report.reproduction import tables
from opsin.report.rows import read_rows
from opsin.train.feed import FeedSpec
from opsin.train.paths import flatten
from opsin.train.program import build
from opsin.train.sets import open_sets
from opsin.train.sharding import make_mesh
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.contrast import Contrast
from opsin.train.tasks.segment import Segment

HOUSE = Path(__file__).parents[2]
NAMES = sorted(catalogue.experiments())

IMPORT_ALL = """
import importlib, pkgutil, sys
import opsin

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            print("imported", name)

sys.meta_path.insert(0, Watch())
for module in pkgutil.walk_packages(opsin.__path__, "opsin."):
    if not module.name.startswith(("opsin.__main__", "opsin.benchmarks")):
        importlib.import_module(module.name)

from opsin.config import catalogue
from opsin.config.tree import override
for name in catalogue.experiments():
    module = catalogue.find(name)
    module.config()
    for arm in catalogue.arms(module):
        override(module.config(), arm.overrides)
import jax
jax.config.update("jax_num_cpu_devices", 3)  # raises once the devices are in use
assert jax.device_count() == 3
"""


def test_importing_all_rooms_prints_writes_and_starts_nothing(tmp_path):
    """Nor does it import TensorFlow; and making all configs does no more.

    matplotlib writes a list of the fonts where there is none, so it is given the one that is there.
    """
    fonts = {"MPLCONFIGDIR": matplotlib.get_cachedir()}  # else matplotlib would list them at home
    here = {"HOME": str(tmp_path), "TFDS_DATA_DIR": "/nowhere", **fonts}
    done = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT_ALL],
        cwd=tmp_path,
        env={**os.environ, **here},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.rglob("*")) == []


def test_no_two_experiments_have_one_name():
    stems = [path.stem for path in catalogue.HOUSE.glob("*/*.py") if path.stem != "__init__"]
    assert sorted(stems) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_is_a_claim_with_its_command(name):
    module = catalogue.find(name)
    claim = catalogue.claim(catalogue.experiments()[name])
    assert claim == (module.__doc__ or "").partition("\n")[0]
    assert claim.endswith((".", "?"))
    assert claim[0].isupper()
    commands = {line.strip() for line in (module.__doc__ or "").splitlines()}
    if len(catalogue.arms(module)) > 1:
        assert {f"opsin sweep {name}", f"opsin report {name}"} <= commands
    else:
        assert {f"opsin run {name}", f"opsin sweep {name}"} & commands


@pytest.mark.parametrize("name", NAMES)
def test_the_config_is_complete_and_the_table_fits_its_arms(name):
    module = catalogue.find(name)
    experiment = module.config()
    assert json.loads(json.dumps(resolve(experiment))) == resolve(experiment)
    assert identity(module.config()) == identity(experiment)
    arms = catalogue.arms(module)
    if not hasattr(module, "TABLE"):
        assert len(arms) == 1
        return
    planned = expand(experiment, arms, module.TABLE.seeds)
    assert len(planned) == len(arms) * module.TABLE.seeds  # none is another
    assert arm_of(planned[-1].experiment, experiment, arms) == arms[-1].name
    # Raises for an arm or a metric that is not there.
    report = Report(name=name, claim="", arms=[arm.name for arm in arms], table=module.TABLE)
    alone = len(arms) - len(module.TABLE.references) == 1  # a headline may be one longer run
    assert module.TABLE.seeds >= (1 if alone else 3)
    compared = [arm for arm in report.arms if module.TABLE.baseline_of(arm)]
    assert len(compared) < len(arms)  # a baseline is not compared to itself


def test_committed_weights_are_those_of_the_network_that_goes_on_from_them():
    experiment = mnist_ddpm_samplers.config()
    assert experiment.weights == MNIST_DDPM
    images = {"image": np.zeros((1, 28, 28, 1), np.float32), "label": np.zeros(1, np.int32)}
    saved, described = MNIST_DDPM.read()
    # Raises for those of another network.
    variables = MNIST_DDPM.load(experiment.task.init, jax.random.key(0), images)
    assert flatten(variables).keys() == saved.keys()
    assert described["network"] == "mnist_ddpm"
    seen = experiment.preprocessing((28, 28, 1))
    assert MNIST_DDPM.preprocessing(described, seen.range) == seen


SMOKED = "digits_lenet"
"""Is smoked by ``make test``; ``make proofs`` smokes one of each kind, and traces the others."""


def networks_of(name: str) -> tuple[type, ...]:
    """The task of an experiment and its networks: what its programs are made of."""
    task = catalogue.find(name).config().task
    fields = [getattr(task, field.name) for field in dataclasses.fields(task)]
    return (type(task), *(type(value) for value in fields if isinstance(value, nn.Module)))


SOON = (
    *("cifar10_simclr_finetune", "cifar10_simclr_temperature", "imagenet_vit_s16"),
    *("mnist_gan_stability", "mnist_vae", "shapes_unet"),
)
"""The experiments that stand for all of their programs, as they are traced soon."""

LATE = {
    networks_of(name)
    for name in ("camvid_models", "camvid_output_stride", "mnist_ddpm_schedules", "mnist_ncsn")
}
"""Programs that take four seconds or more to trace, and that ``make proofs`` smokes anyway."""

PROGRAMS = {networks_of(name): name for name in (*reversed(NAMES), *SOON, SMOKED)}
"""An experiment of each program: ``make test`` traces it, or smokes it."""


def kind_of(name: str) -> tuple[tuple[type, ...], tuple[str, ...]]:
    """What a run of an experiment goes through: its networks, where they begin, what is kept of the
    data, and all that is measured."""
    config = catalogue.find(name).config()
    parts = repr((config.weights, config.data.select, config.measurements))
    return networks_of(name), tuple(re.findall(r"\w+(?=\()|(?<=function )\w+", parts))


TABLED = tables(HOUSE / "results")
"""Were run: they have rows with every metric of their table."""

SMOKES = {
    *{kind_of(name): name for name in (*reversed(NAMES), SMOKED)}.values(),
    *(name for name in NAMES if name not in TABLED),
}
"""An experiment of each kind, and those that never ran."""

SOON_TRACED = {name for made_of, name in PROGRAMS.items() if made_of not in LATE} - {SMOKED}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SOON_TRACED else pytest.mark.proofs)
        for name in NAMES
        if name in SOON_TRACED or name not in SMOKES
    ],
)
def test_the_programs_of_a_small_run_are_traced(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    module = catalogue.find(name)
    experiment = override(module.config(), {**module.SMOKE, "parallel.data": 1})
    sets = open_sets(experiment)
    mesh = make_mesh(experiment.parallel)
    feed = FeedSpec.of(mesh, sets.train, experiment.data.batch, 1024)
    program = build(experiment, feed)
    if program.steps:
        assert program.flops().total() > 1e4
    few = {k: jax.ShapeDtypeStruct((4, *x.shape[1:]), x.dtype) for k, x in feed.batch.items()}
    few["valid"] = jax.ShapeDtypeStruct((4,), bool)
    variables = program.state.params, program.state.mutable
    params, mutable = variables
    given = params, {**mutable, **program.fixed()}, few, np.int32(0)
    numbers = jax.eval_shape(program.evaluate, *given)
    assert numbers
    if experiment.loop.previews:
        assert jax.eval_shape(program.preview, *variables, few)


@pytest.mark.proofs
@pytest.mark.parametrize("name", [name for name in NAMES if name not in TABLED])
def test_arms_that_never_ran_are_laid_out(name, tmp_path, monkeypatch):
    """Each with what it changes of the network and the optimiser; smoke runs are of one arm."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    module = catalogue.find(name)
    smoke = override(module.config(), {**module.SMOKE, "parallel.data": 1})
    mesh, data = make_mesh(smoke.parallel), smoke.data
    feed = FeedSpec.of(mesh, open_sets(smoke).train, data.batch, 1024)
    small = {f"data.{field}": getattr(data, field) for field in ("batch", "mean", "std")}
    arms = catalogue.arms(module)
    for arm in arms if len(arms) > 1 else ():
        changes = {**arm.overrides, **small, "parallel.data": 1}
        assert build(override(module.config(), changes), feed).steps, arm.name


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == SMOKED else pytest.mark.proofs) for n in sorted(SMOKES)],
)
def test_smoke_runs_to_its_end(name, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))  # it must need no data
    module = catalogue.find(name)
    experiment = override(module.config(), {**module.SMOKE, "parallel.data": 1, "seed": 3})
    outcome = execute(name, "arm", experiment, Options(tmp_path, progress=False))
    said = capfd.readouterr()
    steps = int(experiment.loop.duration.split()[0])  # none where it is only measured
    assert steps == (0 if module.config().loop.duration == "0 steps" else 2)
    assert (outcome.finished, outcome.step) == (True, steps)
    directory = tmp_path / name / identity(experiment)
    assert outcome.directory == directory

    def read(file: str):
        return json.loads((directory / file).read_text())

    assert (directory / "DONE").exists()
    assert not (directory / "FAILED").exists()
    assert read("config.json") == resolve(experiment)
    assert read("arm.json") == {"experiment": name, "arm": "arm", "seed": 3}
    (start,) = read("env.json")
    assert start.keys() == {
        "commit", "dirty", "versions", "python", "devices", "processes", "hardware", "command",
        "step", "resumed", "own",
    }  # fmt: skip
    summary = read("summary.json")
    measured = {
        name: value
        for each in experiment.measurements
        for name, value in read(f"evaluations/{identity(each)}.json")["metrics"].items()
    }
    assert summary | measured == outcome.metrics
    assert summary.keys().isdisjoint(measured)
    assert summary["steps"] == steps
    assert summary["parameters"] > 10_000
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    logged = {key: value for line in lines for key, value in line.items()}
    assert logged["step"] == steps
    logged.pop("note", None)  # text, such as that two steps do not make a generator
    notes = [f"step {line['step']}: {line['note']}\n" for line in lines if "note" in line]
    assert said == ("", "".join(notes))
    supervised = isinstance(experiment.task, Classify | Segment)
    expected = {"train/loss", "train/accuracy", "train/learning_rate"}
    assert not supervised or expected <= logged.keys()
    assert any(key.startswith("train/") and "loss" in key for key in logged) == (steps > 0)
    assert all(np.isfinite(value) for value in logged.values())
    unlabelled = "alignment" if isinstance(experiment.task, Contrast) else "loss"
    planned = {"test/accuracy" if supervised else f"test/{unlabelled}"}
    promised = set(module.TABLE.metrics) if hasattr(module, "TABLE") else planned
    assert promised <= outcome.metrics.keys()
    assert {name for name in promised if "/" in name} <= logged.keys()
    assert [path.name for path in (directory / "checkpoints").iterdir()] == [str(steps)]
    splits = experiment.data.eval_splits
    pictures = {path.name for path in directory.glob("*.png")}
    previews = {path.name for path in (directory / "previews").glob("*")}
    if supervised:
        assert pictures == {"curve.png", *(f"confusion_{split}.png" for split in splits)}
        assert previews == {f"{split}_predictions.png" for split in splits}
    assert "curve.png" in pictures
    assert bool(previews) == bool(experiment.loop.previews)
    for path in directory.rglob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, f"{path} is blank"


SMALL = """
import flax.linen as nn

class Linear(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))

linear = Linear()
"""


@pytest.mark.proofs
def test_an_ablation_from_sweep_to_report(tmp_path, monkeypatch, capsys):
    """All arms of a real one, with a network that compiles in a moment."""
    name = "mnist_focal_longtail"
    (tmp_path / "small_model_of_a_test.py").write_text(SMALL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "set_up", lambda asked: None)
    smaller = [
        "task.model=small_model_of_a_test:linear", "data.source=synthetic", "data.batch=16",
        "data.eval_batch=512", "loop.duration=2 steps", "loop.previews=0",
        "optimizer.warmup=0 steps",
    ]  # fmt: skip

    module = catalogue.find(name)
    small = override(module.config(), parse_all(smaller))
    monkeypatch.setattr(module, "config", lambda: small)

    def opsin(*arguments: str) -> int:
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        return exited.value.code

    assert opsin("sweep", name, "--quiet", "--seeds", "1") == 0
    assert f"done; now: opsin report {name}" in capsys.readouterr().out
    assert opsin("report", name) == 0
    arms = [arm.name for arm in catalogue.arms(catalogue.find(name))]
    rows = read_rows(tmp_path / "results" / f"{name}.jsonl")
    assert [(row.arm, row.seed) for row in rows] == [(arm, 0) for arm in arms]
    assert {row.status for row in rows} == {"done"}
    assert len({row.id for row in rows}) == len(rows)
    table = (tmp_path / "results" / f"{name}.md").read_text()
    assert capsys.readouterr().out == f"{table}\nresults\n"
    assert catalogue.claim(catalogue.experiments()[name]) in table
    for arm in arms:
        assert f"| `{arm}` | 1 of 3 |" in table  # two seeds are missing, and it says so
        assert f"- `{arm}`: missing seed 1; missing seed 2" in table
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {
        ".jsonl", ".csv", ".md", ".png",
    }  # fmt: skip
    assert opsin("report", name, "--check") == 0
    (tmp_path / "results" / f"{name}.csv").write_text("by hand")
    assert opsin("report", name, "--check") == 1
    assert f"opsin: {name}.csv is not what its data give" in capsys.readouterr().err
