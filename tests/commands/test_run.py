"""``opsin run``: what is written, what is said, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from opsin.commands import runs
from opsin.commands.main import main
from opsin.commands.runs import directory_of
from opsin.config.identity import identity
from opsin.config.tree import override
from opsin.data.examples import DataError
from opsin.train.conclusion import Result as Ended
from tests.commands import tiny


def test_it_trains_and_names_its_directory_last(opsin, trained, monkeypatch):
    """A finished run is read: what the first command said, and one line more."""
    monkeypatch.setattr(runs, "fit", None)  # calling it would raise
    done = opsin("run", "tiny", "--quiet")
    assert (done.code, done.err) == (0, "")
    first, *_, last = done.out.splitlines()
    assert Path(last) == trained == directory_of("tiny", tiny.config(), Path("runs"))
    assert first == f"already trained, so only read; to train it again: rm -r {trained}"
    summary = json.loads((trained / "summary.json").read_text())
    assert f"test/accuracy            {summary['test/accuracy']:.4f}" in done.out
    assert summary["steps"] == 3
    assert json.loads((trained / "arm.json").read_text()) == {
        "experiment": "tiny", "arm": "slow", "seed": 0,
    }  # fmt: skip
    splits = json.loads((trained / "evaluations" / "splits.json").read_text())
    assert splits["seconds"] is None  # what all of a training took is no time of an evaluation


@pytest.mark.parametrize("content", ["[{", "[3]", '{"commit": null}', ""])
def test_starts_that_cannot_be_read_are_one_line(opsin, trained, content):
    (trained / "env.json").write_text(content)
    told = opsin("run", "tiny")
    assert told.code == 2
    assert f"{trained}/env.json " in told.complaint()
    assert ": put it back, or mv it away to go on" in told.complaint()
    (trained / "DONE").unlink()
    assert "env.json " in opsin("run", "tiny", "--quiet").complaint()
    (trained / "DONE").touch()
    (trained / "env.json").unlink()
    assert opsin("run", "tiny").code == 0


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(opsin, trained):
    (trained / "previews").mkdir(exist_ok=True)
    cut = [trained / ".curve.png.123.part", trained / "previews" / ".a_test.png.7.part"]
    kept = [trained / "notes.part", trained / ".mine.part"]
    for path in (*cut, *kept):
        path.write_text("half")
    assert opsin("run", "tiny", "--quiet").code == 0
    assert [path.exists() for path in (*cut, *kept)] == [False, False, True, True]


def test_a_new_run_says_what_it_found(opsin, untrained):
    done = opsin("run", "tiny", "--quiet")
    directory = directory_of("tiny", tiny.config(), Path("runs"))
    assert done == (0, f"test/accuracy            0.5000\n{directory}\n", "")
    assert [identity(experiment) for experiment in untrained] == [directory.name]


def test_profile_names_the_trace_and_needs_steps_to_take(opsin):
    result = opsin("run", "tiny", "--quiet", "--profile", "2:3")
    assert result.code == 0
    assert re.fullmatch(
        r"trace of steps 2 to 3: (runs/tiny/.*\.trace\.json\.gz): open it in \S+\n", result.err
    )
    assert Path(re.findall(r": (runs/\S+):", result.err)[0]).exists()
    complaint = (again := opsin("run", "tiny", "--profile", "2:3")).complaint()
    assert again.code == 2
    assert "is trained, no step is left to profile" in complaint
    assert "--workdir" in complaint
    assert opsin("run", "tiny").code == 0  # what is finished stays so


def test_a_refused_run_leaves_nothing(opsin):
    told = opsin("run", "tiny", "--quiet", "optimizer.warmup=4 steps", "--workdir", "new")
    assert told.code == 2
    assert "optimizer.warmup" in told.complaint()
    assert [*Path("new").glob("*/*")] == []


def test_overrides_may_stand_anywhere(opsin, untrained):
    done = opsin("run", "tiny", "--quiet", "seed=3", "--workdir", "there", "data.batch=16")
    assert done.code == 0
    expected = override(tiny.config(), {"seed": 3, "data.batch": 16})
    assert [identity(experiment) for experiment in untrained] == [identity(expected)]
    directory = directory_of("tiny", expected, Path("there"))
    assert Path(done.out.splitlines()[-1]) == directory
    resolved = json.loads((directory / "config.json").read_text())
    assert (resolved["seed"], resolved["data"]["batch"]) == (3, 16)


def test_an_experiment_without_smoke_overrides_says_so(opsin, monkeypatch):
    monkeypatch.delattr(tiny, "SMOKE")
    done = opsin("run", "tiny", "--smoke")
    assert done.code == 2
    assert "tiny has no SMOKE" in done.complaint()


def test_smoke_changes_what_it_says_and_overrides_win(opsin, untrained):
    done = opsin("run", "tiny", "--smoke", "--quiet", "data.batch=16")
    directory = Path(done.out.splitlines()[-1])
    resolved = json.loads((directory / "config.json").read_text())
    assert (resolved["loop"]["duration"], resolved["data"]["batch"]) == ("2 steps", 16)
    assert json.loads((directory / "arm.json").read_text())["arm"] == "data.batch=16"


@pytest.mark.parametrize(
    "arguments",
    ["run tiny --quiet --workdir taken/here", "inspect tiny --output taken/here.png"],
)
def test_a_place_that_cannot_be_written(opsin, arguments):
    Path("taken").write_text("a file")
    result = opsin(*arguments.split())
    assert result.code == 2
    assert re.search("cannot write to taken.*: choose another place", result.complaint())
    assert Path("taken").read_text() == "a file"


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_takes_one_run_at_a_time(opsin, untrained):
    directory = directory_of("tiny", tiny.config(), Path("runs"))
    directory.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(directory / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        result = opsin("run", "tiny", "--quiet")
        assert result.code == 2
        assert f"another run is live in {directory}" in result.complaint()
        assert [file.name for file in directory.iterdir()] == [".lock"]
        other.communicate()
    assert opsin("run", "tiny", "--quiet").code == 0


def test_numbers_that_are_not_finite_stop_the_run(opsin):
    arguments = ("run", "tiny", "--quiet", "optimizer.learning_rate=1e30")
    result = opsin(*arguments)
    assert result.code == 1
    directory = directory_of(
        "tiny", override(tiny.config(), {"optimizer.learning_rate": 1e30}), Path("runs")
    )
    said = re.fullmatch(
        r"opsin: (train/\w+ is (?:inf|nan) at step 2: lower optimizer.learning_rate.*); "
        r"step 1 is saved in (\S+)",
        result.complaint(),
    )
    assert said
    assert Path(said[2]) == (directory / "checkpoints").absolute()
    assert [p.name for p in (directory / "checkpoints").iterdir()] == ["1"]
    assert (directory / "FAILED").read_text().startswith(f"NonFiniteError: {said[1]}")
    assert not (directory / "DONE").exists()
    assert opsin(*arguments) == result  # from step 1 on it goes wrong in the same way


def test_a_run_that_failed_may_be_repeated(opsin, untrained, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("no more memory")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", full)
        # Not a user's mistake: it keeps its trace, and must not keep the directory locked with it.
        with pytest.raises(RuntimeError) as kept:
            main(["run", "tiny", "--quiet"])
    directory = directory_of("tiny", tiny.config(), Path("runs"))
    assert (directory / "FAILED").read_text() == "RuntimeError: no more memory\n"
    assert opsin("run", "tiny", "--quiet").code == 0
    assert (directory / "DONE").exists()
    assert not (directory / "FAILED").exists()
    assert str(kept.value) == "no more memory"


@pytest.mark.parametrize("left", [None, "metrics.jsonl", "checkpoints/2/state", "notes.txt"])
@pytest.mark.parametrize("there", [True, False])
def test_a_mistake_of_the_user_is_no_failed_run(opsin, monkeypatch, there, left):
    """What a start left behind that trained, was there before or is no file of ours, stays."""

    def refuse(experiment, directory, **options):
        (directory / "metrics.jsonl").touch()
        if left:
            (directory / left).parent.mkdir(parents=True, exist_ok=True)
            (directory / left).write_text("{}\n")
        raise DataError("no such set: name another")

    monkeypatch.setattr(runs, "fit", refuse)
    directory = directory_of("tiny", tiny.config(), Path("runs"))
    if there:
        directory.mkdir(parents=True)
        (directory / "arm.json").write_text("{}")
    told = opsin("run", "tiny", "--quiet")
    assert (told.code, told.complaint()) == (2, "opsin: no such set: name another")
    kept = there or left in ("metrics.jsonl", "checkpoints/2/state")
    assert (directory / "config.json").exists() == kept
    assert left is None or (directory / left).read_text() == "{}\n"
    assert directory.exists() == bool(there or left)
    assert not (directory / "FAILED").exists()


@pytest.mark.parametrize("command", ["run tiny", "sweep tiny --seeds 1"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_run_that_was_stopped_is_not_done_and_ends_the_sweep(
    opsin, monkeypatch, command, number, code
):
    def stopped(experiment, directory, *, stop, **options):
        os.kill(os.getpid(), number)
        assert stop()
        return Ended(False, 2, {})

    monkeypatch.setattr(runs, "fit", stopped)
    result = opsin(*command.split())
    assert (result.code, result.err) == (code, "")
    assert "stopped at step 2, saved; the same command resumes from there\n" in result.out
    (directory,) = Path("runs/tiny").iterdir()
    assert not (directory / "DONE").exists()
    assert not (directory / "summary.json").exists()


def test_a_platform_that_is_not_there(opsin, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu': no libtpu\nmore")

    monkeypatch.setattr(jax, "devices", devices)
    result = opsin("run", "tiny", "--platform", "tpu")
    assert result.code == 2
    assert "no tpu device here (Unable to initialize backend 'tpu'" in result.complaint()
