"""What is no bug derives from one of two bases, which say how the command line exits."""

import ast
import builtins
from pathlib import Path

import pytest

from opsin.commands import listing
from opsin.commands.main import main
from opsin.errors import RunFailed, UserError

HOUSE = Path(__file__).parents[1]
BASES = {"UserError", "RunFailed"}


def classes() -> dict[str, set[str]]:
    """Name → names of the bases, of all classes of the house."""
    found: dict[str, set[str]] = {}
    for path in [HOUSE / "errors.py", *HOUSE.glob("*/**/*.py")]:
        if {"tests", "build", ".venv"} & set(path.relative_to(HOUSE).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                found.setdefault(node.name, set()).update(bases)
    return found


def ancestors(name: str, known: dict[str, set[str]]) -> set[str]:
    above, new = set(), known[name]
    while new:  # a class may have the name of its base: `class Conv(nn.Conv)`
        above |= new
        new = set().union(*(known.get(base, set()) for base in new)) - above
    return above


def is_exception(name: str) -> bool:
    found = getattr(builtins, name, None)
    return isinstance(found, type) and issubclass(found, BaseException)


def test_every_public_exception_derives_from_a_base_that_knows_its_exit_code():
    known = classes()
    exceptions = {name for name in known if any(map(is_exception, ancestors(name, known)))}
    public = {name for name in exceptions - BASES if not name.startswith("_")}
    assert {"DataError", "ConfigError", "ReportError", "NonFiniteError", "PeerError"} <= public
    assert {name for name in public if not ancestors(name, known) & BASES} == set()
    assert {name for name in public if "RunFailed" in ancestors(name, known)} == {
        *("NonFiniteError", "SaveError", "PeerError"),
    }


@pytest.mark.parametrize(("base", "code"), [(UserError, 2), (RunFailed, 1)])
def test_the_command_line_exits_by_it_with_one_line(monkeypatch, capsys, base, code):
    def command():
        raise type("Mine", (base,), {})("a cause:\n  a way out")

    monkeypatch.setattr(listing, "listing", command)
    with pytest.raises(SystemExit) as exit:
        main(["list"])
    assert exit.value.code == code
    assert capsys.readouterr().err == "opsin: a cause: a way out\n"


def test_a_bug_keeps_its_trace(monkeypatch):
    def command():
        raise ValueError("not meant for a user")

    monkeypatch.setattr(listing, "listing", command)
    with pytest.raises(ValueError, match="not meant"):
        main(["list"])
