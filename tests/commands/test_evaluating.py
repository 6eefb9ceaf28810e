"""A run is measured at its end, again and in other ways; whatever is asked, nothing trains."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filelock import FileLock

from opsin.analysis.diffusion import Inpainting, SampledBy, VariationalBound
from opsin.analysis.ensembles import Ensemble
from opsin.analysis.generators import SampleQuality
from opsin.analysis.latents import LatentClassifier
from opsin.analysis.likelihoods import ImportanceNLL
from opsin.analysis.probes import Probe
from opsin.analysis.sampling import untracked
from opsin.commands import runtime
from opsin.commands.evaluating import Evaluated, evaluate_run, known_measurements
from opsin.commands.exporting import export
from opsin.commands.main import main
from opsin.commands.provenance import named_files
from opsin.commands.runs import Options, Outcome, RunError, execute, state_of
from opsin.config import catalogue
from opsin.config.identity import evaluation_id, identity
from opsin.config.own_files import load
from opsin.config.sweep import identity_of, key_of
from opsin.config.table import Arm, Key, ReportError
from opsin.config.tree import override, resolve
from opsin.data.files import WriteError, read_lines
from opsin.errors import ConfigError
from opsin.experiments.extractors import LENET
from opsin.metrics.state import Mean
from opsin.ops.diffusion.sampling import Sampling
from opsin.report import evaluations
from opsin.report.rows import collect
from opsin.report.run_files import read_config
from opsin.train import loop
from opsin.train.experiment import Experiment
from opsin.train.measurements import Subject, measure
from opsin.train.program import build
from opsin.train.settings import SettingError
from opsin.train.weights import WeightsError, digest_of
from tests.commands.tiny import Small
from tests.train.conftest import make_tiny

SAMPLING = "sampling=ops.diffusion.sampling:Sampling"
HERE = "tests.commands.test_evaluating"


@dataclass(frozen=True)
class Norm:
    """Sums of powers of the parameters."""

    power: int = 2
    seed: int = 0

    def check(self, task: Any, sets: Any) -> None:
        if self.power < 1:
            raise SettingError(f"Norm: power={self.power} is below 1")

    def __call__(self, subject: Subject[Any]) -> dict[str, float]:
        params, _ = subject.variables
        leaves = map(np.asarray, jax.tree.leaves(params))
        return {"test/norm": sum(float(np.sum(np.abs(x) ** self.power)) for x in leaves)}


PROBE = Probe(neighbours=3, penalties=(1e-2,), validation=0.2)


@dataclass(frozen=True)
class Dies:
    """A measurement that cannot be made, as long as ``hopeless`` says so."""

    def __call__(self, subject: Subject[Any]) -> dict[str, float]:
        if hopeless:
            raise RuntimeError("killed")
        return {"test/alive": 1.0}


hopeless: list[bool] = []


def tiny(**changes: Any) -> Experiment:
    measured = {"parallel.data": 1, "measurements": (Norm(), PROBE)}
    return override(make_tiny(), measured | changes)


def ended(experiment: Experiment, workdir: Path) -> Outcome:
    return execute("tiny", "arm", experiment, Options(workdir, progress=False))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return ended(tiny(), tmp_path_factory.mktemp("runs"))


def copied(trained: Outcome, workdir: Path) -> Path:
    """The run in a place of its own, where it may be changed."""
    return shutil.copytree(trained.directory, workdir / "tiny" / trained.directory.name)


def measurement(path: Path, *body: str) -> Path:
    """A file with ``Own``, which is called as ``body`` says."""
    head = (
        "from dataclasses import dataclass",
        "from pathlib import Path",
        "@dataclass(frozen=True)",
        "class Own:",
        "    def check(self, task, sets): pass",
        "    def __call__(self, subject):",
    )
    path.write_text("\n".join([*head, *(f"        {line}" for line in body), ""]))
    return path


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, to compile a training step is an error."""

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a training step is compiled")

    def built(*arguments: Any, **options: Any) -> Any:
        return replace(build(*arguments, **options), compile=refuse)

    monkeypatch.setattr("opsin.train.loop.build", built)
    monkeypatch.setattr("opsin.commands.trained.build", built)


def evaluated(run: Path, *asked: str) -> list[Evaluated]:
    return list(evaluate_run(run, asked, untracked))


