"""Experiments as trees of real objects: override any field, resolve to JSON, hash to an id."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, Union, cast, get_args, get_origin

Tree = TypeVar("Tree")
_REQUIRED = inspect.Parameter.empty  # stands where an option has no default


class ConfigError(ValueError):
    """An override that does not fit the experiment."""


def parse(text: str) -> tuple[str, Any]:
    """``"task.model.width=32"`` → ``("task.model.width", 32)``.

    The value is a Python literal, ``package.module:name`` for a function or class, or a string.

    Raises:
        ConfigError: without an equals sign, or when the named object does not exist.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"{text!r} is not an override: write path=value, as in seed=1")
    with suppress(ValueError, SyntaxError, TypeError):  # then it is a name or a string
        return path, ast.literal_eval(value)
    try:
        return path, named(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def named(text: str) -> Any:
    """The function or class that ``package.module:name`` names; any other text is itself.

    Raises:
        ConfigError: the module is there and cannot be imported, or has no such name.
    """
    module, colon, name = text.partition(":")
    if colon and all(part.isidentifier() for part in [*module.split("."), name]):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and f"{module}.".startswith(f"{error.name}."):
                return text  # "tfds:mnist" is a string: there is no module of that name
            raise ConfigError(f"cannot import {module}: {error}") from error
        if hasattr(found, name):
            return getattr(found, name)
        if hasattr(found, "__file__") and found.__file__:  # else a mere directory, called "tfds"
            raise ConfigError(f"module {module} has no {name!r}")
    return text


def rebuild(resolved: Any) -> Any:
    """The tree that ``resolve`` gave this for; lists become tuples.

    Raises:
        ConfigError: for a name that is not there any more, or no longer takes these fields.
    """
    if isinstance(resolved, list):
        return tuple(rebuild(value) for value in resolved)
    if isinstance(resolved, str):
        return float(resolved) if resolved in ("inf", "-inf", "nan") else named(resolved)
    if not isinstance(resolved, Mapping):
        return resolved
    fields = {name: rebuild(value) for name, value in resolved.items()}
    kind, function = fields.pop("type", None), fields.pop("call", None)
    args = fields.pop("args", ())
    if callable(function):
        return function if resolve(function) == resolved else partial(function, *args, **fields)
    if kind is None:
        return fields
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"{resolved['type']} is no dataclass of this code")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ConfigError(f"{resolved['type']}: {error}") from error


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
    return tree


def resolve(node: Any) -> Any:
    """The tree as JSON: everything that makes this run what it is.

    A function is its name, with the values of its keyword-only options if it has any. A field with
    the metadata ``{"later": True}``, which came after runs were recorded, is left out where it has
    its default: those runs stay what they are.

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
        for name, (value, _) in _children(node).items():
            if name in given or _is_plain(value):
                options[name] = resolve(value)
        return {"call": _name(function), **options} if options else _name(function)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        later = {f.name: f.default for f in dataclasses.fields(node) if f.metadata.get("later")}
        children = {
            name: resolve(value)
            for name, (value, _) in _children(node).items()
            if name not in later or value != later[name]
        }
        return {"type": _name(type(node)), **children}
    return _name(node)


def identity(tree: Any) -> str:
    """Twelve hexadecimal digits that name the resolved tree, but for ``{"identity": False}``."""
    resolved = resolve(tree)
    for field in dataclasses.fields(tree) if dataclasses.is_dataclass(tree) else ():
        if field.metadata.get("identity") is False:
            del resolved[field.name]
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:12]


def paths(tree: Any, prefix: str = "") -> Iterator[str]:
    """Every path that an override can name."""
    for name, (value, _) in _children(tree).items():
        path = f"{prefix}{name}"
        yield path
        yield from paths(value, f"{path}.")


def _name(node: Any) -> str:
    name = getattr(node, "__qualname__", None) or getattr(node, "__name__", None)
    module = getattr(node, "__module__", None)
    instance = getattr(node, "__self__", None)  # of a bound method: its state has no name
    bound = instance is not None and not isinstance(instance, type | types.ModuleType)
    if not name or not module or "<" in name or bound:
        raise ConfigError(
            f"{node!r} in a config has no name to find it by: use a function or class of a module, "
            "or a functools.partial of one"
        )
    return f"{_public_module(node, module, name)}:{name}"


def _public_module(node: Any, module: str, name: str) -> str:
    """The shortest module that offers the object, if its own is private: those move about."""
    if not _is_private(module):
        return module
    package = module.partition(".")[0]
    offering = [
        path
        for path, loaded in list(sys.modules.items())
        if path.partition(".")[0] == package
        and not _is_private(path)
        and isinstance(loaded, types.ModuleType)
        and vars(loaded).get(name) is node
    ]
    return min(offering, key=lambda path: (path.count("."), path), default=module)


def _is_private(module: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in module.split("."))


def _is_plain(value: Any) -> bool:
    """Whether a default can be resolved: a library's own marker for "not given" cannot."""
    try:
        resolve(value)
    except ConfigError:
        return False
    return value is not _REQUIRED


