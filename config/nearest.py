"""What a person who mistyped something most likely meant."""

from __future__ import annotations

import difflib
import inspect
import sys
import types
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from opsin.config.names import full_name


def nearest(path: str, known: Iterable[str]) -> str:
    """The known path that is most like this one, which may end in initials: ``lr``, ``wd``."""
    known, last = list(known), path.rpartition(".")[2]
    short = [each for each in known if len(last) > 1 and _initials(each) == last]
    return difflib.get_close_matches(path, short or known, n=1, cutoff=0.0)[0]


def _initials(path: str) -> str:
    return "".join(word[:1] for word in path.rpartition(".")[2].split("_"))


def beside(text: Any, present: Any) -> str:
    """What could stand where a function does and a text was given, as the end of an error."""
    function = present.func if isinstance(present, partial) else present
    if not isinstance(text, str) or not isinstance(function, types.FunctionType):
        return ""
    module = sys.modules[function.__module__]
    alike = [
        name
        for name, other in vars(module).items()
        if isinstance(other, types.FunctionType)
        and other.__module__ == module.__name__
        and not name.startswith("_")
        and _positional(other) == _positional(function)
    ]
    near = difflib.get_close_matches(text.rpartition(":")[2], alike, n=len(alike), cutoff=0.0)
    return f"; like it are {', '.join(full_name(vars(module)[name]) for name in near)}"


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [x.name for x in parameters if x.kind is not inspect.Parameter.KEYWORD_ONLY]