def test_what_must_not_train_would_be_noticed(untrainable, tmp_path):
    with pytest.raises(AssertionError, match="a training step is compiled"):
        ended(tiny(), tmp_path)


def test_a_run_is_measured_again_as_it_was_at_its_end(trained, untrainable):
    before = (trained.directory / "summary.json").read_text()
    splits, norm, probe = evaluated(trained.directory)
    assert [splits.name, norm.name, probe.name] == ["splits", "Norm", "Probe"]
    assert splits.metrics.keys() >= {"test/accuracy", "test_ema/nll"}
    assert norm.metrics.keys() == {"test_ema/norm"}
    assert "test_ema/linear_accuracy" in probe.metrics
    again = {**splits.metrics, **norm.metrics, **probe.metrics}
    assert {name: x for name, x in trained.metrics.items() if "/" in name} == again  # to the bit
    assert (trained.directory / "summary.json").read_text() == before
    record = json.loads(norm.path.read_text())
    assert norm.path == trained.directory / "evaluations" / f"{identity(Norm())}.json"
    assert record.keys() == {"of", "measurement", "own", "step", "metrics", "seconds", "commit"}
    assert record["measurement"] == resolve(Norm())
    assert (record["step"], record["metrics"]) == (6, norm.metrics)


def test_a_measurement_that_a_run_never_had(trained, untrainable):
    (found,) = evaluated(trained.directory, f"{HERE}:Norm", "power=1")
    (two,) = evaluated(trained.directory, "Norm")  # its own
    assert found.metrics["test_ema/norm"] > two.metrics["test_ema/norm"] > 0
    assert two.metrics["test_ema/norm"] == trained.metrics["test_ema/norm"]
    wide, narrow = evaluated(trained.directory, "Probe", "images=20", "Norm", "power=3")
    assert resolve(replace(PROBE, images=20)) == json.loads(wide.path.read_text())["measurement"]
    assert narrow.metrics["test_ema/norm"] < two.metrics["test_ema/norm"]


def test_files_that_a_measurement_names_are_known_by_their_bytes(trained, untrainable, tmp_path):
    """An ensemble of a run with itself is the run; what is kept of it says which bytes it saw."""
    path = tmp_path / "same.safetensors"
    export(trained.directory, path)
    (found,) = evaluated(trained.directory, "Ensemble", f"members=({str(path)!r},)")
    for name in ("accuracy", "nll", "ece"):
        own = trained.metrics[f"test_ema/{name}"]
        assert found.metrics[f"test_ema/{name}_ensemble"] == pytest.approx(own, rel=1e-4)
    assert json.loads(found.path.read_text())["own"] == {str(path): digest_of(path)}
    asked = tiny(measurements=(Ensemble((str(path),)),))
    assert state_of(trained.directory, asked) == "DONE"
    reported = collect(trained.directory.parent, ["arm"], lambda *_: key_of(asked))
    path.write_bytes(path.read_bytes() + b" ")
    assert state_of(trained.directory, asked) == "to measure"  # other bytes under the same path
    path.unlink()
    assert collect(trained.directory.parent, ["arm"], lambda *_: key_of(asked)) == reported != []


def test_files_that_are_named_without_a_digest_are_found_wherever_they_stand():
    unknown = replace(LENET, sha256=None)
    assert named_files(SampledBy(Sampling(), SampleQuality(unknown))) == {LENET.path: LENET.sha256}
    assert named_files(SampleQuality(LENET)) == named_files(replace(unknown, path="gone")) == {}


def test_a_finished_run_makes_the_measurements_that_it_lacks(trained, untrainable):
    """And no others: those that are there are read."""
    workdir, own = trained.directory.parents[1], trained.directory / "summary.json"
    before, more = own.read_text(), tiny(measurements=(Norm(), Norm(power=5)))
    assert state_of(trained.directory, more) == "to measure"
    made = evaluations.path_of(trained.directory, identity(Norm())).stat().st_mtime_ns
    outcome = ended(more, workdir)
    assert outcome.directory == trained.directory
    assert (outcome.trained_before, outcome.measured) == (True, True)
    (found,) = evaluated(trained.directory, f"{HERE}:Norm", "power=5")
    assert outcome.metrics["test_ema/norm"] == found.metrics["test_ema/norm"]
    assert state_of(trained.directory, more) == state_of(trained.directory, tiny()) == "DONE"
    assert evaluations.path_of(trained.directory, identity(Norm())).stat().st_mtime_ns == made
    assert own.read_text() == before
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("opsin.commands.runs.fit", None)  # calling it would raise
        assert ended(tiny(), workdir).metrics == trained.metrics


