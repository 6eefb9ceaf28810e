"""A user's own functions, named by the file that they are in: there is no path to set."""

from __future__ import annotations

import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from opsin.errors import ConfigError

PREFIX = "own_files_"
"""What the module of such a file is called, before the name of the file."""


class SameNameError(ConfigError):
    """Two files of one name, which one process cannot tell apart."""


def load(path: Path, name: str) -> Any:
    """The object ``name`` of a Python file, as in ``./my_losses.py:poly1_loss``.

    The file becomes the module ``own_files_<stem>``, wherever it lies and from wherever it is read,
    and is read once a process: a file that was there when a run was trained may have moved since.
    It may import what is installed, not the files beside it.

    Raises:
        SameNameError: another file of the same name was read before.
        ConfigError: there is no such file or name, or the file cannot be imported.
    """
    module = read(path)
    if not hasattr(module, name):
        near = get_close_matches(name, vars(module), n=1, cutoff=0.0)[0]
        raise ConfigError(f"{path} has no {name!r}: did you mean {near!r}?")
    return getattr(module, name)


def read(path: Path) -> ModuleType:
    """The module that a file becomes; see ``load``."""
    of_then = path.suffix == ".py" and path.is_absolute() and not path.is_file()
    if of_then and not is_read(path):
        raise ConfigError(f"{path} is not there any more: put it back")
    if path.suffix != ".py" or not (path.is_file() or of_then):
        what = "is not the name of a Python file" if path.suffix != ".py" else "is not there"
        raise ConfigError(f"{path} {what}: write ./FILE.py:NAME, seen from {Path.cwd()}")
    return _module(path)


def _module(named: Path) -> ModuleType:
    path = named.resolve()  # a link to a file is that file
    known_as, file = PREFIX + path.stem, str(path)
    if known_as in sys.modules:
        module = sys.modules[known_as]
        if path.is_file() and not _alike(Path(str(module.__file__)), path):
            raise SameNameError(
                f"{module.__file__} and {file} have the same name and differ: rename one"
            )
        return module
    spec = importlib.util.spec_from_file_location(known_as, file)
    assert spec is not None  # of a file that ends in .py there is always one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[known_as] = module  # dataclasses look their module up while they are made
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[known_as]
        if not isinstance(error, Exception | SystemExit):
            raise
        beside = (
            isinstance(error, ModuleNotFoundError) and path.with_name(f"{error.name}.py").exists()
        )
        way_out = f": put {path.parent} on PYTHONPATH" if beside else ""
        raise unimportable(named, error, way_out) from error
    return module


def unimportable(what: str | Path, error: BaseException, way_out: str = "") -> ConfigError:
    """What to raise of code that cannot be imported."""
    said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return ConfigError(f"cannot import {what}: {said}{way_out}")


def _alike(one: Path, other: Path) -> bool:
    return one == other.resolve() or (one.is_file() and one.read_bytes() == other.read_bytes())


def is_read(path: Path) -> bool:
    """Whether a file of that name was read."""
    return path.suffix == ".py" and PREFIX + path.resolve().stem in sys.modules


def is_own(module: str) -> bool:
    """Whether a module is a file that ``load`` has read."""
    return module.startswith(PREFIX)
