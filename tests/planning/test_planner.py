"""From the command to the files: what is printed and written, the sweep, and the way out."""

import json
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest

from opsin.commands import runtime
from opsin.commands.main import main
from opsin.config import catalogue
from opsin.config.tree import override
from opsin.data.files import WriteError
from opsin.data.sources import blank, synthetic
from opsin.models.classification.vit import ViT
from opsin.planning import planner as planning
from opsin.planning.chips import CHIPS, Topology
from opsin.planning.plan import Cost, Memory, Plan, predict
from opsin.planning.planner import Planner, Setting, arrangement, described, examples_of
from opsin.train.checks import check_batch
from opsin.train.durations import in_steps
from opsin.train.experiment import Data, Experiment
from opsin.train.settings import SettingError
from opsin.train.sharding import make_mesh
from opsin.train.tasks.classify import Classify

GIB = 2**30
V5E = Topology.parse("v5e:4x4")
RECIPES = tuple(
    name for name, file in catalogue.experiments().items() if "\nPLAN = " in file.read_text()
)
PLANS = Path(__file__).parents[2] / "results" / "plans"


@dataclass(frozen=True)
class Stub:
    """As much of a device as a mesh asks for."""

    process_index: int = 0


def small() -> Experiment:
    """Its model would compile in a moment, if anything here compiled it."""
    model = ViT(depth=1, width=8, mlp_width=8, heads=1, patch=4, num_classes=10)
    return Experiment(task=Classify(model=model), data=Data(batch=256))


def stand_in(experiment: Experiment, examples: Any, topology: Topology, **options: Any) -> Plan:
    """A plan by a formula: 64 GiB of state and an eighth of a GiB an image, both in slices."""
    parallel = experiment.parallel
    # The mesh is that of sixteen chips, which raises for what does not multiply.
    mesh = make_mesh(parallel, [Stub()] * topology.size)
    shape, chips = dict(mesh.shape), topology.size
    batch, parts = experiment.data.batch, experiment.loop.accumulate
    check_batch(batch, mesh, parts)
    needed = 64 * GIB // shape["fsdp"] + batch * GIB // (8 * chips * parts)
    available = topology.chip.hbm_bytes
    fits = available is None or needed <= available
    cost = Cost(
        model_flops=1e9 * batch / chips,
        flops=1e9 * batch / chips,
        compiler_flops=1e9 * batch / chips,
        compiler_bytes=1e9,
        bytes_accessed=GIB,  # limits: so more images are faster
        exchanges=(),
    )
    known = fits and available is not None
    return Plan(
        topology=str(topology),
        mesh=shape,
        batch=batch,
        accumulate=parts,
        examples=len(examples.records),
        steps=100,
        parameters=8,
        memory=Memory(1, 0, 2, 0, 0, needed, needed if fits else None, available),
        cost=cost if fits else None,
        prediction=predict(cost, topology.chip, batch) if known else None,
        compile_seconds=1.0,
        compile_cpu_seconds=1.0,
    )


@pytest.fixture
def planner(monkeypatch) -> Planner:
    monkeypatch.setattr(planning, "plan", stand_in)
    return Planner(small(), blank(1000, image=(8, 8, 1)), V5E)


def test_the_sweep_ranks_what_fits_and_stops_where_it_does_not(planner):
    found = planner.sweep()
    tried = {(s.plan.mesh["fsdp"], s.plan.batch): s.plan.fits for s in found}
    # 16 GiB a chip: 64 GiB of state need slices, and an image an eighth.
    assert tried == {
        (1, 128): False,  # nor would more images: not tried
        (4, 128): False,
        (16, 128): True,
        (16, 256): True,
        (16, 512): True,
        (16, 1024): True,
    }
    rates = [s.plan.prediction.images_per_second for s in found if s.plan.prediction]
    assert rates == sorted(rates, reverse=True)
    assert [s.plan.fits for s in found] == [True] * 4 + [False] * 2
    assert found[0].arguments == "parallel.data=-1 parallel.fsdp=16 data.batch=1024"