def test_each_measurement_is_kept_when_it_is_made(tmp_path):
    """What follows may die, and be another when the run resumes."""
    hopeless.append(True)
    one, two, three = Norm(power=1), Norm(power=2, seed=5), Norm(power=3)
    dying = tiny(measurements=(one, two, Dies()), **{"loop.duration": "0 steps"})
    with pytest.raises(RuntimeError, match="killed"):
        ended(dying, tmp_path)
    (run,) = (tmp_path / "tiny").iterdir()
    made = {x: evaluations.path_of(run, identity(x)) for x in (one, two)}
    times = {x: path.stat().st_mtime_ns for x, path in made.items()}
    assert not (run / "DONE").exists()

    hopeless.clear()
    outcome = ended(replace(dying, measurements=(one, Dies())), tmp_path)
    assert times == {x: path.stat().st_mtime_ns for x, path in made.items()}
    found = evaluations.read(run, identity(one), 0)
    assert found is not None
    assert outcome.metrics["test_ema/norm"] == found["metrics"]["test_ema/norm"]
    assert outcome.metrics["test_ema/alive"] == 1.0
    summary = json.loads((run / "summary.json").read_text())
    assert summary.keys() >= {"test/accuracy", "test_ema/nll", "seconds"}
    # ``two`` was made and logged, and is no measurement of this run any more
    assert not summary.keys() & {"test_ema/norm", "test_ema/alive"}
    lines = read_lines(run / "metrics.jsonl")
    assert [x["test_ema/norm"] for x in lines if "test_ema/norm" in x] == [
        json.loads(made[x].read_text())["metrics"]["test_ema/norm"] for x in (one, two)
    ]
    only = tiny(measurements=(three,), **{"loop.duration": "0 steps"})
    assert ended(only, tmp_path).metrics["test_ema/norm"] < found["metrics"]["test_ema/norm"]


@pytest.mark.parametrize("left", [None, "2"])
def test_a_finished_run_without_its_checkpoint_is_not_trained_again(trained, tmp_path, left):
    run = copied(trained, tmp_path)
    shutil.rmtree(run / "checkpoints")
    if left is not None:
        shutil.copytree(trained.directory / "checkpoints" / "6", run / "checkpoints" / left)
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    with pytest.raises(RunError, match=r"checkpoint of step 6 is gone.*rm -r") as caught:
        ended(tiny(measurements=(Norm(power=4),)), tmp_path)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()} == before
    assert ended(tiny(), tmp_path).metrics == trained.metrics  # what is there is read


def counted(logits: jax.Array, labels: jax.Array, valid: jax.Array | None = None) -> Mean:
    """A metric that is new."""
    return Mean.from_values(jnp.full(len(labels), 7.0), valid)


def test_a_finished_run_is_evaluated_as_its_experiment_says_now(trained, tmp_path, untrainable):
    """A metric and a set are added without training, once; all else is as it was."""
    run = copied(trained, tmp_path)
    summary = (run / "summary.json").read_bytes()
    changes = {
        "task.more_metrics": (counted,),
        "data.eval_splits": {"test": "test", "fit": "train"},
    }
    more = tiny(**changes)
    assert state_of(run, more) == "to measure"
    outcome = ended(more, tmp_path)
    assert (outcome.directory, outcome.trained_before) == (run, True)
    assert outcome.metrics["test/counted"] == outcome.metrics["fit_ema/counted"] == 7.0
    assert outcome.metrics["fit/accuracy"] != outcome.metrics["test/accuracy"]
    assert outcome.metrics.items() >= trained.metrics.items()
    assert (run / "summary.json").read_bytes() == summary
    assert state_of(run, more) == "DONE"
    (row,) = collect(run.parent, ["a"], lambda arm, seed: Key(run.name))
    assert row.metrics["fit/counted"] == 7.0
    assert "test_ema/norm" not in row.metrics  # of no measurement that is asked for
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("opsin.commands.runs.fit", None)  # calling it would raise
        assert ended(more, tmp_path).metrics == outcome.metrics
        assert ended(replace(more, loop=replace(more.loop, previews=3)), tmp_path).trained_before


