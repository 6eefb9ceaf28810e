"""The experiments in this house: found by file, read without importing jax."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from opsin.config import own_files
from opsin.config.table import Arm, Report, Table
from opsin.data.files import at_home, in_shell
from opsin.errors import ConfigError

HOUSE = Path(__file__).parents[1] / "experiments"


def experiments() -> dict[str, Path]:
    """Name → file of every experiment: the modules in the folders beside this file."""
    files = sorted(HOUSE.glob("*/*.py"))
    return {path.stem: path for path in files if path.stem != "__init__"}


def check_name(name: str) -> str:
    """A name of an experiment, which becomes a folder.

    Raises:
        ConfigError: if it is more than one word.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise ConfigError(
            f"{name!r} is no name of an experiment: write letters, digits and underscores"
        )
    return name


def claim(path: Path) -> str:
    """The first line of an experiment's docstring, read without running the file."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def find(name: str) -> ModuleType:
    """The module of an experiment.

    Raises:
        ConfigError: if there is none of that name; names the nearest.
    """
    known = experiments()
    if name not in known:
        if (Path(name) / "config.json").is_file():
            raise ConfigError(
                f"{name} is a run: the command that began it resumes it, and is in its env.json"
            )
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        near = [f"./{name}.py"] if Path(f"{name}.py").is_file() else near
        meant = f": did you mean {near[0]!r}?" if near else ":"
        raise ConfigError(f"there is no experiment {name!r}{meant} `opsin list` shows all")
    return importlib.import_module(f"opsin.experiments.{known[name].parent.name}.{name}")


def opened(typed: str) -> tuple[str, ModuleType]:
    """The name of an experiment and its module, from its name or from the file that it is in.

    Nothing but what a person typed may come here: the file is executed.

    Raises:
        ConfigError: if there is none, or the file holds no experiment.
    """
    if not typed.endswith(".py"):
        return typed, find(typed)
    path = at_home(typed)
    name = check_name(path.stem)
    if name in experiments():
        raise ConfigError(f"opsin has an experiment {name!r}: give {typed} another name")
    if not path.is_file():
        raise ConfigError(
            f"{typed} is not there, seen from {Path.cwd()}: opsin new {name} writes one"
        )
    own_files.load(path, "config")
    module = own_files.read(path)
    _check_kinds(typed, module)
    return name, module


def _check_kinds(typed: str, module: ModuleType) -> None:
    """Raises ConfigError for a file whose names are not what those of an experiment are."""
    for name in ("config", "sweep"):
        if hasattr(module, name) and not _is_without_arguments(getattr(module, name)):
            raise ConfigError(
                f"{typed}: {name} is a function without arguments, as in what opsin new writes"
            )
    if not isinstance(getattr(module, "SMOKE", {}), dict):
        raise ConfigError(f"{typed}: SMOKE is a dict of overrides, such as {{'data.batch': 8}}")
    if not isinstance(getattr(module, "TABLE", None), Table | None):
        raise ConfigError(f"{typed}: TABLE is a Table of opsin.config.table")


def _is_without_arguments(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def arms(module: ModuleType) -> list[Arm]:
    """The arms of an experiment's sweep; without ``sweep`` a single one that changes nothing."""
    found = module.sweep() if hasattr(module, "sweep") else [Arm("default")]
    found = list(found) if isinstance(found, Iterable) else [found]
    if not all(isinstance(arm, Arm) for arm in found):
        raise ConfigError(f"{module.__file__}: sweep() gives a list of Arm")
    return found


def report_of(typed: str) -> Report:
    """The report of an experiment, from which its result files are derived.

    Raises:
        ConfigError: if there is no such experiment, or it has no ``TABLE``.
    """
    name, module = opened(typed)
    if not hasattr(module, "TABLE"):
        again = in_shell(typed)
        raise ConfigError(f"{typed} has no TABLE to report: opsin run {again} prints its numbers")
    names = [arm.name for arm in arms(module)]
    stated = (module.__doc__ or "").strip().partition("\n")[0]
    shown = f"./{name}.py" if name != typed else name  # wherever the file lies here
    return Report(name=name, claim=stated, arms=names, table=module.TABLE, typed=shown)
