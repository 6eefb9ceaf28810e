"""Opsin: computer-vision research in pure-functional JAX and Flax.

What is listed here is kept, and so is what the pages of ``docs/python`` import. It is imported when
it is asked for: ``import opsin`` alone does not start jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opsin.commands.python import Loaded, fit, load
    from opsin.commands.runs import Outcome
    from opsin.errors import RunFailed, UserError
    from opsin.train.experiment import Data, Experiment, Loop
    from opsin.train.optim import Optimizer

__all__ = [
    "Data",
    "Experiment",
    "Loaded",
    "Loop",
    "Optimizer",
    "Outcome",
    "RunFailed",
    "UserError",
    "fit",
    "load",
]
_HOMES = {
    "commands.python": ("Loaded", "fit", "load"),
    "commands.runs": ("Outcome",),
    "errors": ("RunFailed", "UserError"),
    "train.experiment": ("Data", "Experiment", "Loop"),
    "train.optim": ("Optimizer",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