def test_a_changed_file_of_ones_own_measures_again(trained, tmp_path, untrainable):
    """As another measurement does: its options alone do not say what it computes."""
    run = copied(trained, tmp_path)
    own = measurement(tmp_path / "my_measurement.py", "return {'test/constant': 1.0}")
    more = tiny(measurements=(load(own, "Own")(),))
    assert ended(more, tmp_path).metrics["test_ema/constant"] == 1.0
    assert state_of(run, more) == "DONE"
    own.write_text("# one more line\n" + own.read_text())
    assert state_of(run, more) == "DONE"
    path = evaluations.path_of(run, identity(more.measurements[0]))
    found = json.loads(path.read_text())
    path.write_text(json.dumps({name: x for name, x in found.items() if name != "own"}))
    assert state_of(run, more) == "to measure"  # it was made by code that is not known
    own.write_text(own.read_text().replace("1.0", "2.0"))
    assert state_of(run, more) == "to measure"
    assert ended(more, tmp_path).measured
    assert state_of(run, more) == "DONE"


def test_what_measured_is_the_code_that_was_there_before(trained, tmp_path, untrainable):
    """Its file is changed while it runs: what it found is not taken for that of the new one."""
    run = copied(trained, tmp_path)
    own = measurement(
        tmp_path / "changed_meanwhile.py",
        "Path(__file__).write_text(Path(__file__).read_text().replace('1.0', '2.0'))",
        "return {'test/constant': 1.0}",
    )
    for make in (
        lambda more: ended(more, tmp_path),
        lambda more: evaluated(run, f"{own}:Own"),
    ):
        more = tiny(measurements=(load(own, "Own")(),))
        own.write_text(own.read_text().replace("2.0", "1.0"))
        evaluations.path_of(run, identity(more.measurements[0])).unlink(missing_ok=True)
        make(more)
        assert "2.0" in own.read_text()
        assert state_of(run, more) == "to measure"


def test_a_changed_metric_of_ones_own_evaluates_again(trained, tmp_path, untrainable):
    run = copied(trained, tmp_path)
    own = tmp_path / "my_metric.py"
    own.write_text(
        "from opsin.metrics.classification import accuracy\n"
        "def mine(logits, labels, valid=None): return accuracy(logits, labels, valid)\n"
    )
    more = tiny(**{"task.more_metrics": (load(own, "mine"),)})
    assert ended(more, tmp_path).measured
    assert state_of(run, more) == "DONE"
    own.write_text(own.read_text().replace("accuracy(logits", "accuracy(-logits"))
    assert state_of(run, more) == "to measure"
    own.write_text(own.read_text().replace("accuracy(-logits", "accuracy(logits"))
    assert state_of(run, more) == "DONE"


def test_a_run_that_does_not_say_how_it_was_evaluated_is_evaluated_again(
    trained, tmp_path, untrainable
):
    """Its file is gone, or is of earlier code: neither resumes as an arm that is done."""
    run = copied(trained, tmp_path)
    path = evaluations.path_of(run, evaluations.SPLITS)
    whole = json.loads(path.read_text())
    for content in (None, {name: x for name, x in whole.items() if name not in ("of", "own")}):
        path.unlink()
        if content:
            path.write_text(json.dumps(content))
        assert state_of(run, tiny()) == "to measure"
        with pytest.raises(ReportError, match="is measured as the sweep asks: run opsin sweep"):
            collect(run.parent, ["a"], lambda arm, seed: key_of(tiny()))
        outcome = ended(tiny(), tmp_path)
        assert outcome.measured
        assert outcome.metrics == trained.metrics
        assert json.loads(path.read_text())["seconds"] > 0
        assert len(collect(run.parent, ["a"], lambda arm, seed: key_of(tiny()))) == 1