@pytest.mark.parametrize(
    ("batch", "way_out"),
    [
        (256, "parallel.data=-1 parallel.fsdp=16"),  # slices do
        (4096, "parallel.data=-1 parallel.fsdp=16 loop.accumulate=4"),  # and parts
        (16384, "parallel.data=-1 parallel.fsdp=16 loop.accumulate=16"),
    ],
)
def test_the_nearest_setting_keeps_the_batch_where_it_can(planner, batch, way_out):
    larger = replace(planner.experiment, data=Data(batch=batch))
    if batch == 16384:
        larger = replace(larger, loop=replace(larger.loop, accumulate=2))
    planner = replace(planner, experiment=larger)
    failed = planner.setting({}).plan
    assert not failed.fits
    nearest = planner.nearest(failed)
    assert nearest is not None
    assert nearest.arguments == way_out
    assert override(larger, nearest.overrides).data.batch == batch


def test_a_smaller_batch_is_the_last_resort_and_there_may_be_none(planner, monkeypatch):
    def whole(experiment: Experiment, *arguments: Any, **options: Any) -> Plan:
        if experiment.loop.accumulate > 1:
            raise SettingError("parts of this batch are not the batch")
        return stand_in(experiment, *arguments, **options)

    monkeypatch.setattr(planning, "plan", whole)
    larger = replace(planner.experiment, data=Data(batch=4096))
    planner = replace(planner, experiment=larger)
    nearest = planner.nearest(planner.setting({}).plan)
    assert nearest is not None
    assert nearest.arguments == "parallel.data=-1 parallel.fsdp=16 data.batch=1024"
    tiny_chip = replace(V5E, chip=replace(V5E.chip, hbm_bytes=GIB))
    planner = replace(planner, topology=tiny_chip)
    assert planner.nearest(planner.setting({}).plan) is None


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_of_none_is_never_tried(planner, monkeypatch, batch):
    tried = []

    def whole(experiment: Experiment, *arguments: Any, **options: Any) -> Plan:
        tried.append(experiment.data.batch)
        raise SettingError("does not divide")

    failed = planner.setting({}).plan
    monkeypatch.setattr(planning, "plan", whole)
    planner = replace(planner, experiment=replace(planner.experiment, data=Data(batch=batch)))
    assert planner.nearest(failed) is None
    assert planner.sweep() == []
    assert min(tried) >= 1


def test_a_smaller_batch_is_tried_where_parts_do_not_help(planner, monkeypatch):
    """As where the images of a step, which are there whole, take too much."""

    def of_batches(experiment: Experiment, *arguments: Any, **options: Any) -> Plan:
        made = stand_in(planner.experiment, planner.examples, V5E)
        memory = replace(
            made.memory, needed=experiment.data.batch * GIB, temporaries=1, available=16 * GIB
        )
        return replace(made, memory=memory, mesh={"data": 1, "fsdp": 16, "tensor": 1})

    monkeypatch.setattr(planning, "plan", of_batches)
    nearest = planner.nearest(planner.setting({}).plan)
    assert nearest is not None
    assert nearest.arguments == "data.batch=16"


def test_what_cannot_fit_is_not_compiled(planner, monkeypatch):
    """335 GiB where there are 16: a chip of its own needs 32 parts, which is tried at once."""
    compiled = []

    def of_parts(experiment: Experiment, *arguments: Any, **options: Any) -> Plan:
        compiled.append(experiment.loop.accumulate)
        made = stand_in(planner.experiment, planner.examples, V5E)
        needed = 335 * GIB // experiment.loop.accumulate
        memory = replace(made.memory, needed=needed, temporaries=1, available=16 * GIB)
        return replace(made, memory=memory, mesh={"data": 1, "fsdp": 16, "tensor": 1})

    monkeypatch.setattr(planning, "plan", of_parts)
    nearest = planner.nearest(planner.setting({}).plan)
    assert nearest is not None
    assert nearest.arguments == "loop.accumulate=32"
    assert compiled == [1, 32]


