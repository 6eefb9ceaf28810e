"""Experiments as trees of real objects: override any field, resolve to JSON, rebuild from it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial, reduce
from typing import Any, TypeVar, cast

from opsin.config import functions, hints
from opsin.config.earlier import modernized
from opsin.config.names import found, full_name, is_name, named, unfound
from opsin.config.nearest import beside, nearest
from opsin.errors import ConfigError

Tree = TypeVar("Tree")
_REQUIRED = inspect.Parameter.empty  # stands where an option has no default
_UNSAID: Any = object()
"""Of a field whose default is not asked for."""


def parse(text: str) -> tuple[str, Any]:
    """``"task.model.width=32"`` → ``("task.model.width", 32)``.

    The value is a Python literal, ``package.module:name`` for a function or class, or a string.

    Raises:
        ConfigError: without an equals sign, or when the named object does not exist.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"{text!r} is not an override: write path=value, as in seed=1")
    with suppress(
        ValueError, SyntaxError, TypeError, RecursionError, MemoryError
    ):  # then it is a name or a string
        return path, ast.literal_eval(value)
    try:
        return path, named(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def rebuild(resolved: Any, allowed: Collection[str] = ()) -> Any:
    """The tree, from what ``resolve`` made of it, now or in earlier code; lists become tuples.

    What has moved to another module of this house is found by its name. A stranger may have written
    this: it names ``config.names.HELD``, and other code only if that is allowed.

    Args:
        resolved: the tree as JSON.
        allowed: modules or names of other code that may be executed; see ``found``, ``names_in``.

    Raises:
        UntrustedError: for other code that is not allowed.
        ConfigError: for a name that is not there any more, or no longer takes these fields.
    """
    return _built(modernized(resolved), Any, allowed)


def names_in(resolved: Any) -> set[str]:
    """The names of code in a resolved tree, in full, which allow each that and nothing else."""
    if isinstance(resolved, str):
        return {resolved} if is_name(resolved) else set()
    below = resolved.values() if isinstance(resolved, Mapping) else resolved
    return set().union(*map(names_in, below)) if isinstance(resolved, Mapping | list) else set()


def _built(resolved: Any, hint: Any, allowed: Collection[str]) -> Any:
    if isinstance(resolved, list):
        items = enumerate(resolved)
        return tuple(_built(item, hints.element_hint(hint, i), allowed) for i, item in items)
    if isinstance(resolved, str):
        if resolved in ("inf", "-inf", "nan") and str not in hints.members(hint):
            return float(resolved)
        return found(resolved, allowed) if hints.takes_objects(hint) else resolved
    if not isinstance(resolved, Mapping):
        return resolved
    if "type" not in resolved and "call" not in resolved:
        return {x: _built(y, hints.element_hint(hint), allowed) for x, y in resolved.items()}
    name = resolved["type" if "type" in resolved else "call"]
    owner = _built(name, Any, allowed)
    if "type" in resolved and not (isinstance(owner, type) and dataclasses.is_dataclass(owner)):
        raise ConfigError(f"{name} is no dataclass of this code")
    if not callable(owner):
        raise ConfigError(f"{name} is no function of this code")
    given = {x: y for x, y in resolved.items() if x not in ("type", "call", "args")}
    _check_taken(owner, name, given)
    fields = {x: _field(owner, name, x, y, allowed) for x, y in given.items()}
    args = _built(resolved.get("args", []), Any, allowed)
    try:
        if "type" in resolved:
            return owner(**fields)
        return owner if resolve(owner) == resolved else partial(owner, *args, **fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error


def _field(owner: Any, name: str, field: str, resolved: Any, allowed: Collection[str]) -> Any:
    """The value of a field, or option, if it is of the type that its owner takes."""
    hint = hints.option_hint(owner, field)
    value = _built(resolved, hint, allowed)
    if not hints.fits(hints.fitted(value, hint), hint):
        raise ConfigError(f"{name}: {field} takes {hints.in_words(hint)}, not {_shown(value)}")
    _check_misfit(value, hint, f"{name}: {field}")
    return value


def _check_taken(owner: Callable[..., Any], name: str, fields: Mapping[str, Any]) -> None:
    """Raises ConfigError for a field that the owner does not take."""
    parameters = hints.parameters(owner)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    if unknown := sorted(fields.keys() - parameters.keys()):
        raise ConfigError(f"{name}: it takes no {unknown[0]!r} any more")


def parse_all(texts: Iterable[str]) -> dict[str, Any]:
    """Path → value of several overrides.

    Raises:
        ConfigError: as ``parse``, and if a path comes twice.
    """
    overrides: dict[str, Any] = {}
    for path, value in map(parse, texts):
        if path in overrides:
            raise ConfigError(f"{path} is overridden twice: leave one of them out")
        overrides[path] = value
    return overrides


def override(tree: Tree, overrides: Mapping[str, Any]) -> Tree:
    """A copy of the tree with the fields at these dotted paths replaced.

    Paths reach dataclass fields, Flax module fields, keywords of functions and of
    ``functools.partial``s, keys of dicts and positions of tuples.

    Raises:
        ConfigError: unknown path (names the nearest one) or a value of the wrong type.
    """
    for path, value in overrides.items():
        tree = _replace(tree, Any, path.split("."), value, path, tree)
    for path in overrides:  # only now: a function and its options are overridden one by one
        _check_called(tree, path)
    return tree


def check(tree: Any) -> None:
    """Raises ConfigError for the first value in a tree that its field does not take."""
    for path, value, hint in hinted(tree):
        _checked(value, hint, path, _UNSAID)
        _check_misfit(value, hint, path)


def hinted(node: Any, hint: Any = Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, value and type hint of all that is below a node, which has a hint itself."""
    for name, value in children(node).items():
        path, below = f"{prefix}{name}", _child_hint(node, hint, name)
        if value is not _REQUIRED:
            yield path, value, below
        yield from hinted(value, below, f"{path}.")


def _check_called(tree: Any, path: str) -> None:
    """Raises ConfigError if what is on a path or below cannot be called as its field says.

    What is not there any more, as a later override has replaced it, is nothing to look at.
    """
    node, hint, names = tree, Any, path.split(".")
    for i, name in enumerate(names):
        if name not in children(node):
            return
        node, hint = children(node)[name], _child_hint(node, hint, name)
        _check_misfit(node, hint, ".".join(names[: i + 1]))
    for deeper, value, each in hinted(node, hint, f"{path}."):
        _check_misfit(value, each, deeper)


def _check_misfit(value: Any, hint: Any, path: str) -> None:
    if reason := functions.misfit(value, hint):
        raise ConfigError(f"{path}={_shown(value)} {reason}")


def resolve(node: Any) -> Any:
    """The tree as JSON, with the values of all its options.

    It is complete, and ``rebuild`` makes the tree of it again. A function is its name, with the
    values of its keyword-only options if it has any.

    Raises:
        ConfigError: for an object that cannot be found by a name, such as a lambda.
    """
    if isinstance(node, float) and not math.isfinite(node):
        return str(node)  # JSON has no infinity
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, Mapping):
        return {str(key): resolve(value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [resolve(value) for value in node]
    if isinstance(node, partial | types.FunctionType):
        function, args, given = (
            (node.func, node.args, node.keywords) if isinstance(node, partial) else (node, (), {})
        )
        options = {"args": [resolve(value) for value in args]} if args else {}
        for name, value in children(node).items():
            if name in given or _is_plain(value):
                options[name] = resolve(value)
        return {"call": full_name(function), **options} if options else full_name(function)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        below = {name: resolve(value) for name, value in children(node).items()}
        return {"type": full_name(type(node)), **below}
    return full_name(node)


def paths(tree: Any, prefix: str = "") -> Iterator[str]:
    """Every path that an override can name."""
    for name, value in children(tree).items():
        path = f"{prefix}{name}"
        yield path
        yield from paths(value, f"{path}.")


def _is_plain(value: Any) -> bool:
    """Whether a default can be resolved: a library's own marker for "not given" cannot."""
    try:
        resolve(value)
    except ConfigError:
        return False
    return value is not _REQUIRED


def children(node: Any) -> dict[str, Any]:
    """Name → value of everything below a node."""
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    if isinstance(node, tuple | list):
        return {str(i): value for i, value in enumerate(node)}
    if isinstance(node, partial):
        options = {
            name: parameter.default
            for name, parameter in hints.parameters(node.func).items()
            if name in node.keywords or parameter.kind is inspect.Parameter.KEYWORD_ONLY
            if not _is_linens_own(node.func, name)
        }
        return options | node.keywords
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {
            field.name: getattr(node, field.name)
            for field in dataclasses.fields(node)
            if field.init and not _is_linens_own(node, field.name)
        }
    if isinstance(node, types.FunctionType):
        return {
            name: parameter.default
            for name, parameter in hints.parameters(node).items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
    return {}


def _child_hint(node: Any, hint: Any, name: str) -> Any:
    """The type hint of what is below a node by this name; ``hint`` is that of the node."""
    if isinstance(node, Mapping):
        return hints.element_hint(hint)
    if isinstance(node, tuple | list):
        return hints.element_hint(hint, int(name))
    if isinstance(node, partial | types.FunctionType):
        return hints.option_hint(node.func if isinstance(node, partial) else node, name)
    return hints.field_hint(type(node), name)


def _is_linens_own(module: Any, field: str) -> bool:
    return field in ("parent", "name") and hasattr(module, "scope")


def _replace(node: Any, hint: Any, path: list[str], value: Any, full: str, root: Any) -> Any:
    name, rest = path[0], path[1:]
    below = children(node)
    if name not in below:
        near = nearest(full, paths(root))
        raise ConfigError(f"there is no {full!r} to override: did you mean {near!r}?")
    child, hint = below[name], _child_hint(node, hint, name)
    if rest and child is None and (kind := _begins(hint, rest)):
        new = kind(**{rest[0]: _checked(value, hints.field_hint(kind, rest[0]), full, _REQUIRED)})
    elif rest:
        new = _replace(child, hint, rest, value, full, root)
    else:
        new = _checked(value, hint, full, child)
    if isinstance(node, Mapping):
        return {key: new if str(key) == name else item for key, item in node.items()}
    if isinstance(node, tuple | list):
        items = list(node)
        items[int(name)] = new
        return type(node)(items)
    if isinstance(node, partial):
        return partial(node.func, *node.args, **{**node.keywords, name: new})
    if isinstance(node, types.FunctionType):
        return partial(node, **{name: new})
    try:
        return dataclasses.replace(cast(Any, node), **{name: new})
    except ValueError as error:  # a field's own check
        raise ConfigError(f"{full}={_shown(value)}: {error}") from error


def _begins(hint: Any, rest: list[str]) -> Any:
    """The dataclass that a field without one may hold, if this one field of it is all it needs.

    So ``weights.path=FILE`` gives weights to an experiment that has none.
    """
    kinds = [each for each in hints.members(hint) if dataclasses.is_dataclass(each)]
    if len(kinds) != 1 or len(rest) != 1 or rest[0] not in hints.parameters(cast(Any, kinds[0])):
        return None
    return kinds[0] if {*required(kinds[0])} <= {rest[0]} else None


def required(kind: Any) -> list[str]:
    """The fields of a dataclass that have no default."""
    missing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.init and field.default is missing and field.default_factory is missing
    ]


def _checked(value: Any, hint: Any, path: str, present: Any) -> Any:
    """The value, if it is of the type that the path takes."""
    if hint is Any and type(present) in (bool, int, float, str):
        hint = type(present)
    fitted = hints.fitted(value, hint)
    # A class has the methods of a protocol too: there it is an object that is replaced.
    asked = dataclasses.is_dataclass(present) and not isinstance(present, type)
    asked = asked or not hints.fits(fitted, hint) or functions.is_of_callables(value, hint)
    if asked and _makes_object(value):
        fitted = _made(value, path, present)
    if not hints.fits(fitted, hint):
        default = "; it has no default"
        if present is not _REQUIRED:
            unsaid = present is _UNSAID or present is value  # an object made of what was typed
            default = "" if unsaid else f"; it is {_shown(present)} by default"
        raise ConfigError(
            f"{path} takes {hints.in_words(hint)}, not {_shown(value)}{default}"
            f"{beside(value, present)}{_not_found(value)}"
        )
    return fitted


def _not_found(value: Any) -> str:
    way_out = unfound(value) if isinstance(value, str) and is_name(value) else ""
    return f"; {way_out}" if way_out else ""


def _makes_object(value: Any) -> bool:
    """Whether it is a dataclass, such as a Flax module, or a function that returns one."""
    while isinstance(value, partial):
        value = value.func
    if isinstance(value, types.FunctionType):
        value = hints.evaluated(value, value.__annotations__.get("return", Any))
    return isinstance(value, type) and dataclasses.is_dataclass(value)


def _made(value: Any, path: str, present: Any) -> Any:
    """The object of a class, in the place of another: only ``num_classes`` follows that one."""
    taken = hints.parameters(value)
    follows = "num_classes" in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values())
    classes = getattr(present, "num_classes", None)
    given = {} if classes is None or not follows else {"num_classes": classes}
    try:
        return value(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}={_shown(value)} cannot be made of its defaults ({error}): name a partial that "
            "gives the rest"
        ) from error


def at(tree: Any, path: str) -> Any:
    """What is at a dotted path, which must be there."""
    return reduce(lambda node, name: children(node)[name], path.split("."), tree)


def _shown(value: Any) -> str:
    """A value as it is written in an override, an object by its name."""
    try:
        resolved = resolve(value)
    except ConfigError:
        return repr(value)
    if not callable(value) and not dataclasses.is_dataclass(value):
        return repr(value)
    return resolved if isinstance(resolved, str) else resolved.get("type") or resolved["call"]