def test_what_is_measured_by_another_task_is_measured_again(trained, tmp_path, untrainable):
    """The id of a measurement does not say which sampler it used, or which splits it read."""
    run = copied(trained, tmp_path)
    more = tiny(**{"data.eval_splits": {"test": "train"}})
    before = evaluations.read(run, identity(Norm()), 6)
    outcome = ended(more, tmp_path)
    assert outcome.measured
    again = evaluations.read(run, identity(Norm()), 6, evaluation_id(more))
    assert again is not None
    assert before is not None
    assert again["of"] != before["of"] == evaluation_id(tiny())
    assert read_config(run)["data"]["eval_splits"] == {"test": "train"}
    assert state_of(run, more) == "DONE"
    assert state_of(run, tiny()) == "to measure"
    for experiment, rows in ((more, 1), (tiny(), 0)):
        try:
            found = collect(run.parent, ["a"], lambda arm, seed, e=experiment: key_of(e))
        except ReportError:
            found = []
        assert len(found) == rows


def test_a_measurement_of_ones_own_as_its_page_writes_it(trained):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "my_measure.py"
    found = [
        evaluated(trained.directory, f"{page}:Confused", "true=0", f"other={n}") for n in range(4)
    ]
    shares = [each.metrics[f"test_ema/confused_0_{n}"] for n, (each,) in enumerate(found)]
    assert sum(shares) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3.0, "Gives gives float: a measurement gives"),
        ({"half": 0.5}, "calls a number 'half': call it split/metric"),
        ({"test/a": "b"}, "gives str as test/a: give one number"),
        ({"test/a": np.ones(1)}, r"gives an array \[1\] as test/a: give one number"),
        ({"test/a": None}, "gives NoneType as test/a"),
    ],
)
def test_what_is_no_number_is_told_in_a_line(given, message):
    with pytest.raises(SettingError, match=message):
        list(measure([Gives(given)], None))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("half", [0.5, np.float32(0.5), jnp.array(0.5), np.array(0.5)])
def test_scalars_of_any_library_are_numbers(half):
    (found,) = measure([Gives({"test/a": half})], None, average="_ema")  # pyright: ignore
    assert json.dumps(found.metrics) == '{"test_ema/a": 0.5}'


@dataclass(frozen=True)
class Gives:
    given: Any

    def __call__(self, subject: Any) -> Any:
        return self.given


def test_numbers_of_an_earlier_step_are_not_those_of_the_end(trained):
    found = evaluations.read(trained.directory, identity(Norm()), 6)
    assert found is not None
    assert evaluations.read(trained.directory, identity(Norm()), 5) is None
    assert evaluations.read(trained.directory, "nothing", 6) is None


def test_a_run_of_no_steps_is_initialised_and_measured(untrainable, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "measured_work", None)  # no benchmark of the device either
    outcome = ended(tiny(**{"loop.duration": "0 steps"}), tmp_path)
    assert (outcome.finished, outcome.step) == (True, 0)
    assert [x.name for x in (outcome.directory / "checkpoints").iterdir()] == ["0"]
    assert outcome.metrics.keys() >= {"test/accuracy", "test_ema/norm", "test_ema/knn_accuracy"}
    assert outcome.metrics["parameters"] == trained_parameters()
    assert "model_flops_per_step" not in outcome.metrics
    lines = read_lines(outcome.directory / "metrics.jsonl")
    assert {line["step"] for line in lines} == {0}
    assert not any(name.startswith("train/") for line in lines for name in line)
    splits, norm, _ = evaluated(outcome.directory)
    assert norm.metrics["test_ema/norm"] == outcome.metrics["test_ema/norm"]
    assert splits.metrics["test/nll"] == outcome.metrics["test/nll"]


def trained_parameters() -> int:
    return 9 * 8 + 8 + 2 * 8 + 128 * 16 + 16 + 16 * 4 + 4


@pytest.fixture
def opsin(monkeypatch, capsys, tmp_path) -> Iterator[Any]:
    """Runs a command in an empty directory; ``tiny`` is an experiment that only measures there."""
    small = {"task.model": Small(), "loop.duration": "0 steps", "measurements": (Norm(),)}
    base = tiny(**small)
    arms = [Arm(f"p{n}", {"measurements.0.power": n}, ("measurements.0.seed",)) for n in (1, 2, 3)]
    module = SimpleNamespace(config=lambda: base, sweep=lambda: arms)
    find = catalogue.find
    monkeypatch.setattr(catalogue, "find", lambda name: module if name == "tiny" else find(name))
    monkeypatch.setattr(runtime, "set_up", lambda asked: None)  # jax is imported by now
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err

    return run


