"""Places as they are typed: ``~`` is the user's home, and what is told to be typed can be."""

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.commands.runs import Outcome
from opsin.config.tree import parse
from opsin.data.files import at_home, typed
from opsin.train.weights import Weights, WeightsError


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
    told = opsin("predict", "~/none", "x.png", "--allow=~/gone.py").complaint()
    assert f"{home}/none is no directory of a run" in told


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


@pytest.mark.parametrize("name", ["two words", "$(touch executed)", "a;b", "it's", "*", "-rf"])
def test_what_a_line_says_to_type_does_what_it_says(tmp_path: Path, name: str):
    folder = tmp_path / name
    folder.mkdir()
    line = Outcome(folder, finished=True, trained_before=True).read_again()
    command = line.partition("to train it again: ")[2]
    assert shlex.split(command) == ["rm", "-r", str(folder)]
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


def test_plain_paths_are_not_quoted():
    assert typed(Path("runs/tiny/8db57a523fcf")) == "runs/tiny/8db57a523fcf"