def test_recomputation_is_told_apart(monkeypatch):
    asked = []

    def record(experiment: Experiment, *arguments: Any, plain: Experiment | None) -> Plan:
        asked.append((experiment, plain))
        return stand_in(experiment, *arguments)

    monkeypatch.setattr(planning, "plan", record)
    planner = Planner(small(), blank(1000, image=(8, 8, 1)), V5E)
    planner.setting({"parallel.fsdp": 16})
    planner.setting({"parallel.fsdp": 16, "task.model.remat": True})
    (_, without), (again, plain) = asked
    assert without is None
    assert again.task.model.remat
    assert plain == override(again, {"task.model.remat": False})


def test_the_text_says_what_it_is_and_what_does_not_fit(planner):
    setting = planner.setting({"parallel.fsdp": 16})
    text = described("name", "opsin plan name", V5E, setting, planner.sweep())
    assert text.startswith("# name on v5e:4x4\n\n*Planned, not run.*\n\n    opsin plan name\n")
    assert "6 GiB of 16 GiB |" in text  # 4 of state and 2 of images
    assert "limited by" in text
    assert "The prediction is a model" in text
    assert "https://cloud.google.com/tpu/docs/v5e" in text
    assert "| parallel.data=-1 parallel.fsdp=1 data.batch=128 | 65 GiB, does not fit |" in text
    failed = described("name", "opsin plan name", V5E, planner.setting({}))
    assert "**does not fit: 66 GiB a chip, which has 16 GiB.**" in failed
    assert "limited by" not in failed


# The command.


