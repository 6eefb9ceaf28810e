"""Where numbers come from: the code, the versions of libraries and the machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import platform
import shlex
import subprocess
import sys
import types
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax

from opsin.config.names import is_users
from opsin.config.tree import children

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
    """Name → digest of the source of each function and class of the user's own in an experiment.

    What has no source, such as a class of a notebook, is left out.
    """
    found: dict[str, str] = {}
    function = node.func if isinstance(node, partial) else node
    made_of: Any = function if isinstance(function, types.FunctionType) else type(node)
    with suppress(OSError, TypeError):
        if is_users(Path(inspect.getfile(made_of))):
            source = inspect.getsource(made_of)
            found[made_of.__qualname__] = hashlib.sha256(source.encode()).hexdigest()[:16]
    for child in children(node).values():
        found |= own_code(child)
    return found


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
    but = ":(exclude)results/reproduced.*"  # no run reads what opsin reproduce writes
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
