"""From run folders to rows: what ended, what failed and what is broken."""

import json
import math

import numpy as np
import pytest

from opsin.commands.runs import write_summary
from opsin.config.table import Key, ReportError
from opsin.data.records import RecordError
from opsin.report import evaluations
from opsin.report.rows import collect, read_rows, write_rows
from opsin.report.run_files import read_summary

ARMS = ("focal-2", "focal-1")  # the order of the sweep, not of the alphabet


def write_run(folder, arm="focal-1", seed=0, end="DONE", summary=None, error=""):
    folder.mkdir(parents=True)
    env = {"commit": "abc1234", "dirty": True, "devices": ["cpu:cpu"], "hardware": "2 cores"}
    env |= {"python": "3.11.9", "versions": {"jax": "0.10.2"}, "command": "opsin sweep focal"}
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    (folder / "env.json").write_text(json.dumps(env))
    if arm is not None:
        (folder / "arm.json").write_text(json.dumps({"arm": arm, "seed": seed}))
    if end == "DONE":
        summary = summary or {"test/accuracy": 0.9, "test/nll": 0.1, "seconds": 3.5}
        (folder / "summary.json").write_text(json.dumps(summary))
        written = {"step": summary.get("steps", 0), "metrics": {}, "commit": "abc1234"}
        evaluated(folder, evaluations.SPLITS, **written)
    if end is not None:
        (folder / end).write_text(error)


def evaluated(folder, name, **options):
    """Writes a file of what was measured."""
    without = {"of": "e", "measurement": None, "own": {}, "seconds": 1.0, "commit": None}
    evaluations.write(folder, name, **without | options)


def is_aa(arm, seed):
    """The key of every run of an arm, where a test has one."""
    return Key("aa" if arm in ("focal-1", "default") else "of another arm")


def test_collect_reads_each_run_that_ended(tmp_path):
    runs = tmp_path / "focal"
    write_run(runs / "aa", arm="focal-2", seed=0)
    write_run(runs / "bb", arm="focal-1", seed=1, end="FAILED", error="TrainError: nan\nmore")
    write_run(runs / "cc", arm="focal-1", seed=0)
    write_run(runs / "dd", arm="focal-1", seed=2, end=None)
    (runs / "notes.txt").write_text("not a run")
    ids = {("focal-2", 0): "aa", ("focal-1", 1): "bb", ("focal-1", 0): "cc"}
    other, first, second = collect(runs, ARMS, lambda arm, seed: Key(ids.get((arm, seed), "")))
    assert [(r.arm, r.seed, r.id) for r in (other, first, second)] == [
        ("focal-2", 0, "aa"),
        ("focal-1", 0, "cc"),
        ("focal-1", 1, "bb"),
    ]
    assert first.metrics == {"test/accuracy": 0.9, "test/nll": 0.1}
    assert (first.seconds, first.status, first.error) == (3.5, "done", None)
    assert (first.commit, first.dirty, first.devices) == ("abc1234", True, ["cpu:cpu"])
    assert first.hardware == "2 cores"
    assert first.versions == {"python": "3.11.9", "jax": "0.10.2"}
    assert (second.status, second.error, second.metrics) == ("failed", "TrainError: nan", {})
    assert second.seconds is None


def test_a_run_without_an_arm_is_the_default_one(tmp_path):
    write_run(tmp_path / "focal" / "aa", arm=None, seed=4)
    (only,) = collect(tmp_path / "focal", ["default"], is_aa)
    assert (only.arm, only.seed) == ("default", 4)


def test_a_run_outside_a_repository_has_an_unknown_commit(tmp_path):
    folder = tmp_path / "focal" / "aa"
    write_run(folder)
    env = json.loads((folder / "env.json").read_text())
    (folder / "env.json").write_text(json.dumps({**env, "commit": None, "dirty": None}))
    (only,) = collect(tmp_path / "focal", ARMS, is_aa)
    assert (only.commit, only.dirty) == ("unknown", False)


