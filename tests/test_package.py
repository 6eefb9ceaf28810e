"""One name to import: what a user has beside a script neither hides the house nor is hidden."""

import ast
import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from opsin.commands.provenance import code_of
from opsin.experiments import extractors
from opsin.train.extractor import Extractor
from opsin.train.weights import Weights

HOUSE = Path(__file__).parents[1]
ROOMS = sorted(path.parent.name for path in HOUSE.glob("*/__init__.py"))
SCRIPT = """
import json
import losses.classification, models.mine, data, config, errors
from opsin.commands.main import main
from opsin.config.names import full_name, named
from opsin.errors import ConfigError
from opsin.losses.classification import focal_loss
from opsin.models.classification.lenet import LeNet5

own = [module.__file__ for module in (losses.classification, models.mine, data, config, errors)]
assert named("losses.classification:focal_loss") is focal_loss
assert named(full_name(models.mine.focal_loss)) is models.mine.focal_loss
try:
    complaint = full_name(losses.classification.focal_loss)  # not silently ours
except ConfigError as error:
    complaint = str(error)
print(json.dumps([own, LeNet5.__module__, complaint]))
main(["list"])
"""


def test_the_rooms_of_a_user_and_ours_live_side_by_side(tmp_path: Path):
    own = ("losses/classification", "models/mine", "data/__init__", "config/__init__", "errors")
    files = [tmp_path / f"{name}.py" for name in own]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("def focal_loss(logits, labels):\n    return 0.0\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told, *listed = done.stdout.splitlines()
    assert json.loads(told) == [
        [str(file) for file in files],
        "opsin.models.classification.lenet",
        "losses.classification:focal_loss is yours, and opsin has a module of that name: rename "
        "yours",
    ]
    assert any(line.startswith("digits_lenet ") for line in listed)


def test_what_is_read_at_run_time_is_packaged():
    setuptools = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["setuptools"]
    packaged = setuptools["package-data"]["opsin"]
    kinds = Weights | Extractor
    wanted = [value.path for value in vars(extractors).values() if isinstance(value, kinds)]
    assert len(wanted) >= 3
    for path in wanted:
        assert (HOUSE / path).is_file()
        assert any(fnmatch.fnmatch(path, pattern) for pattern in packaged), path
    here = [path for room in ROOMS for path in (HOUSE / room).rglob("*") if path.is_file()]
    other = [path for path in here if path.suffix not in (".py", ".pyc")]
    assert other == [HOUSE / "data" / "imagenet_classes.txt"]
    assert setuptools["package-data"]["opsin.data"] == ["imagenet_classes.txt"]


def test_every_room_is_checked_for_types():
    checked = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["basedpyright"]
    assert set(checked["include"]) == {*ROOMS, "errors.py", "ranges.py"}


A_BARE_ROOM = re.compile(
    rf"""(?:^|;)\ *(?:import\ (?:[\w.]+,\ *)*|from\ )(?:{"|".join(ROOMS)})\b""", re.M | re.X
)


@pytest.mark.parametrize(
    ("code", "bare"),
    [
        ("import sys, data.sources; print()", True),
        ("x = 1\n    from ops.convolution import y", True),
        ("print(); import models", True),
        ("import opsin.models", False),
        ("from opsin.train.loop import fit", False),
        ("import database", False),
        ("what is read from data", False),
    ],
)
def test_an_import_of_a_bare_room_is_seen(code: str, bare: bool):
    assert bool(A_BARE_ROOM.search(code)) == bare


def test_code_in_strings_imports_opsin():
    """Scripts that tests start, and modules that ``python -m`` starts."""
    wrong = []
    for path in sorted(file for room in (*ROOMS, "tests") for file in (HOUSE / room).rglob("*.py")):
        if path == Path(__file__):
            continue
        nodes = list(ast.walk(ast.parse(path.read_text())))
        texts = [node for node in nodes if isinstance(node, ast.Constant)]
        words = [node.elts for node in nodes if isinstance(node, ast.List | ast.Tuple)]
        started = [
            second
            for group in words
            for first, second in pairwise(group)
            if isinstance(first, ast.Constant)
            and first.value == "-m"
            and isinstance(second, ast.Constant)
            and str(second.value).partition(".")[0] in ROOMS
        ]
        imports = [x for x in texts if isinstance(x.value, str) and A_BARE_ROOM.search(x.value)]
        wrong += [f"{path.relative_to(HOUSE)}, line {node.lineno}" for node in started + imports]
    assert wrong == []


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


def test_the_commit_is_that_of_our_code_and_not_of_a_repository_around_it(tmp_path: Path):
    nowhere = {"commit": None, "dirty": None}
    house = tmp_path / ".venv" / "site-packages" / "opsin"
    house.mkdir(parents=True)
    (house / "errors.py").write_text("")
    assert code_of(house) == nowhere  # no repository
    git(tmp_path, "init")
    (tmp_path / "notes.txt").write_text("of the user")
    git(tmp_path, "add", "notes.txt")
    git(tmp_path, "commit", "-m", "one")
    assert code_of(house) == nowhere
    git(house, "add", "errors.py")
    git(house, "commit", "-m", "two")
    ours = code_of(house)
    assert re.fullmatch("[0-9a-f]{40}", ours["commit"])
    assert not ours["dirty"]
    (house / "errors.py").write_text("changed")
    assert code_of(house) == ours | {"dirty": True}
