"""Whether a function can be called as the hint of its field says."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from functools import partial
from typing import Any, get_args, get_origin

from opsin.config import hints


def misfit(function: Any, hint: Any) -> str | None:
    """Why a function cannot be called as its hint says, or None if it can.

    ``Callable[[A, B], R]`` is called with two arguments, a protocol as its ``__call__`` is. What it
    returns is compared where both say that.
    """
    if not callable(function):
        return None
    kinds = [each for each in hints.members(hint) if _is_function(each)]
    forms = [form for form in map(_form, kinds) if form is not None]
    if not kinds or len(forms) < len(kinds):  # one of them does not say
        return None
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a type of Python's own, or what is written in C
        return "says nowhere what it takes"
    reasons = [_reason(signature, function, form) for form in forms]
    return None if None in reasons else reasons[0]


def is_of_callables(value: Any, hint: Any) -> bool:
    """Whether a class, or a partial of one, cannot be called as a hint says, but its objects can.

    A measurement, for instance, is called with what is measured, and its class with its options.
    """
    kind = value.func if isinstance(value, partial) else value
    if not isinstance(kind, type) or not any("__call__" in vars(base) for base in kind.__mro__):
        return False
    of_object = partial(getattr(kind, "__call__"), None)  # noqa: B004, B009
    return misfit(value, hint) is not None and misfit(of_object, hint) is None


def _is_function(hint: Any) -> bool:
    return get_origin(hint) is Callable or hints.is_protocol(hint)


def _form(hint: Any) -> inspect.Signature | None:
    """How a function of this hint is called; None where it does not say."""
    if hints.is_protocol(hint):
        form = inspect.signature(hint.__call__)
        parameters = list(form.parameters.values())[1:]
        return form.replace(
            parameters=parameters, return_annotation=hints.evaluated(hint, form.return_annotation)
        )
    if get_args(hint)[0] is Ellipsis:
        return None
    arguments, returned = get_args(hint)
    kind = inspect.Parameter.POSITIONAL_ONLY
    named = [inspect.Parameter(f"_{i}", kind, annotation=each) for i, each in enumerate(arguments)]
    return inspect.Signature(named, return_annotation=returned)


def _reason(signature: inspect.Signature, function: Any, form: inspect.Signature) -> str | None:
    by_name = [p for p in form.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    by_place = [p for p in form.parameters.values() if p not in by_name]
    try:
        bound = signature.bind(*by_place, **{p.name: p for p in by_name})
    except TypeError as error:
        return f"is called with ({_arguments_in_words(form)}): {error}"
    # An option of another name, such as optax.sgd's momentum, would be given what it does not mean.
    for name, given in bound.arguments.items():
        named = isinstance(given, inspect.Parameter) and given.name[0] != "_"
        option = signature.parameters[name].default is not inspect.Parameter.empty
        if named and option and name != given.name:
            return (
                f"is called with ({_arguments_in_words(form)}), and would take {given.name} for "
                f"its {name}"
            )
    bare = function.func if isinstance(function, partial) else function
    returned = (
        bare if isinstance(bare, type) else hints.evaluated(bare, signature.return_annotation)
    )
    given, asked = _kind(returned), _kind(form.return_annotation)
    if given and asked and not (_is_a(given, asked) or _is_a(asked, given)):
        return f"returns {hints.in_words(returned)}, not {hints.in_words(form.return_annotation)}"
    return None


def _arguments_in_words(form: inspect.Signature) -> str:
    """The arguments by their names, or by what they are where they have none."""
    words = []
    for parameter in form.parameters.values():
        bare = hints.in_words(parameter.annotation) if parameter.name[0] == "_" else parameter.name
        words.append(f"{bare}=…" if parameter.kind is inspect.Parameter.KEYWORD_ONLY else bare)
    return ", ".join(words)


def _is_a(kind: type, other: type) -> bool:
    try:
        return issubclass(kind, other)
    except TypeError:  # a protocol that has fields: nobody can tell
        return True


def _kind(hint: Any) -> type | None:
    """What a hint says of a value at the least: an array, a function, or of which class it is."""
    # Here, for a misspelt override has no need of them.
    import jax
    import numpy as np

    hint = hints.plain(hint)
    if hint is float or getattr(hint, "array_type", None) is not None:
        return np.ndarray  # a number is an array without axes
    origin = get_origin(hint) or hint
    if origin in (jax.Array, np.ndarray):
        return np.ndarray
    unknown = (object, Any, inspect.Parameter.empty, types.UnionType)
    known = isinstance(origin, type) and origin not in unknown
    return origin if known else None
