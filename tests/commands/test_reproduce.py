"""``opsin reproduce``: which rows, what they are compared with, and how it ends."""

import json
import random
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from opsin.commands import provenance, reproducing, runs
from opsin.config import catalogue
from opsin.config.sweep import expand, key_of
from opsin.config.table import Table
from opsin.report.rows import Row, in_order, write_rows
from opsin.train.checkpoint import SaveError
from opsin.train.logging import NonFiniteError
from opsin.train.loop import Result as Ended
from tests.commands import tiny

RESULTS = Path("results")
TABLE = Table(
    title="Tiny",
    metrics={"test/accuracy": ".1%", "test/made": ".2f"},
    details={"parameters": ".0f", "test/recall": ".1%"},
    failed_as={"test/accuracy": 0.0},
)
SEEDS = 2


def recorded(arm: str, seed: int) -> dict[str, float]:
    """Of arm slow the accuracies 0.5 and 0.6; no row has the recall."""
    return {"test/accuracy": 0.5 + seed / 10, "test/made": 3.0, "parameters": 100.0, "speed": 9.0}


@pytest.fixture
def rows(monkeypatch, opsin) -> list[Row]:
    """The rows of ``tiny`` in results/; those of ``broken``, in the middle, failed."""
    known = {**catalogue.experiments(), "tiny": Path(tiny.__file__)}
    monkeypatch.setattr(catalogue, "experiments", lambda: known)
    monkeypatch.setattr(tiny, "TABLE", TABLE, raising=False)
    written = []
    for run in expand(tiny.config(), tiny.sweep(), SEEDS):
        key = key_of(run.experiment)
        failed = run.arm == "broken"
        row = Row(
            arm=run.arm,
            seed=run.seed,
            id=key.run,
            measurement=key.measurement,
            evaluation=key.evaluation,
            status="failed" if failed else "done",
            commit="old",
            dirty=False,
            devices=["cpu:cpu"],
            hardware="2 cores",
            versions={},
            metrics={} if failed else recorded(run.arm, run.seed),
        )
        written.append(row)
    RESULTS.mkdir()
    ordered = in_order(written, [arm.name for arm in tiny.sweep()])
    write_rows(RESULTS / "tiny.jsonl", ordered)
    return ordered