def test_a_run_of_several_commits_names_them(tmp_path):
    folder = tmp_path / "focal" / "aa"
    write_run(folder)
    start = json.loads((folder / "env.json").read_text())
    (alone,) = collect(tmp_path / "focal", ARMS, is_aa)  # one start, as it was once kept
    assert (alone.commit, alone.commits) == ("abc1234", None)
    starts = [{**start, "step": 0, "dirty": False}, {**start, "step": 5, "commit": "def"}]
    (folder / "env.json").write_text(json.dumps(starts))
    (both,) = collect(tmp_path / "focal", ARMS, is_aa)
    assert (both.commit, both.commits, both.dirty) == ("def", ["abc1234", "def"], True)
    write_rows(tmp_path / "rows.jsonl", [alone, both])
    assert read_rows(tmp_path / "rows.jsonl") == [alone, both]
    assert ["commits" in line for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [
        False,
        True,
    ]


def test_the_error_of_a_traceback_is_its_last_line(tmp_path):
    trace = 'Traceback (most recent call last):\n  File "loop.py", line 3\nValueError: boom\n'
    write_run(tmp_path / "focal" / "aa", end="FAILED", error=trace)
    assert collect(tmp_path / "focal", ARMS, is_aa)[0].error == "ValueError: boom"


def test_a_run_that_was_repeated_and_ended_well_is_done(tmp_path):
    write_run(tmp_path / "focal" / "aa")
    (tmp_path / "focal" / "aa" / "FAILED").write_text("TrainError: nan")
    assert collect(tmp_path / "focal", ARMS, is_aa)[0].status == "done"


def test_runs_of_other_configs_are_left_out_aloud(tmp_path, caplog):
    """Such as those of a sweep with overrides, or from before the experiment was changed."""
    write_run(tmp_path / "focal" / "aa", arm="focal-1")
    write_run(tmp_path / "focal" / "bb", arm="focal-1")
    assert [r.id for r in collect(tmp_path / "focal", ARMS, is_aa)] == ["aa"]
    assert "bb" in caplog.text


@pytest.mark.parametrize("unfinished", [False, True])
def test_no_runs_names_the_command(tmp_path, unfinished):
    if unfinished:
        write_run(tmp_path / "focal" / "aa", end=None)
    with pytest.raises(ReportError, match=r"run opsin sweep focal$"):
        collect(tmp_path / "focal", ARMS, is_aa)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", '{"test/accuracy": 0.9', "summary.json cannot be read"),
        ("summary.json", '{"test/accuracy": 0.9}', "summary.json has no seconds"),
        ("summary.json", '{"seconds": 1, "test/accuracy": "0.9"}', r"got `str` - at `\$\["),
        ("summary.json", "[]", "summary.json cannot be read .*got `array`"),
        ("env.json", "{}", "missing required field"),
        ("env.json", '[{"commit": "abc"}, {}]', "missing required field"),
        ("env.json", "[]", "env.json names no start"),
        ("config.json", "{}", "missing required field `seed`"),
        ("env.json", None, "env.json cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, message):
    folder = tmp_path / "focal" / "aa"
    write_run(folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(RecordError, match=message) as caught:
        collect(tmp_path / "focal", ARMS, is_aa)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_metric_that_is_no_number_is_null_in_json_and_not_a_number_to_readers(tmp_path):
    """From the summary of a run to the rows of a report, all of it JSON as the standard has it."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    measured = {"seconds": 2.0, "test/nll": math.nan, "test/best": math.inf, "test/accuracy": 0.5}
    folder = tmp_path / "runs" / "aa"
    write_run(folder)
    write_summary(folder / "summary.json", measured)
    written = (folder / "summary.json").read_text()
    assert json.loads(written, parse_constant=refuse)["test/nll"] is None
    assert np.isnan(read_summary(folder)["test/nll"])
    (row,) = collect(tmp_path / "runs", ["focal-1"], is_aa)
    assert np.isnan(row.metrics["test/nll"])
    write_rows(tmp_path / "rows.jsonl", [row])
    json.loads((tmp_path / "rows.jsonl").read_text(), parse_constant=refuse)
    (again,) = read_rows(tmp_path / "rows.jsonl")
    assert again.metrics["test/accuracy"] == 0.5
    assert np.isnan([again.metrics["test/nll"], again.metrics["test/best"]]).all()


def test_arms_that_only_measure_have_a_row_each_of_one_run(tmp_path):
    """With the numbers of its own measurement, those of all splits, and the time of both."""
    folder = tmp_path / "focal" / "aa"
    summary = {"steps": 7, "seconds": 3.5, "test/nll": 0.1, "test/top5": 0.5}
    write_run(folder, seed=2, summary=summary)
    for name, step, metrics in (
        ("m1", 7, {"test/fd": 1.0}),
        ("m2", 7, {"test/fd": 2.0}),
        ("m3", 7, {"test/is": float("nan")}),
        ("m4", 6, {"test/fd": 4.0}),  # of an earlier step
        (evaluations.SPLITS, 7, {"test/nll": 0.2, "test/ece": 0.3}),
    ):
        found = {"step": step, "metrics": metrics}
        evaluated(folder, name, **found, seconds=0.25, commit="abc1234")
    measured = {"one": "m1", "both": "m2+m3", "early": "m4", "missing": "m5", "none": None}
    rows = collect(tmp_path / "focal", list(measured), lambda arm, seed: Key("aa", measured[arm]))
    assert [(row.arm, row.seed, row.id, row.measurement) for row in rows] == [
        ("one", 2, "aa", "m1"), ("both", 2, "aa", "m2+m3"), ("none", 2, "aa", None),
    ]  # fmt: skip
    every = {"steps": 7, "test/nll": 0.2, "test/ece": 0.3, "test/top5": 0.5}
    one, both, none = (dict(row.metrics) for row in rows)
    assert one == every | {"test/fd": 1.0}
    assert math.isnan(both.pop("test/is"))
    assert both == every | {"test/fd": 2.0}
    assert none == every
    assert [row.seconds for row in rows] == [3.75, 4.0, 3.5]
    evaluated(folder, "m1", step=7, metrics={}, seconds=None)  # which no measurement writes
    (row,) = collect(tmp_path / "focal", ["one"], lambda arm, seed: Key("aa", "m1"))
    assert row.seconds == 3.5
    assert [row.commits for row in rows] == [None] * 3


def test_a_row_that_was_measured_by_other_code_names_both_commits(tmp_path):
    folder = tmp_path / "focal" / "aa"
    write_run(folder, summary={"steps": 7, "seconds": 3.5})
    for name, step, commit in (("m1", 7, "def5678"), ("m2", 7, None), ("m3", 6, "of no matter")):
        evaluated(folder, name, step=step, metrics={"test/fd": 1.0}, commit=commit)

    def of(measured):
        (row,) = collect(tmp_path / "focal", ["focal-1"], lambda arm, seed: Key("aa", measured))
        return row.commit, row.commits

    assert of("m1") == ("abc1234", ["abc1234", "def5678"])
    assert of("m2+m1") == ("abc1234", ["abc1234", "unknown", "def5678"])
    assert of(None) == ("abc1234", None)
    evaluated(folder, evaluations.SPLITS, step=7, metrics={}, commit="0ff")
    assert of(None) == ("abc1234", ["abc1234", "0ff"])


@pytest.mark.parametrize("other", ["m1", evaluations.SPLITS])
def test_what_was_measured_in_another_way_makes_no_row(tmp_path, other):
    """By another sampler, say, or of other splits."""
    folder = tmp_path / "focal" / "aa"
    write_run(folder, summary={"steps": 7, "seconds": 3.5})
    for name in ("m1", evaluations.SPLITS):
        of = "another" if name == other else "e"
        evaluated(folder, name, of=of, step=7, metrics={f"test/{name}": 1.0})

    def rows(key):
        return collect(tmp_path / "focal", ["focal-1"], lambda arm, seed: key)

    assert rows(Key("aa", "m1"))[0].metrics.keys() >= {"test/m1", "test/splits"}
    with pytest.raises(ReportError, match="is measured as the sweep asks: run opsin sweep"):
        rows(Key("aa", "m1", "e"))
