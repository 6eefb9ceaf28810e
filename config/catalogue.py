"""The experiments in this house: found by file, read without importing jax."""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from pathlib import Path
from types import ModuleType

from opsin.config.table import Arm, Report
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
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ConfigError(
            f"there is no experiment {name!r}: did you mean {near[0]!r}? `opsin list` shows all"
        )
    return importlib.import_module(f"opsin.experiments.{known[name].parent.name}.{name}")


def arms(module: ModuleType) -> list[Arm]:
    """The arms of an experiment's sweep; without ``sweep`` a single one that changes nothing."""
    return list(module.sweep()) if hasattr(module, "sweep") else [Arm("default")]


def report_of(name: str) -> Report:
    """The report of an experiment, from which its result files are derived.

    Raises:
        ConfigError: if there is no such experiment, or it has no ``TABLE``.
    """
    module = find(name)
    if not hasattr(module, "TABLE"):
        raise ConfigError(f"{name} has no TABLE to report: opsin run {name} prints its numbers")
    names = [arm.name for arm in arms(module)]
    return Report(name=name, claim=claim(experiments()[name]), arms=names, table=module.TABLE)