@pytest.fixture
def code(monkeypatch) -> dict:
    """The commit of the code, which may be changed."""
    now = {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr(provenance, "code_of", lambda house: dict(now))
    return now


@pytest.fixture
def trains(monkeypatch, rows, code) -> dict:
    """What each run gives, which may be changed; nothing trains."""
    changes: dict = {}

    def fit(experiment, directory, **options):
        if "error" in changes:
            raise changes["error"]
        if "step" in changes:
            signal.raise_signal(signal.SIGINT)
            return Ended(False, changes["step"], {})
        arm = json.loads((directory / "arm.json").read_text())
        found = recorded(arm["arm"], arm["seed"]) | {"test/recall": 0.1, "seconds": 1.5, "steps": 3}
        return Ended(True, 3, found | changes)

    monkeypatch.setattr(runs, "fit", fit)
    return changes


def lines() -> list[dict]:
    text = (RESULTS / "reproduced.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (3, 0), (2, 7)])
def test_the_rows_are_drawn_from_those_that_are_done_by_the_seed(opsin, trains, rows, count, seed):
    done = [row for row in rows if row.status == "done"]
    ended = opsin("reproduce", "tiny", "--rows", str(count), "--seed", str(seed), "--quiet")
    expected = [done[i] for i in random.Random(seed).sample(range(len(done)), count)]
    assert ended.code == 0
    assert {(x["arm"], x["seed"], x["id"]) for x in lines()} == {
        (row.arm, row.seed, row.id) for row in expected
    }
    shown = [x for x in ended.out.splitlines() if x.startswith("tiny, ")]
    assert shown == [f"tiny, {row.arm}, seed {row.seed}" for row in expected]


def test_own_code_that_changed_is_another_place(opsin, trains, monkeypatch):
    for digest in "112":
        monkeypatch.setattr(reproducing, "own_code", lambda tree, digest=digest: {"f": digest})
        assert opsin("reproduce", "tiny", "--quiet").code == 0
    assert len([*Path("runs/reproduced").iterdir()]) == 2


def test_each_metric_of_the_table_is_compared(opsin, trains):
    trains |= {"test/made": 3.05, "parameters": 100.0}
    assert opsin("reproduce", "tiny", "--quiet").code == 0
    (line,) = lines()
    rules = {name: (x["now"], x["rule"], x["within"]) for name, x in line["metrics"].items()}
    accuracy = recorded(line["arm"], line["seed"])["test/accuracy"]
    assert rules == {  # neither speeds nor what the committed row lacks
        "test/accuracy": (accuracy, "spread", True),
        "test/made": (3.05, "2 %", True),
        "parameters": (100.0, "count", True),
    }
    assert (line["seconds"], line["error"], line["experiment"]) == (1.5, None, "tiny")
    assert (RESULTS / "reproduced.md").exists()


def test_a_share_is_of_the_images_tested_or_drawn(opsin, trains, monkeypatch):
    recall = replace(TABLE, metrics={"test/recall": ".1%"}, details={}, failed_as={})
    monkeypatch.setattr(tiny, "TABLE", recall)
    path = RESULTS / "tiny.jsonl"
    text = path.read_text()

    def width(extra: str) -> float:
        path.write_text(text.replace('"speed": 9.0', f'"test/recall": 0.1{extra}'))
        opsin("reproduce", "tiny", "--quiet")
        (line,) = lines()
        found = line["metrics"]["test/recall"]
        assert found["rule"] == "share"
        return found["high"] - found["low"]

    tested = width("")
    assert tested == width(', "test/samples": 64')
    assert width(', "test/samples": 8') > tested  # of 32 that are tested


def test_a_metric_outside_is_exit_code_1(opsin, trains):
    trains["parameters"] = 101.0
    ended = opsin("reproduce", "tiny", "--rows", "2", "--quiet")
    assert (ended.code, ended.out.count("OUTSIDE")) == (1, 2)
    assert [x["metrics"]["parameters"]["within"] for x in lines()] == [False, False]


def test_a_run_that_fails_is_not_reproduced(opsin, trains):
    trains["error"] = NonFiniteError("train/loss is nan at step 2")
    ended = opsin("reproduce", "tiny", "--quiet")
    assert ended.code == 1
    (line,) = lines()
    assert line["error"] == "NonFiniteError: train/loss is nan at step 2"
    now = {name: x["now"] for name, x in line["metrics"].items()}
    assert now == {"test/accuracy": 0.0, "test/made": None, "parameters": None}


def test_a_full_disk_says_nothing_about_a_row(opsin, trains):
    trains["error"] = SaveError("cannot write to here")
    ended = opsin("reproduce", "tiny", "--quiet")
    assert (ended.code, ended.complaint()) == (1, "opsin: cannot write to here")
    assert not (RESULTS / "reproduced.jsonl").exists()


def test_a_finished_run_of_this_commit_is_only_read(opsin, trains, monkeypatch, code):
    opsin("sweep", "tiny", "--quiet", "--seeds", str(SEEDS))  # those of the user are not
    trains["parameters"] = 101.0
    assert opsin("reproduce", "tiny", "--quiet").code == 1
    before = lines()
    assert Path("runs/reproduced", "a" * 12, "tiny", before[0]["id"], "DONE").exists()
    monkeypatch.setattr(runs, "fit", None)
    assert opsin("reproduce", "tiny", "--quiet").code == 1
    assert lines() == before


def test_the_code_of_another_commit_trains_it_again(opsin, trains, code):
    assert opsin("reproduce", "tiny", "--quiet").code == 0
    code["commit"], trains["parameters"] = "b" * 40, 101.0
    assert opsin("reproduce", "tiny", "--quiet").code == 1
    before, line = lines()
    assert (line["commit"], line["metrics"]["parameters"]["now"]) == ("b" * 40, 101.0)
    assert before["metrics"]["parameters"]["within"]  # it stays beside the other


@pytest.mark.parametrize("changed", [{"dirty": True}, {"commit": None, "dirty": None}])
def test_a_finished_run_of_code_that_has_no_name_is_not_read(opsin, trains, code, changed):
    code |= changed
    trains["step"] = 1
    assert opsin("reproduce", "tiny", "--quiet").code == 130
    del trains["step"]
    assert opsin("reproduce", "tiny", "--quiet").code == 0  # it resumes
    trains["parameters"] = 101.0
    again = opsin("reproduce", "tiny", "--quiet")
    assert again.code == 2
    assert "may be by other code than this" in again.complaint()
    code |= {"commit": "a" * 40, "dirty": False}
    assert opsin("reproduce", "tiny", "--quiet").code == 1


def test_ctrl_c_stops_it_and_writes_nothing_of_that_row(opsin, trains):
    trains["step"] = 1
    ended = opsin("reproduce", "tiny", "--rows", "2", "--quiet")
    assert ended.code == 130
    assert "the same command resumes from there" in ended.out
    assert not (RESULTS / "reproduced.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("mnist_lenet", "results/mnist_lenet.jsonl cannot be read (No such file"),
        ("tiny --rows 5", "--rows 5: tiny has 4 rows that are done"),
        ("tiny --rows 0", "--rows"),
    ],
)
def test_mistakes_are_one_line(opsin, trains, arguments, complaint):
    ended = opsin("reproduce", *arguments.split())
    assert ended.code == 2
    assert complaint in ended.complaint()


def test_a_row_that_the_sweep_has_no_more_is_a_mistake(opsin, trains, rows, monkeypatch):
    arms = tiny.sweep()
    monkeypatch.setattr(tiny, "sweep", lambda: [replace(arm, name=f"{arm.name}!") for arm in arms])
    ended = opsin("reproduce", "tiny")
    assert ended.code == 2
    assert "the sweep of tiny has no arm" in ended.complaint()
    changed = [replace(arm, overrides={"loop.duration": "4 steps"}) for arm in arms]
    monkeypatch.setattr(tiny, "sweep", lambda: changed)
    assert "another by the sweep as it stands" in opsin("reproduce", "tiny").complaint()
    monkeypatch.setattr(tiny, "sweep", lambda: arms)
    write_rows(RESULTS / "tiny.jsonl", [replace(row, evaluation="of others") for row in rows])
    assert "another by the sweep as it stands" in opsin("reproduce", "tiny").complaint()
    assert not Path("runs").exists()


def test_report_checks_the_table_and_takes_its_lines_for_no_experiment(opsin, trains, monkeypatch):
    monkeypatch.setattr(tiny, "TABLE", replace(TABLE, details={}))
    opsin("reproduce", "tiny", "--quiet")
    Path("README.md").write_text("<!-- results -->\n<!-- /results -->\n")
    assert opsin("report").code == 0
    assert opsin("report", "--check").code == 0
    (RESULTS / "reproduced.md").write_text("by hand")
    ended = opsin("report", "--check")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "reproduced.md is not what its data give" in ended.err
    assert opsin("report").code == 0
    assert opsin("report", "--check").code == 0


def test_what_it_writes_makes_no_code_dirty(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        person = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *person, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "commands").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reproduced.jsonl").write_text("")
    (tmp_path / "errors.py").write_text("")  # by which a copy of the house is known
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "commands" / "provenance.py"))
    (tmp_path / "results" / "reproduced.jsonl").write_text("changed")
    (tmp_path / "results" / "reproduced.md").write_text("new")
    assert provenance.environment()["dirty"] is False
    (tmp_path / "results" / "focal.jsonl").write_text("new")  # nor does opsin report
    assert provenance.environment()["dirty"] is False
    (tmp_path / "results" / "extractors").mkdir()
    (tmp_path / "results" / "extractors" / "lenet.safetensors").write_text("new")
    assert provenance.environment()["dirty"] is True
