"""Every start of a run stays on record, and a run that goes on by other code says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from opsin.commands import runs
from opsin.commands.provenance import environment
from opsin.commands.runs import Options, RunError, execute
from opsin.config.table import Key
from opsin.config.tree import override, resolve
from opsin.models.classification.lenet import LeNet5
from opsin.report.rows import collect
from opsin.report.starts import commits, other_code, read_starts, that_count
from opsin.train.conclusion import Result
from opsin.train.experiment import Experiment
from opsin.train.tasks.classify import Classify

EXPERIMENT = Experiment(task=Classify(model=LeNet5()))
A, B = "a" * 40, "b" * 40


def start(commit: str | None, *, dirty: bool = False, step: int = 0) -> dict[str, Any]:
    return {"commit": commit, "dirty": dirty, "step": step}


def installed(version: str) -> dict[str, Any]:
    return start(None) | {"versions": {"opsin": version, "jax": "3"}}


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        ([], start(A), None),
        ([start(A)], start(A), None),
        ([start(None)], start(None), None),
        ([start(A)], start(B), "trained at commit aaaaaaaaaa; this is commit bbbbbbbbbb"),
        ([start(B), start(A)], start(B), "trained at commit aaaaaaaaaa; this is commit bbbbbbbbbb"),
        (
            [start(A, dirty=True)],
            start(A),
            "trained at commit aaaaaaaaaa with uncommitted changes; this is commit aaaaaaaaaa",
        ),
        (
            [start(A, dirty=True)],
            start(A, dirty=True),
            "trained at commit aaaaaaaaaa with uncommitted changes, which may be others than now",
        ),
        ([start(None)], start(A), "trained at an unknown commit; this is commit aaaaaaaaaa"),
        ([installed("1")], installed("1"), None),
        (
            [installed("1")],
            installed("2"),
            "trained at opsin 1, an unknown commit; this is opsin 2, an unknown commit",
        ),
        ([start(A) | {"versions": {"opsin": "1"}}], start(A) | {"versions": {"opsin": "2"}}, None),
    ],
)
def test_other_code_is_told_in_a_line(before, now, line):
    assert other_code(before, now) == line


def test_what_came_before_the_last_step_0_does_not_count():
    starts = [start(A), start(B), start(A, step=5), start(B, step=9)]
    assert that_count(starts) == starts[1:]
    assert commits(starts) == [B, A]
    assert commits([start(None), start(None, step=4)]) == ["unknown"]
    begun, resumed = start(A) | {"resumed": False}, start(B) | {"resumed": True}
    assert that_count([start(B), begun, resumed]) == [begun, resumed]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch, capsys):
    """Starts the run by the code of a commit and leaves it at a step; what was said meanwhile."""

    def begin(commit: str, step: int, *, dirty: bool = False, **changes: Any) -> str:
        environment = start(commit, dirty=dirty) | {"python": "3", "versions": {}}
        environment |= {"devices": ["cpu:cpu"], "hardware": "one"}
        del environment["step"]
        monkeypatch.setattr(runs, "environment", lambda: environment)

        def fit(experiment, directory, **options):
            (directory / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
            return Result(step == 6, step, {"steps": 6, "seconds": 1.0, "test/accuracy": 0.5})

        monkeypatch.setattr(runs, "fit", fit)
        execute("some", "default", override(EXPERIMENT, changes), Options(tmp_path))
        return capsys.readouterr().err

    return begin


def test_all_starts_are_kept_and_a_row_names_their_commits(begin, tmp_path: Path):
    assert begin(A, 3) == ""
    assert begin(A, 4) == ""
    said = "trained at commit aaaaaaaaaa; this is commit bbbbbbbbbb\n"
    # Another layout of devices and other cadences: the run is the same.
    changes = {"parallel.fsdp": 2, "loop.checkpoint_every": "2 steps"}
    assert begin(B, 6, dirty=True, **changes) == said.replace("\n", " with uncommitted changes\n")
    (directory,) = (tmp_path / "some").iterdir()
    starts = read_starts(directory / "env.json")
    assert [(x["commit"], x["step"]) for x in starts] == [(A, 0), (A, 3), (B, 4)]
    (note,) = (json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines())
    assert note == {"step": 4, "note": said.strip() + " with uncommitted changes"}
    (row,) = collect(tmp_path / "some", ["default"], lambda arm, seed: Key(directory.name))
    assert (row.commit, row.commits, row.dirty) == (B, [A, B], True)

    again = "trained at commit bbbbbbbbbb with uncommitted changes; this is commit aaaaaaaaaa\n"
    assert begin(A, 0) == again  # it is finished and only read
    assert read_starts(directory / "env.json") == starts


def test_a_run_of_no_steps_that_resumes_under_other_code_says_so(begin, tmp_path: Path):
    assert begin(A, 0) == ""
    assert begin(B, 0) == "trained at commit aaaaaaaaaa; this is commit bbbbbbbbbb\n"
    (directory,) = (tmp_path / "some").iterdir()
    assert commits(read_starts(directory / "env.json")) == [A, B]
    assert "aaaaaaaaaa" in (directory / "metrics.jsonl").read_text()


def test_the_environment_names_the_version_of_the_house():
    assert environment()["versions"]["opsin"]


def test_a_finished_run_with_another_default_is_not_taken_for_this_one(begin, tmp_path: Path):
    begin(A, 6)
    (directory,) = (tmp_path / "some").iterdir()
    config = json.loads((directory / "config.json").read_text())
    assert config == resolve(EXPERIMENT)
    config["task"]["model"]["num_classes"] = 11  # what was the default then
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"when task\.model\.num_classes was 11, and it is 10 by"):
        begin(A, 6)
    config["task"]["model"]["type"] = "models.classification.lenet:LeNet4"
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"was trained by other code .*LeNet4.*rm -r"):
        begin(A, 6)