def _children(node: Any, hint: Any = Any) -> dict[str, tuple[Any, Any]]:
    """Name → (value, type hint) of what lies below a node."""
    if isinstance(node, Mapping):
        return {str(key): (value, _element_hint(hint)) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return {str(i): (value, _element_hint(hint, i)) for i, value in enumerate(node)}
    if isinstance(node, partial):
        options = {
            name: (parameter.default, _evaluate(node.func, parameter.annotation))
            for name, parameter in _parameters(node.func).items()
            if name in node.keywords or parameter.kind is inspect.Parameter.KEYWORD_ONLY
            if not _is_linens_own(node.func, name)
        }
        given = {
            name: (value, options.get(name, (None, Any))[1])
            for name, value in node.keywords.items()
        }
        return options | given
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {
            field.name: (getattr(node, field.name), _field_hint(type(node), field.name))
            for field in dataclasses.fields(node)
            if field.init and not _is_linens_own(node, field.name)
        }
    if isinstance(node, types.FunctionType):
        return {
            name: (parameter.default, _evaluate(node, parameter.annotation))
            for name, parameter in _parameters(node).items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
    return {}


def _is_linens_own(module: Any, field: str) -> bool:
    return field in ("parent", "name") and hasattr(module, "scope")


def _replace(node: Any, hint: Any, path: list[str], value: Any, full: str, root: Any) -> Any:
    name, rest = path[0], path[1:]
    children = _children(node, hint)
    if name not in children:
        near = difflib.get_close_matches(full, list(paths(root)), n=1, cutoff=0.0)
        raise ConfigError(f"there is no {full!r} to override: did you mean {near[0]!r}?")
    child, hint = children[name]
    if rest:
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
        raise ConfigError(f"{full}={value!r}: {error}") from error


def _checked(value: Any, hint: Any, path: str, present: Any) -> Any:
    """The value, if it is of the type that the path takes."""
    if hint is Any and type(present) in (bool, int, float, str):
        hint = type(present)
    fitted = _fitted(value, hint)
    if not _fits(fitted, hint):
        default = "it has no" if present is _REQUIRED else f"it is {_shown(present)} by"
        raise ConfigError(
            f"{path} takes {_described(hint)}, not {_shown(value)}; {default} default"
        )
    return fitted


def _fitted(value: Any, hint: Any) -> Any:
    """The value with lists as tuples and integers as floats, where the hint asks for them."""
    if isinstance(value, list) and not _bearable(value, hint):
        value = tuple(value)
    if isinstance(value, tuple):
        return tuple(_fitted(item, _element_hint(hint, i)) for i, item in enumerate(value))
    if isinstance(value, Mapping):
        return {key: _fitted(item, _element_hint(hint)) for key, item in value.items()}
    if type(value) is int and not _bearable(value, hint) and _bearable(float(value), hint):
        return float(value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, tuple) and not all(
        _fits(item, _element_hint(hint, index)) for index, item in enumerate(value)
    ):
        return False
    # To Python, a bool is an int; to a person, it is a slip.
    members = _members(hint)
    stray_bool = isinstance(value, bool) and int in members and bool not in members
    return not stray_bool and _bearable(value, hint)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _element_hint(hint: Any, index: int = 0) -> Any:
    """V of ``Mapping[K, V]``, X of ``tuple[X, ...]``, the one in its place of ``tuple[X, Y]``."""
    for member in _members(hint):
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

    try:
        return is_bearable(value, hint)
    except BeartypeException:  # a hint that only type checkers can read
        return True


def _described(hint: Any) -> str:
    """A hint as people read it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Callable:
        return "a function"
    if origin in (Union, types.UnionType):
        return " | ".join(map(_described, arguments))
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(map(_described, arguments))}]"
    if hint is Ellipsis:
        return "..."
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _shown(value: Any) -> str:
    """A value as it is written in an override, an object by its name."""
    try:
        resolved = resolve(value)
    except ConfigError:
        return repr(value)
    if not callable(value) and not dataclasses.is_dataclass(value):
        return repr(value)
    return resolved if isinstance(resolved, str) else resolved.get("type") or resolved["call"]


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _field_hint(owner: type, name: str) -> Any:
    for base in owner.__mro__:
        annotations = inspect.get_annotations(base)
        if name in annotations:
            return _evaluate(base, annotations[name])
    return Any


def _evaluate(owner: Any, annotation: Any) -> Any:
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
