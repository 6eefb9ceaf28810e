"""Commands in this process, in an empty directory, where ``tiny`` is an experiment."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from matplotlib.figure import Figure

from opsin.commands import provenance, runs, runtime
from opsin.commands.main import main
from opsin.config import catalogue
from opsin.pictures import figures
from opsin.train.conclusion import Result as Ended
from opsin.train.experiment import Experiment
from tests.commands import tiny

HOUSE = Path(__file__).parents[2]
CODE = {"commit": "c" * 40, "dirty": False}
"""That runs: else each start says of a tree with changes that they may be others than before."""
HEARD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
"""
TINY = (
    HEARD
    + """
import importlib
from opsin.commands.main import main
from opsin.config import catalogue

def find(name):  # called when jax may be imported
    exec({trouble!r}, {{}})
    from opsin.commands import provenance
    provenance.code_of = lambda house: {code!r}
    return importlib.import_module("tests.commands.tiny")

catalogue.find = find
main()
"""
)
"""A command in a process of its own, where ``tiny`` is an experiment; ``trouble`` disturbs it."""


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line on standard error."""
        assert self.err.startswith("opsin: ")
        assert self.err.count("\n") == 1
        return self.err.strip()


def in_process(*arguments: str, cwd: Path) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "opsin", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    find = catalogue.find
    monkeypatch.setattr(runtime, "set_up", lambda asked: None)  # jax is imported by now
    monkeypatch.setattr(provenance, "code_of", lambda house: CODE)
    monkeypatch.setattr(catalogue, "find", lambda name: tiny if name == "tiny" else find(name))


@pytest.fixture(autouse=True, scope="module")
def empty_charts() -> Iterator[None]:
    """Runs draw no curve and no confusion: those are half of their time, and tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for chart in ("training_curve", "confusion_matrix"):
            patch.setattr(figures, chart, lambda *arguments: Figure(figsize=(1, 1)))
        yield


@pytest.fixture
def opsin(monkeypatch, capsys, tmp_path) -> Callable[..., Result]:
    """Runs a command in an empty directory."""
    prepare(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        captured = capsys.readouterr()
        return Result(exited.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def untrained(monkeypatch) -> list[Experiment]:
    """What ``fit`` was called for, which trains nothing and says that it has."""
    asked: list[Experiment] = []

    def fit(experiment: Experiment, directory: Path, **options: Any) -> Ended:
        asked.append(experiment)
        return Ended(True, 3, {"test/accuracy": 0.5, "steps": 3})

    monkeypatch.setattr(runs, "fit", fit)
    return asked


@pytest.fixture(scope="session")
def a_run(tmp_path_factory) -> Path:
    """A parent of runs/, in which ``tiny`` is trained."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare(monkeypatch)
        monkeypatch.chdir(place)
        with pytest.raises(SystemExit) as exited:
            main(["run", "tiny", "--quiet"])
    assert exited.value.code == 0
    return place


@pytest.fixture
def trained(a_run, tmp_path) -> Path:
    """The directory of ``tiny``, trained, seen from the empty directory of ``opsin``."""
    shutil.copytree(a_run / "runs", tmp_path / "runs")
    (directory,) = (tmp_path / "runs" / "tiny").iterdir()
    return directory.relative_to(tmp_path)