@pytest.fixture
def opsin(monkeypatch, tmp_path, capsys):
    """Runs a command in a directory of its own: exit code, screen, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "set_up", lambda asked: None)

    def call(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        shown = capsys.readouterr()
        return exited.value.code, shown.out, shown.err

    return call


def test_a_plan_from_the_command_to_its_files(opsin, tmp_path):
    """The one that compiles."""
    arguments = ("plan", "digits_lenet", "--topology", "cpu:8", "data.source=synthetic")
    code, out, err = opsin(*arguments, "--parallelism", "data=2,fsdp=4", "--global-batch", "32")
    assert (code, err) == (0, "")
    written = json.loads((tmp_path / "plans" / "digits_lenet-cpu-8.json").read_text())
    text = (tmp_path / "plans" / "digits_lenet-cpu-8.md").read_text()
    assert out == f"{text}\nplans/digits_lenet-cpu-8.json\n"
    assert written["experiment"] == "digits_lenet"
    assert written["run"] is False
    assert written["versions"]["jax"] == jax.__version__
    assert written["command"].startswith("opsin plan digits_lenet --topology cpu:8")
    assert written["plan"]["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert written["plan"]["batch"] == 32
    assert written["plan"]["examples"] == 1024  # of the synthetic set, not of the digits
    assert written["plan"]["prediction"] is None
    assert written["sweep"] == []


def test_a_step_that_does_not_fit_exits_1_with_the_setting_that_does(opsin, monkeypatch):
    monkeypatch.setattr(planning, "plan", stand_in)
    code, out, err = opsin("plan", "digits_lenet", "--topology", "v5e:4x4", "--out", "here.json")
    assert code == 1
    assert "does not fit" in out
    *progress, last = err.splitlines()
    assert last == (
        "opsin: the step does not fit on v5e:4x4; this does: parallel.data=-1 parallel.fsdp=16"
    )
    assert progress  # what was tried


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits_lenet", "--topology", "v5e:3x3"), "there is no topology 'v5e:3x3', did you mean"),
        (("digits_lenet", "--topology", "v7:2x2"), "there is no chip 'v7'"),
        (("digits_lenett", "--topology", "cpu:8"), "did you mean 'digits_lenet'?"),
        (("digits_lenet", "--topology", "cpu:8", "data.batchh=8"), "did you mean 'data.batch'?"),
        (
            ("digits_lenet", "--topology", "cpu:8", "--parallelism", "data=2,fsdp=2"),
            "4 of the 8 devices of cpu:8",
        ),
        (
            ("digits_lenet", "--topology", "cpu:8", "--parallelism", "pipeline=2"),
            "there is no 'parallel.pipeline' to override",
        ),
        (("digits_lenet", "--topology", "cpu:8", "--parallelism", "2x4"), "as in data=16,fsdp=16"),
        (("digits_lenet", "--topology", "cpu:8", "--global-batch", "12"), "try data.batch=8"),
        (("digits_lenet",), "Missing from opsin plan: --topology"),
    ],
)
def test_a_mistake_is_one_line_and_exits_2(opsin, arguments, message):
    code, out, err = opsin("plan", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_compiler_for_tpus_is_asked_for_where_it_is_missing(opsin, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = opsin("plan", "digits_lenet", "--topology", "v6e:4x4")
    assert code == 2
    assert "pip install -e '.[tpu]'" in err


def test_a_place_that_cannot_be_written_is_named(planner, tmp_path):
    (tmp_path / "file").write_text("")
    setting = planner.setting({"parallel.fsdp": 16})
    with pytest.raises(WriteError, match="choose another place with --out"):
        planning.write(tmp_path / "file" / "plan.json", "name", "", planner, setting, [])


# What experiments say of data that are not here.


@pytest.mark.parametrize("name", RECIPES)
def test_a_set_that_is_not_here_is_planned_by_its_shapes(name, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    module = catalogue.find(name)
    experiment = module.config()
    examples = examples_of(module, experiment)
    assert len(examples.records) in (50_000, 1_281_167)
    assert examples.records[0]["image"].dtype == "uint8"
    assert examples.records[0]["label"].dtype == "int32"
    # Not of another set that the user asks for.
    other = override(experiment, {"data.source": partial(synthetic, n=24)})
    assert len(examples_of(module, other).records) == 24


@pytest.mark.parametrize("name", RECIPES)
def test_plans_on_record_are_of_the_recipe_as_it_stands(name):
    module = catalogue.find(name)
    experiment = module.config()
    examples = len(module.PLAN.records)
    command = re.search(rf"opsin plan {name} --topology (\S+)", module.__doc__)
    assert command
    found = [json.loads(path.read_text()) for path in PLANS.glob(f"{name}-*.json")]
    assert command[1] in [record["plan"]["topology"] for record in found]
    for record in found:
        plan = record["plan"]
        assert record["overrides"] == {}
        assert plan["examples"] == examples
        assert plan["batch"] == experiment.data.batch
        assert plan["steps"] == in_steps(
            experiment.loop.duration, Fraction(examples, experiment.data.batch)
        )
        assert plan["memory"]["needed"] <= plan["memory"]["available"]
        page = (PLANS / f"{name}-{plan['topology'].replace(':', '-')}.md").read_text()
        assert page.startswith(f"# {name} on {plan['topology']}\n\n*Planned, not run.*")


def test_what_is_typed_for_the_mesh_and_the_batch_are_overrides():
    assert arrangement({"data": 4, "fsdp": 2}, 64) == {
        "parallel.data": 4,
        "parallel.fsdp": 2,
        "data.batch": 64,
    }
    assert arrangement({}, None) == {}


def test_a_setting_is_written_as_it_is_typed():
    plan = stand_in(small(), blank(8, image=(8, 8, 1)), replace(V5E, chip=CHIPS["cpu"]))
    assert Setting({"data.batch": 8, "parallel.fsdp": 2}, plan).arguments == (
        "data.batch=8 parallel.fsdp=2"
    )
