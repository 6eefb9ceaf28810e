"""Places as they are typed: ``~`` is the user's home, and what is told to be typed can be."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import opsin as opsin_of_python
from opsin.commands import python
from opsin.commands.runs import Outcome
from opsin.config.names import house_files
from opsin.config.tree import parse
from opsin.data.files import at_home, in_shell
from opsin.train.weights import Weights, WeightsError
from tests.commands import tiny


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another directory than the one that the command runs in."""
    home = tmp_path / "home of mine"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def test_a_home_that_nobody_has_is_a_folder_of_that_name():
    assert at_home("~nobody_of_that_name/a") == Path("~nobody_of_that_name/a")


def test_home_is_where_runs_pictures_and_predictions_are(
    opsin: Callable, trained: Path, home: Path
):
    """No shell replaces ``~`` behind ``=``, and none in quotes."""
    shutil.copytree(trained, home / "run")
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(home / "night.png")
    told = opsin("predict", "~/run", "~/night.png", "--output=~/out")
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines()[-1] == str(home / "out")
    assert (home / "out" / "labels.csv").is_file()
    done = opsin("run", "tiny", "--quiet", "--workdir=~/runs", "loop.duration=1 steps")
    assert done.code == 0
    assert (home / "runs" / "tiny").is_dir()
    assert not Path("~").exists()


def test_home_is_where_weights_sources_and_code_are(
    opsin: Callable, home: Path, monkeypatch: pytest.MonkeyPatch
):
    (home / "losses_at_home.py").write_text("def f(): ...\n")
    _, function = parse("task.loss_function=~/losses_at_home.py:f")
    assert function.__module__ == "own_files_losses_at_home"
    with pytest.raises(WeightsError, match=f"there is no {home}/w.safetensors: .*'{home}/w"):
        Weights("~/w.safetensors").file()
    (home / "w.safetensors").touch()
    assert Weights("~/w.safetensors").file() == home / "w.safetensors"
    for kind in ("folder", "masks"):
        told = opsin("run", "tiny", f"data.source={kind}:~/none").complaint()
        assert f"{home}/none" in told
    assert f"{home}/none is no dir" in opsin("predict", "~/none", "x.png").complaint()
    (home / "mine.py").write_text("config = 1\n")
    assert "~/mine.py: config is a function" in opsin("run", "~/mine.py").complaint()


def test_home_is_where_allowed_code_is(opsin: Callable, trained: Path, home: Path):
    told = opsin("predict", str(trained), "x.png", "--allow=~/gone.py").complaint()
    assert f"{home}/gone.py is not there any more" in told


def test_home_is_known_from_python(a_run: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    (run,) = (a_run / "runs" / "tiny").iterdir()
    shutil.copytree(run, home / "run")
    assert opsin_of_python.load("~/run").step == 3
    asked = []

    def execute(*words: Any) -> Outcome:
        asked.append(words[3])
        return Outcome(run, finished=True)

    monkeypatch.setattr(python, "execute", execute)
    opsin_of_python.fit(tiny.config(), workdir="~/runs", progress=False)
    assert asked[0].workdir == home / "runs"


def test_nothing_is_no_place(opsin: Callable, trained: Path):
    for words in (
        ("predict", "", "x.png"),
        ("predict", str(trained), ""),
        ("evaluate", ""),
        ("inpaint", str(trained), "x.png", ""),
        ("import", "", "x.safetensors", "--model", "resnet50"),
        ("run", "tiny", "--workdir", ""),
    ):
        told = opsin(*words)
        assert told.code == 2
        assert "nothing is named: this folder is written as ." in told.complaint()


def test_what_looks_as_an_option_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("-rf").mkdir()
    subprocess.run(["sh", "-c", f"rm -r {in_shell(Path('-rf'))}"], check=True)
    assert list(tmp_path.iterdir()) == []


def test_every_line_that_removes_can_be_pasted():
    """What is told to be typed goes through one function, wherever it is told."""
    told = re.compile(r"(?:rm -r|chmod -?\w* ?[\w+]+) \{(in_shell\()?")
    found = {file: told.findall(file.read_text(encoding="utf-8")) for file in house_files()}
    assert sum(map(len, found.values())) >= 6
    assert [file for file, each in found.items() if "" in each] == []


@pytest.mark.parametrize("name", ["two words", "$(touch executed)", "a;b", "it's", "*"])
def test_what_a_line_says_to_type_does_what_it_says(tmp_path: Path, name: str):
    folder = tmp_path / name
    folder.mkdir()
    line = Outcome(folder, finished=True, trained_before=True).read_again()
    command = line.partition("to train it again: ")[2]
    assert shlex.split(command) == ["rm", "-r", str(folder)]
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


def test_plain_paths_are_not_quoted():
    assert in_shell(Path("runs/tiny/8db57a523fcf")) == "runs/tiny/8db57a523fcf"
