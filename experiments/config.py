"""Experiments as trees of real objects: override any field, resolve to JSON, hash to an id."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, cast

from beartype import BeartypeConf
from beartype.door import is_bearable

Tree = TypeVar("Tree")
_TOWER = BeartypeConf(is_pep484_tower=True)  # an int is good where a float is asked for


class ConfigError(ValueError):
    """An override that does not fit the experiment."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of an ablation: a name, and what it changes."""

    name: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def parse(text: str) -> tuple[str, Any]:
    """``"task.model.width=32"`` → ``("task.model.width", 32)``.

    The value is a Python literal, ``package.module:name`` for a function or class, or a string.

    Raises:
        ConfigError: without an equals sign, or when the named object does not exist.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"{text!r} is not an override: write path=value, as in seed=1")
    try:
        return path, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        pass
    module, colon, name = value.partition(":")
    if colon and all(part.isidentifier() for part in [*module.split("."), name]):
        try:
            return path, getattr(importlib.import_module(module), name)
        except ModuleNotFoundError:
            return path, value  # "tfds:mnist" is a string: there is no module of that name
        except AttributeError as error:
            raise ConfigError(f"{path}: {error}") from error
    return path, value


def override(tree: Tree, overrides: Mapping[str, Any]) -> Tree:
    """A copy of the tree with the fields at these dotted paths replaced.

    Paths reach dataclass fields, Flax module fields, keywords of functions and of
    ``functools.partial``s, keys of dicts and positions of tuples.

    Raises:
        ConfigError: unknown path (names the nearest one) or a value of the wrong type.
    """
    for path, value in overrides.items():
        tree = _replace(tree, path.split("."), value, path, tree)
    return tree


def resolve(node: Any) -> Any:
    """The tree as JSON: everything that makes this run what it is, functions by their name."""
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, Mapping):
        return {str(key): resolve(value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [resolve(value) for value in node]
    if isinstance(node, partial):
        keywords = {name: resolve(value) for name, value in sorted(node.keywords.items())}
        positional = {"args": [resolve(value) for value in node.args]} if node.args else {}
        return {"call": _name(node.func), **positional, **keywords}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        children = {name: resolve(value) for name, (value, _) in _children(node).items()}
        return {"type": _name(type(node)), **children}
    return _name(node)


def identity(tree: Any) -> str:
    """Twelve hexadecimal digits that name the resolved tree."""
    text = json.dumps(resolve(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def paths(tree: Any, prefix: str = "") -> Iterator[str]:
    """Every path that an override can name."""
    for name, (value, _) in _children(tree).items():
        path = f"{prefix}{name}"
        yield path
        yield from paths(value, f"{path}.")


def _name(node: Any) -> str:
    name = getattr(node, "__qualname__", None) or getattr(node, "__name__", None)
    module = getattr(node, "__module__", None)
    if not name or not module or "<" in name:
        raise ConfigError(
            f"{node!r} in a config has no name to find it by: use a function or class of a module, "
            "or a functools.partial of one"
        )
    return f"{module}:{name}"


def _children(node: Any) -> dict[str, tuple[Any, Any]]:
    """Name → (value, type hint) of what lies below a node."""
    if isinstance(node, Mapping):
        return {str(key): (value, Any) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return {str(index): (value, Any) for index, value in enumerate(node)}
    if isinstance(node, partial):
        given = dict(node.keywords)
        bound = len(node.args)
        return {
            name: (given.get(name, parameter.default), _evaluate(node.func, parameter.annotation))
            for index, (name, parameter) in enumerate(_parameters(node.func).items())
            if index >= bound
            and (name in given or parameter.kind is inspect.Parameter.KEYWORD_ONLY)
        }
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {
            field.name: (getattr(node, field.name), _field_hint(type(node), field.name))
            for field in dataclasses.fields(node)
            if field.init and not (field.name in ("parent", "name") and hasattr(node, "scope"))
        }
    if isinstance(node, types.FunctionType):
        return {
            name: (parameter.default, _evaluate(node, parameter.annotation))
            for name, parameter in _parameters(node).items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
    return {}


def _replace(node: Any, path: list[str], value: Any, full: str, root: Any) -> Any:
    if not path:
        return value
    name, rest = path[0], path[1:]
    children = _children(node)
    if name not in children:
        near = difflib.get_close_matches(full, list(paths(root)), n=1, cutoff=0.0)
        raise ConfigError(f"there is no {full!r} to override: did you mean {near[0]!r}?")
    child, hint = children[name]
    new = (
        _checked(value, hint, full, child) if not rest else _replace(child, rest, value, full, root)
    )
    if isinstance(node, Mapping):
        return {**node, name: new}
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
    integer = isinstance(value, int) and not isinstance(value, bool)
    if integer and not is_bearable(value, hint) and is_bearable(float(value), hint):
        return float(value)
    if isinstance(value, list) and not is_bearable(value, hint):
        value = tuple(value)
    stray_bool = isinstance(value, bool) and hint in (int, float, int | None, float | None)
    if stray_bool or not is_bearable(value, hint, conf=_TOWER):
        expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise ConfigError(
            f"{path} takes {expected}, not {value!r}; it is {_shown(present)} by default"
        )
    return value


def _shown(value: Any) -> str:
    try:
        return json.dumps(resolve(value))
    except ConfigError:
        return repr(value)


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
