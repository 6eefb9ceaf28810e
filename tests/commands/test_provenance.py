"""Which of a user's own code an experiment is made of, and when that has changed."""

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from opsin.commands.provenance import own_code
from opsin.config import names
from opsin.losses.classification import focal_loss
from opsin.models.classification.resnet import ResNet18

NETS = """
import dataclasses
import jax
from lab_of_provenance import scales
from lab_of_provenance.sizes import WIDTH
from . import deep

DEPTH = 3

def helper(x):
    return DEPTH * x

def my_loss(x, *, inner=abs):
    return helper(x)

@jax.jit
def compiled_loss(x):
    return x

class MyBlock:
    width = WIDTH

@dataclasses.dataclass(frozen=True)
class Held:
    kind: object = None
"""
BESIDE = {"scales": "SCALE = 2\n", "sizes": "WIDTH = 8\n", "deep": "LAYERS = 1\n"}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the user's."""
    folder = tmp_path / "lab_of_provenance"
    folder.mkdir()
    for name, text in (BESIDE | {"nets": NETS, "__init__": "", "other": "X = 1\n"}).items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


MADE: list[Callable[[Any], Any]] = [
    lambda nets: nets.MyBlock,
    lambda nets: nets.my_loss,
    lambda nets: nets.compiled_loss,
    lambda nets: nets.Held(),
    lambda nets: partial(nets.my_loss, inner=None),
    lambda nets: partial(focal_loss, nets.MyBlock),
    lambda nets: {"block": [nets.MyBlock]},
    lambda nets: partial(ResNet18, block=nets.MyBlock),
]


@pytest.mark.parametrize("make", MADE)
def test_all_code_is_found_and_so_is_a_change_of_what_it_uses(lab: Path, make: Callable):
    nets = importlib.import_module("lab_of_provenance.nets")
    tree = make(nets)
    before = own_code(tree)
    assert len(before) == 1
    assert before.keys() <= {"MyBlock", "my_loss", "compiled_loss", "Held"}
    changes = {"nets": NETS.replace("DEPTH = 3", "DEPTH = 4"), "scales": "SCALE = 3\n"}
    changes |= {"sizes": "WIDTH = 9\n", "deep": "LAYERS = 2\n"}
    for name, text in changes.items():
        file = lab / f"{name}.py"
        was = file.read_text()
        file.write_text(text)
        assert own_code(tree) != before, name
        file.write_text(f"# A comment.\n\n{was}")
        assert own_code(tree) == before
    (lab / "other.py").write_text("X = 2\n")  # nothing imports it
    assert own_code(tree) == before
    (lab / "nets.py").write_text("def half_of_an(")
    assert own_code(tree) != before


def test_everything_below_is_found(lab: Path):
    nets = importlib.import_module("lab_of_provenance.nets")
    held = nets.Held(kind=partial(ResNet18, block=nets.MyBlock))
    assert own_code(held).keys() == {"Held", "MyBlock"}


def test_code_of_the_house_and_of_libraries_is_none_of_the_users():
    held = {
        "a": focal_loss,
        "b": ResNet18,
        "c": sys.exit,
        "d": pytest.fixture,
        "e": 1,
        "f": names,
        "g": str.upper,
    }
    assert own_code(held) == {}
    assert own_code(partial(focal_loss, gamma=3.0)) == {}