def test_arms_that_only_measure_share_a_run_and_are_reported(opsin, untrainable, monkeypatch):
    code, out, _ = opsin("sweep", "tiny", "--seeds", "2", "--quiet")
    assert code == 0
    folders = sorted(path for path in Path("runs/tiny").iterdir())
    assert len(folders) == 2  # one a seed
    assert out.count("(to do)") == 2
    assert out.count("(to measure)") == 4
    module = catalogue.find("tiny")
    of = identity_of(module.config(), catalogue.arms(module))
    rows = collect(Path("runs/tiny"), ["p1", "p2", "p3"], of)
    assert [(row.arm, row.seed) for row in rows] == [
        (f"p{n}", s) for n in (1, 2, 3) for s in (0, 1)
    ]
    assert [(row.id, row.measurement) for row in rows] == [
        of(row.arm, row.seed)[:2] for row in rows
    ]
    assert len({row.id for row in rows}) == 2
    assert rows[2].measurement == identity(Norm(power=2, seed=0))
    norms = np.reshape([row.metrics["test_ema/norm"] for row in rows], (3, 2))
    assert (np.diff(norms, axis=0) < 0).all()  # of small parameters, higher powers are smaller
    assert len({row.metrics["test/nll"] for row in rows}) == 2

    monkeypatch.setattr("opsin.commands.runs.fit", None)  # calling it would raise
    code, out, _ = opsin("sweep", "tiny", "--seeds", "2", "--quiet")
    assert (code, out.count("(DONE)")) == (0, 6)


def test_by_default_a_run_is_measured_as_its_experiment_stands(opsin, untrainable):
    """In all arms that are runs of it; one that is of none, as its own config says."""
    assert opsin("run", "tiny", "measurements.0.power=7", "--quiet")[0] == 0
    (run,) = Path("runs/tiny").iterdir()
    code, out, err = opsin("evaluate", str(run))
    assert (code, err) == (0, "")
    for power in (1, 2, 3):
        assert str(evaluations.path_of(run, identity(Norm(power)))) in out
    assert str(evaluations.path_of(run, identity(Norm(7)))) not in out
    code, out, _ = opsin("evaluate", str(run), "Norm", "power=2")
    value = json.loads(evaluations.path_of(run, identity(Norm(2))).read_text())["metrics"]
    assert out.splitlines()[:2] == [
        "Norm",
        f"  test_ema/norm                    {value['test_ema/norm']:.4f}",
    ]
    assert opsin("run", "tiny", "data.batch=8", "measurements.0.power=7", "--quiet")[0] == 0
    (other,) = (path for path in Path("runs/tiny").iterdir() if path != run)
    assert str(evaluations.path_of(other, identity(Norm(7)))) in opsin("evaluate", str(other))[1]
    code, _, err = opsin("evaluate", "nowhere")
    assert (code, err.count("\n")) == (2, 1)
    assert "is no directory of a run" in err


def test_by_default_the_splits_are_evaluated_as_its_recipe_says_now(opsin, untrainable):
    assert opsin("run", "tiny", "--quiet", "measurements.0.power=1")[0] == 0
    assert opsin("run", "tiny", "--quiet", "measurements.0.power=1", "data.batch=8")[0] == 0
    module = catalogue.find("tiny")
    base = override(module.config(), {"task.more_metrics": (counted,)})
    module.config = lambda: base
    own, other = sorted(Path("runs/tiny").iterdir(), key=lambda run: run.name != identity(base))
    assert "test_ema/counted" in opsin("evaluate", str(own))[1]
    assert "counted" not in opsin("evaluate", str(other))[1]  # of no recipe: as its config says
    assert state_of(own, base) == "DONE"
    out = opsin("run", "tiny", "--quiet", "measurements.0.power=4")[1]
    assert out.startswith("already trained: measured what was missing; to train it again: rm -r")
    assert "counted" in out
    out = opsin("run", "tiny", "--quiet", "measurements.0.power=4")[1]
    assert out.startswith("already trained, so only read; to train it again: rm -r")


