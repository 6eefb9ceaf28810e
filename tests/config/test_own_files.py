"""A user's own file: what it gives, and one line for each way in which it will not do."""

import dataclasses
import sys
from pathlib import Path

import pytest

from opsin.config.own_files import load
from opsin.errors import ConfigError

LOSSES = """
from __future__ import annotations
import dataclasses

def poly1_loss(logits, labels, *, epsilon=1.0):
    return logits - labels + epsilon

@dataclasses.dataclass(frozen=True)
class Margin:
    width: float = 0.5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty directory, in which it is as if no file had been read."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_files_"):
            del sys.modules[name]


def test_what_it_defines_is_there_and_is_the_same_each_time(folder):
    (folder / "my_losses.py").write_text(LOSSES)
    loss = load(Path("my_losses.py"), "poly1_loss")
    assert loss(3.0, 1.0, epsilon=0.5) == 2.5
    assert load(folder / "my_losses.py", "poly1_loss") is loss  # read once, by whatever path
    assert loss.__module__ == "own_files_my_losses"  # not where it lies
    assert dataclasses.asdict(load(Path("my_losses.py"), "Margin")()) == {"width": 0.5}
    assert str(folder) not in sys.path


def test_a_file_may_be_called_as_a_module_of_python(folder):
    import json

    (folder / "json.py").write_text("dumps = 7")
    assert load(Path("json.py"), "dumps") == 7
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("file", "name", "complaint"),
    [
        ("nowhere.py", "loss", r"^nowhere\.py is not there: write \./FILE\.py:NAME, seen from /"),
        ("my_losses.txt", "loss", r"^my_losses\.txt is not the name of a Python file"),
        (".", "loss", "is not the name of a Python file"),
        ("my_losses.py", "poly_loss", "has no 'poly_loss': did you mean 'poly1_loss'"),
        ("broken.py", "loss", r"^cannot import broken\.py: ZeroDivisionError: division by zero$"),
        ("typo.py", "loss", r"^cannot import typo\.py: SyntaxError: "),
        ("ends.py", "loss", r"^cannot import ends\.py: SystemExit: 0$"),
        ("needy.py", "loss", "ModuleNotFoundError: No module named 'of_no_package'$"),
        ("near.py", "loss", r"No module named 'my_losses': put /\S+ on PYTHONPATH$"),
    ],
)
def test_a_mistake_is_one_line(folder, file, name, complaint):
    (folder / "my_losses.py").write_text(LOSSES)
    (folder / "my_losses.txt").write_text(LOSSES)
    (folder / "broken.py").write_text("loss = 1 / 0")
    (folder / "typo.py").write_text("def loss(:\n    pass")
    (folder / "ends.py").write_text("raise SystemExit(0)")
    (folder / "needy.py").write_text("import of_no_package\nloss = 1")
    (folder / "near.py").write_text("import my_losses\nloss = 1")
    with pytest.raises(ConfigError, match=complaint) as told:
        load(Path(file), name)
    assert "\n" not in str(told.value)


def test_a_file_that_failed_may_be_mended(folder):
    (folder / "losses_of_a_test.py").write_text("loss = 1 / 0")
    with pytest.raises(ConfigError, match="division by zero"):
        load(Path("losses_of_a_test.py"), "loss")
    (folder / "losses_of_a_test.py").write_text("loss = 1 / 1  # mended")
    assert load(Path("losses_of_a_test.py"), "loss") == 1


def test_two_files_of_one_name_are_told(folder):
    for place, value in (("one", 1), ("two", 2)):
        (folder / place).mkdir()
        (folder / place / "twin.py").write_text(f"loss = {value}")
    assert load(Path("one/twin.py"), "loss") == 1
    with pytest.raises(ConfigError, match=r"one/twin\.py and .*two/twin\.py have the same name"):
        load(Path("two/twin.py"), "loss")
    (folder / "two" / "twin.py").write_text("loss = 1")  # the same one, copied
    assert load(Path("two/twin.py"), "loss") == 1


def test_a_file_that_has_moved_is_known_by_its_name(folder):
    (folder / "moving.py").write_text("loss = 5")
    assert load(Path("moving.py"), "loss") == 5
    assert load(Path("/where/it/was/moving.py"), "loss") == 5
    with pytest.raises(ConfigError, match="is not there: write"):
        load(Path("typed/moving.py"), "loss")
