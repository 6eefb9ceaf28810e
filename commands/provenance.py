"""Where numbers come from: the code, the versions of libraries and the machine."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import jax

from opsin.config.names import is_users
from opsin.config.tree import children
from opsin.train.weights import Weights, WeightsError, digest_of

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "opsin")


def environment() -> dict[str, Any]:
    """Where and with what this runs: commit, versions, devices, hardware."""
    return {
        **this_code(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "command": shlex.join([_program(), *sys.argv[1:]]),
    }


def own_code(node: Any) -> dict[str, str]:
    """Name → digest of the code of each function and class of the user's own in an experiment.

    What it computes is also that of helpers and constants. So the digest is of the whole file, and
    of the user's files that this one imports at its top level; comments and layout do not count.
    What has no file, such as a class of a notebook, is left out.
    """
    files: dict[str, dict[Path, str]] = {}
    _add_code(node, files)
    return {
        name: hashlib.sha256(repr(sorted(code.values())).encode()).hexdigest()[:16]
        for name, code in files.items()
    }


def evaluating_code(experiment: Any) -> dict[str, str]:
    """``own_code`` of what an experiment evaluates by and does not train by, such as a metric."""
    found: dict[str, str] = {}
    nodes = [experiment.task]
    for node in nodes:
        fields = dataclasses.fields(node) if dataclasses.is_dataclass(node) else ()
        apart = {f.name for f in fields if f.metadata.get("identity", True) == "evaluation"}
        for name, child in children(node).items():
            if name in apart:
                found |= own_code(child) | named_files(child)
            else:
                nodes.append(child)
    return found


def named_files(node: Any) -> dict[str, str]:
    """Path → sha256 of files that a tree names without it; one that is gone is left out.

    What was measured by other bytes under the same path is then not taken for the same.
    """
    found = {}
    for field in dataclasses.fields(node) if dataclasses.is_dataclass(node) else ():
        known_by = field.metadata.get("known_by")
        if known_by and getattr(node, known_by) is None:
            value = getattr(node, field.name)
            for path in (value,) if isinstance(value, str) else value:
                with suppress(WeightsError):
                    found[path] = digest_of(Weights(path).file())
    for child in children(node).values():
        found |= named_files(child)
    return found


def _add_code(node: Any, files: dict[str, dict[Path, str]]) -> None:
    """Adds what the node and all below it are made of: name → file → digest."""
    held = node.func if isinstance(node, partial) else node
    made_of = held if isinstance(held, type) or hasattr(held, "__qualname__") else type(held)
    code: dict[Path, str] = {}
    _add_file(getattr(made_of, "__module__", None), code)
    if code:
        files.setdefault(made_of.__qualname__, {}).update(code)
    positional = node.args if isinstance(node, partial) else ()
    for child in (*positional, *children(node).values()):
        _add_code(child, files)


def _add_file(module: str | None, code: dict[Path, str]) -> None:
    """Adds the file of a module and those that it imports, as far as they are the user's own."""
    loaded = sys.modules.get(module or "")
    path = Path(getattr(loaded, "__file__", None) or "")
    if loaded is None or path in code or not is_users(path):
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    tree = _parsed(text)
    code[path] = hashlib.sha256((ast.dump(tree) if tree else text).encode()).hexdigest()
    for name in _imported(tree, loaded.__package__) if tree else ():
        _add_file(name, code)


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except SyntaxError:  # it has changed since it was imported
        return None


def _imported(tree: ast.Module, package: str | None) -> Iterator[str]:
    """What may be modules of the imports at the top level of a file."""
    for line in tree.body:
        if isinstance(line, ast.Import):
            yield from (alias.name for alias in line.names)
        elif isinstance(line, ast.ImportFrom) and (package or not line.level):
            origin = resolve_name("." * line.level + (line.module or ""), package)
            yield from (origin, *(f"{origin}.{alias.name}" for alias in line.names))


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "opsin" if name == "__main__.py" else name  # python -m opsin


def this_code() -> dict[str, Any]:
    """See ``code_of``, of the code that runs."""
    return code_of(Path(__file__).parents[1])


def code_of(house: Path) -> dict[str, Any]:
    """The commit of the code in a folder, and whether it was changed since: both may be unknown.

    An installed copy may lie in a repository of its user, in which nobody committed it.
    """
    if _git(house, "ls-files", "--error-unmatch", "errors.py") is None:
        return {"commit": None, "dirty": None}
    but = ":(exclude,glob)results/*"  # tables are made of runs, and no run reads them
    return {
        "commit": _git(house, "rev-parse", "HEAD"),
        "dirty": bool(_git(house, "status", "--porcelain", "--", but)),
    }


def _git(house: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(house), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or no repository
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