def test_what_can_be_measured_is_found_by_name():
    assert known_measurements().keys() == {
        "AveragedViews", "Ensemble", "ImportanceNLL", "Inpainting", "LatentClassifier", "Probe",
        "Recoded", "SampleQuality", "SampledBy", "VariationalBound",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (["Probee"], ConfigError, "no measurement 'Probee': did you mean Probe.*VariationalBound"),
        ([f"{HERE}:tiny"], ConfigError, "no measurement"),
        (["images=3"], ConfigError, "images=3 has no measurement: name one before it"),
        (["Probe", "image=3"], ConfigError, "no 'image' to override: did you mean 'images'"),
        (["SampleQuality"], ConfigError, "give extractor=…, as in extractor=experiments.extrac"),
        (["Ensemble", "members=a"], ConfigError, r"takes tuple\[str, ...\], not 'a'$"),
        (["Ensemble", "members=('.',)"], WeightsError, "is a directory: of a run, `opsin export"),
        (["Ensemble"], ConfigError, r"give members=…, as in members=\"\('FILE',\)\"$"),
        (["SampledBy"], ConfigError, "give sampling=…, as in sampling=ops.diffusion.sampling:Sam"),
        (
            ["SampledBy", SAMPLING], ConfigError,
            "needs measurement: give .*as in measurement=analysis.generators:SampleQuality$",
        ),
        (
            ["SampledBy", SAMPLING, "measurement=analysis.generators:SampleQuality"], ConfigError,
            "SampleQuality needs extractor: give measurement.extractor=…, as in measurement.extr",
        ),
        (
            ["SampledBy", SAMPLING, "measurement=losses.classification:focal_loss"], ConfigError,
            "focal_loss is called with",
        ),
        (
            ["SampledBy", SAMPLING, "measurement=analysis.diffusion:VariationalBound"],
            SettingError, "SampledBy needs a diffusion model, not Classify",
        ),
        (
            [
                "SampledBy", SAMPLING, "measurement=analysis.generators:SampleQuality",
                "measurement.extractor=experiments.extractors:LENET", "measurement.samples=9",
                "sampling.steps=0",
            ], ConfigError, "steps takes int from 1|samples takes int",
        ),
        (["SampleQuality", "extractor=3"], ConfigError, "extractor takes Extractor, not 3"),
        (["Norm", "power=0"], SettingError, "power=0 is below 1"),
        (
            ["SampleQuality", "extractor=experiments.extractors:LENET"], SettingError,
            "needs a model that makes images, not Classify",
        ),
        (["VariationalBound"], SettingError, "VariationalBound needs a diffusion model, not"),
        (["ImportanceNLL"], SettingError, "ImportanceNLL needs a model with latent variables"),
        (["LatentClassifier"], SettingError, "such as an autoencoder, not Classify"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line_before_anything_is_measured(trained, asked, error, message):
    with pytest.raises(error, match=message) as caught:
        evaluated(trained.directory, *asked)
    assert "\n" not in str(caught.value)


def test_no_measurement_takes_a_task_that_it_does_not_fit():
    task: Any = tiny().task
    for measurement in (SampleQuality(LENET), Inpainting(LENET), VariationalBound()):
        with pytest.raises(SettingError, match="not Classify"):
            measurement.check(task, {"train": None, "test": None})  # pyright: ignore
    for measurement in (ImportanceNLL(), LatentClassifier()):
        with pytest.raises(SettingError, match="not Classify"):
            measurement.check(task, {})  # pyright: ignore


def test_a_directory_that_cannot_be_written_is_told(trained, tmp_path, monkeypatch):
    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluations, "write", full)
    with pytest.raises(WriteError, match=r"cannot write to .*No space left"):
        evaluated(trained.directory, "Norm")


def test_what_cannot_be_read_is_not_said_to_be_unwritable(trained, monkeypatch):
    def missing(*arguments: Any) -> Any:
        raise FileNotFoundError(2, "No such file", "images/7.png")

    monkeypatch.setattr(Norm, "__call__", missing)
    with pytest.raises(FileNotFoundError, match=r"images/7\.png"):
        evaluated(trained.directory, "Norm")


def test_a_run_that_is_live_is_not_evaluated(trained):
    live = pytest.raises(RunError, match=r"another run is live in \S+: wait for it$")
    with FileLock(trained.directory / ".lock"), live:
        evaluated(trained.directory, "Norm")
    assert evaluated(trained.directory, "Norm")  # and leaves no lock behind
    assert evaluated(trained.directory, "Norm")
