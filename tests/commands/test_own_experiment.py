"""An experiment in a file of the user's: all that works by name works for it, from any folder."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opsin.commands import inspection, runs
from opsin.config import catalogue
from opsin.train.feed import FeedSpec
from opsin.train.loop import Result as Ended
from opsin.train.program import build
from opsin.train.sets import open_sets
from opsin.train.sharding import make_mesh


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """A command reads a file once a process, and here are several."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("own_files_"):
            del sys.modules[name]


def test_new_writes_a_file_that_runs_sweeps_reports_and_reproduces(
    opsin: Callable, untrained: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = opsin("new", "labels_of_mine")
    assert (made.code, made.err) == (0, "")
    assert made.out.splitlines()[-1] == "labels_of_mine.py"
    text = Path("labels_of_mine.py").read_text()
    assert "NAME" not in text
    assert text.startswith('"""With smoothed labels')

    smoke = opsin("run", "./labels_of_mine.py", "--smoke", "--quiet")
    assert smoke.code == 0
    experiment = untrained[-1]  # not trained here, but it could be
    mesh = make_mesh(experiment.parallel)
    feed = FeedSpec.of(mesh, open_sets(experiment).train, experiment.data.batch, 1024)
    assert build(experiment, feed).steps == 2
    (directory,) = (tmp_path / "runs" / "labels_of_mine").iterdir()
    assert smoke.out.splitlines()[-1] == str(directory.relative_to(tmp_path))
    assert untrained[-1].loop.duration == "2 steps"
    saved = json.loads((directory / "config.json").read_text())
    assert saved["task"]["model"]["type"] == "models.classification.lenet:LeNet5"

    swept = opsin("sweep", "./labels_of_mine.py", "--quiet", "--seeds", "2")
    assert swept.code == 0
    assert swept.out.splitlines()[-1] == "done; now: opsin report ./labels_of_mine.py"
    losses = [x.task.loss_function for x in untrained[1:]]
    assert len(losses) == 4
    assert losses[1].keywords == {"smoothing": 0.1}

    for run in (tmp_path / "runs" / "labels_of_mine").iterdir():  # what a real one would add
        numbers = {"test/accuracy": 0.5, "test/nll": 1.0, "steps": 3, "seconds": 1.0}
        (run / "summary.json").write_text(json.dumps(numbers))
    reported = opsin("report", "./labels_of_mine.py")
    assert reported.code == 0, reported.err
    table = (tmp_path / "results" / "labels_of_mine.md").read_text()
    assert "With smoothed labels LeNet-5" in table
    assert "| `hard` | 2 of 3 |" in table
    assert "opsin sweep ./labels_of_mine.py --seeds 3" in table
    lines = (tmp_path / "results" / "labels_of_mine.jsonl").read_text().splitlines()
    assert len(lines) == 4  # that of --smoke is no run of the sweep

    monkeypatch.setattr(runs, "fit", lambda *arguments, **options: Ended(True, 3, numbers))
    again = opsin("reproduce", "./labels_of_mine.py", "--quiet", "--rows", "4")
    assert (again.code, again.err) == (0, "")
    assert "labels_of_mine, hard, seed 0" in again.out
    assert "[labels_of_mine](labels_of_mine.md)" in Path("results/reproduced.md").read_text()


def test_it_is_found_from_any_folder_and_knows_its_own_functions(
    opsin: Callable, untrained: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opsin("new", "with_a_loss")
    file = tmp_path / "with_a_loss.py"
    file.write_text(
        file.read_text().replace("loss_function=cross_entropy_loss", "loss_function=my_loss")
        + "\n\ndef my_loss(logits, labels, *, smoothing=0.0):\n"
        "    return cross_entropy_loss(logits, labels, smoothing=smoothing)\n"
    )
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    assert opsin("run", "../with_a_loss.py", "--quiet", "data.batch=32").code == 0
    (directory,) = (away / "runs" / "with_a_loss").iterdir()
    saved = json.loads((directory / "config.json").read_text())
    assert saved["task"]["loss_function"]["call"] == f"{file}:my_loss"
    assert saved["data"]["batch"] == 32
    assert untrained[-1].task.loss_function.__name__ == "my_loss"


def test_inspect_draws_its_batch(opsin: Callable, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(inspection, "draw_batches", lambda *words: asked.append(words))
    opsin("new", "seen")
    drawn = opsin("inspect", "./seen.py", "data.batch=8")
    assert (drawn.code, drawn.out) == (0, "seen_batch.png\n")
    ((experiment, count, path),) = asked
    assert (experiment.data.batch, count, path) == (8, 1, Path("seen_batch.png"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "mine.py is not there, seen from"),
        ("x = 1", "has no 'config'"),
        ("config = 1", "config is a function"),
        ("config = None", "config is a function"),
        ("def config(): ...\nsweep = None", "sweep is a function"),
        ("def config(x): ...", "config is a function without arguments"),
        ("import sys\nsys.exit(0)", "cannot import mine.py: SystemExit: 0"),
        ("def config(): return 1", "config() gives an Experiment, not int"),
        ("def config(:", "cannot import mine.py: SyntaxError"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("def config(): ...\nSMOKE = 1", "SMOKE is a dict of overrides"),
        ("def config(): ...\nTABLE = {}", "TABLE is a Table of opsin.config.table"),
        ("def config(): ...\nsweep = []", "sweep is a function"),
    ],
)
def test_a_file_that_is_no_experiment_is_told_in_a_line(
    opsin: Callable, content: str | None, complaint: str
):
    if content is not None:
        Path("mine.py").write_text(content)
    for command in ("run", "sweep", "inspect"):
        sys.modules.pop("own_files_mine", None)
        told = opsin(command, "./mine.py")
        assert told.code == 2, told.err
        assert complaint in told.complaint()


@pytest.mark.parametrize("given", ["['one']", "None", "3"])
def test_arms_are_arms(opsin: Callable, given: str):
    opsin("new", "mine")
    with Path("mine.py").open("a") as file:
        file.write(f"\n\ndef sweep():\n    return {given}\n")
    sys.modules.pop("own_files_mine", None)
    assert "sweep() gives a list of Arm" in opsin("sweep", "./mine.py").complaint()


def test_a_link_to_a_file_is_that_file(opsin: Callable, untrained: list[Any]):
    opsin("new", "mine")
    Path("linked.py").symlink_to("mine.py")
    for word in ("./mine.py", "./linked.py"):
        assert opsin("run", word, "--quiet").code == 0
    one, other = untrained
    assert type(one.task) is type(other.task)
    assert "own_files_linked" not in sys.modules


def test_what_config_raises_is_the_users_own(opsin: Callable):
    Path("mine.py").write_text("def config():\n    return {}['absent']\n")
    told = opsin("run", "./mine.py")
    assert told.code == 1
    assert told.err.splitlines()[-1] == "KeyError: 'absent'"
    assert "groups.py" not in told.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("new digits_lenet", "opsin has an experiment 'digits_lenet': choose another name"),
        ("new ../out", "is no name of an experiment"),
        ("new a/b", "is no name of an experiment"),
        ("new there", "there.py is there already"),
        ("run there", "did you mean './there.py'?"),
        ("run ./digits_lenet.py", "opsin has an experiment 'digits_lenet'"),
        ("run ./a.b.py", "is no name of an experiment"),
        ("report ./there.py", "there.py has no TABLE to report"),
    ],
)
def test_names_that_will_not_do(opsin: Callable, words: str, complaint: str):
    Path("there.py").write_text("def config(): ...\n")
    told = opsin(*words.split())
    assert told.code == 2
    assert complaint in told.complaint()
    assert Path("there.py").read_text() == "def config(): ...\n"
    assert not Path("../out.py").exists()


def test_a_name_that_a_run_recorded_is_never_a_file():
    """``arm.json`` of a run may be a stranger's."""
    with pytest.raises(catalogue.ConfigError, match="there is no experiment"):
        catalogue.find("./evil.py")
