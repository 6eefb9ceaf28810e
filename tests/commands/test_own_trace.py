"""A user's own function that raises: its error and line, and nothing of ours."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

OWN = """
import numpy as np
from opsin.data.examples import DataError
from opsin.data.sources import digits

def inner(values):
    return values["absent"]  # KeyError

def loss(logits, labels):
    return logits.no_such_thing

def uneven(logits, labels):
    return logits.reshape(7, -1)

def refusing(logits, labels):
    raise ValueError("my own words")

def ends(logits, labels):
    raise SystemExit(0)

def source(split):
    return inner({})

def select(labels, *, seed):
    return 1 / 0

def augment(key, batch):
    return inner(batch)

def polite(split):
    raise DataError("no data today: come again tomorrow")
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mine_that_raise.py"
    path.write_text(OWN)
    yield path
    sys.modules.pop("own_files_mine_that_raise", None)


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(OWN.splitlines(), start=1) if text in line)


@pytest.mark.parametrize(
    ("path", "name", "lines", "error"),
    [
        ("task.loss_function", "loss", ["no_such_thing"], "AttributeError: "),
        ("task.loss_function", "uneven", ["reshape(7"], "TypeError: cannot reshape"),
        ("task.loss_function", "refusing", ["my own words"], "ValueError: my own words"),
        ("task.loss_function", "ends", ["raise SystemExit(0)"], "SystemExit: 0"),
        ("data.source", "source", ["inner({})", 'values["absent"]'], "KeyError: 'absent'"),
        ("data.select", "select", ["1 / 0"], "ZeroDivisionError: division by zero"),
        ("data.augment.0", "augment", ["inner(batch)", 'values["absent"]'], "KeyError: 'absent'"),
    ],
)
def test_its_own_error_and_lines_are_shown_alone(
    opsin: Callable, own: Path, path: str, name: str, lines: list[str], error: str
):
    experiment = "digits_lenet" if path == "data.augment.0" else "tiny"
    result = opsin("run", experiment, "--quiet", f"{path}=./{own.name}:{name}")
    assert result.code == 1
    shown = re.findall(r'^  File "(.*)", line (\d+), in', result.err, re.MULTILINE)
    assert shown == [(str(own), str(line_of(text))) for text in lines]
    last = result.err.splitlines()[-1]
    assert last.startswith(error)


def test_trace_shows_all_frames(opsin: Callable, own: Path):
    result = opsin("run", "tiny", "--quiet", f"data.source=./{own.name}:source", "--trace")
    assert result.code == 1
    assert "sources.py" in result.err
    assert result.err.splitlines()[-1] == "KeyError: 'absent'"


def test_what_it_says_for_the_user_is_one_line(opsin: Callable, own: Path):
    result = opsin("run", "tiny", "--quiet", f"data.source=./{own.name}:polite")
    assert result.code == 2
    assert result.complaint() == "opsin: no data today: come again tomorrow"


def test_a_bug_of_ours_keeps_its_trace(opsin: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("opsin.data.sources.digits", lambda split: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opsin("run", "tiny", "--quiet", "data.source=digits")


def test_a_sweep_shows_it_for_each_run_and_goes_on(opsin: Callable, own: Path):
    # With the number of classes, which else would be asked of the data once for all runs.
    words = (f"data.source=./{own.name}:source", "task.model.num_classes=4")
    result = opsin("sweep", "tiny", "--quiet", "--seeds", "1", *words)
    assert result.code == 1
    assert result.err.count("KeyError: 'absent'\n") == 3
    assert "sources.py" not in result.err


def test_what_ends_the_process_ends_a_run_and_no_sweep(opsin: Callable, own: Path):
    words = ("--seeds", "1", "--quiet", f"task.loss_function=./{own.name}:ends")
    result = opsin("sweep", "tiny", *words)
    assert result.code == 1
    assert result.err.count("SystemExit: 0\n") == 3
    failed = [path.read_text() for path in Path("runs/tiny").glob("*/FAILED")]
    assert failed == ["SystemExit: 0\n"] * 3
    Path("ends.py").write_text("def config():\n    raise SystemExit(0)\n")
    told = opsin("run", "./ends.py")
    assert told.code == 1
    assert told.err.splitlines()[-1] == "SystemExit: 0"
