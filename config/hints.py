"""What fits a type hint, and how a hint reads."""

from __future__ import annotations

import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Union, cast, get_args, get_origin

from annotated_types import Interval

from opsin.ranges import LARGEST


def fitted(value: Any, hint: Any) -> Any:
    """The value with lists as tuples and integers as floats, where the hint asks for them."""
    if isinstance(value, list) and not _bearable(value, hint):
        value = tuple(value)
    if isinstance(value, tuple):
        return tuple(fitted(item, element_hint(hint, i)) for i, item in enumerate(value))
    if isinstance(value, Mapping):
        return {key: fitted(item, element_hint(hint)) for key, item in value.items()}
    if type(value) is int and not _bearable(value, hint) and _bearable(0.0, hint):
        with suppress(OverflowError):  # more than a float can be
            return float(value)
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a hint asks for, and so are those inside it."""
    inside = (
        [(item, element_hint(hint)) for item in value.values()]
        if isinstance(value, Mapping)
        else [(item, element_hint(hint, index)) for index, item in enumerate(value)]
        if isinstance(value, tuple)
        else []
    )
    if not all(fits(item, each) for item, each in inside):
        return False
    # To Python, a bool is an int; to a person, it is a slip.
    kinds = [plain(member) for member in members(hint)]
    stray_bool = isinstance(value, bool) and int in kinds and bool not in kinds
    return not stray_bool and _bearable(value, hint) and _in_range(value, hint)


def _in_range(value: Any, hint: Any) -> bool:
    """Whether a number is in the range of its hint, or finite in float32 where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    ranges = [x for member in members(hint) for x in _metadata(member) if isinstance(x, Interval)]
    if not ranges:
        return isinstance(value, int) or abs(value) <= LARGEST
    return any(_inside(value, each) for each in ranges)


def _inside(value: float, interval: Interval) -> bool:
    bounds: Any = interval  # whose numbers are of any kind that has an order
    above = bounds.gt is None or value > bounds.gt
    from_on = bounds.ge is None or value >= bounds.ge
    below = bounds.lt is None or value < bounds.lt
    up_to = bounds.le is None or value <= bounds.le
    return above and from_on and below and up_to


def _metadata(hint: Any) -> tuple[Any, ...]:
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def plain(hint: Any) -> Any:
    """A hint without its range."""
    return hint.__origin__ if get_origin(hint) is Annotated else hint


def takes_objects(hint: Any) -> bool:
    """Whether a hint asks for more than text and numbers."""
    return not {str, int, float, bool, types.NoneType}.issuperset(map(plain, members(hint)))


def is_protocol(hint: Any) -> bool:
    """Whether a hint is a protocol of functions."""
    return getattr(hint, "_is_protocol", False) and "__call__" in vars(hint)


def members(hint: Any) -> tuple[Any, ...]:
    """The hints of a union, or the one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def element_hint(hint: Any, index: int = 0) -> Any:
    """V of ``Mapping[K, V]``, X of ``tuple[X, ...]``, the one in its place of ``tuple[X, Y]``."""
    for member in members(hint):
        origin, arguments = get_origin(member), get_args(member)
        if not isinstance(origin, type) or not arguments:
            continue
        if issubclass(origin, Mapping):
            return arguments[1]
        if origin is tuple and arguments[-1] is not Ellipsis:
            return arguments[index] if index < len(arguments) else Any
        if issubclass(origin, Sequence):
            return arguments[0]
    return Any


def _bearable(value: Any, hint: Any) -> bool:
    # Here, for it takes longer to import than all else that a misspelt override needs but jax.
    from beartype.door import is_bearable
    from beartype.roar import BeartypeException

    kinds = [Callable if is_protocol(each) else each for each in members(hint)]
    either: Any = Union
    try:
        return is_bearable(value, either[tuple(kinds)])
    except BeartypeException:  # a hint that only type checkers can read
        return True


def in_words(hint: Any) -> str:
    """A hint as people read it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [_range_in_words(x) for x in hint.__metadata__ if isinstance(x, Interval)]
        return " ".join([in_words(hint.__origin__), *ranges])
    if origin is Callable:
        return "a function"
    if is_protocol(hint):
        return f"a function ({', '.join(list(parameters(hint.__call__))[1:])})"
    if origin in (Union, types.UnionType):
        return " | ".join(map(in_words, arguments))
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(map(in_words, arguments))}]"
    if hint is Ellipsis:
        return "..."
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _range_in_words(interval: Interval) -> str:
    bounded = [
        x for x in (interval.lt, interval.le) if x is not None and math.isfinite(cast(float, x))
    ]
    low = f"above {interval.gt:,}" if interval.ge is None else f"from {interval.ge:,}"
    if not bounded:
        return low if interval.ge is None else f"of at least {interval.ge:,}"
    return f"{low} {'to' if interval.lt is None else 'to below'} {bounded[0]:,}"


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Name → parameter of a function or class."""
    return inspect.signature(function).parameters


def field_hint(owner: type, name: str) -> Any:
    """The hint of a field, which a base class may have."""
    for base in owner.__mro__:
        annotations = inspect.get_annotations(base)
        if name in annotations:
            return evaluated(base, annotations[name])
    return Any


def option_hint(owner: Any, name: str) -> Any:
    """The hint of a field of a class, or of an option of a function."""
    if isinstance(owner, type):
        return field_hint(owner, name)
    option = parameters(owner).get(name)
    return Any if option is None else evaluated(owner, option.annotation)


def evaluated(owner: Any, annotation: Any) -> Any:
    """A hint from its source text; what only type checkers can see becomes Any."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    scope = vars(sys.modules[owner.__module__])
    try:
        return eval(annotation, dict(scope))
    except (NameError, AttributeError, TypeError):
        return Any
