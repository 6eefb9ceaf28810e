"""What can be named in an override: found in the rooms by its form, read without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from opsin.data.source_names import FORMS

Definition = TypeVar("Definition", ast.FunctionDef, ast.ClassDef)
HOUSE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Shelf:
    """One kind of thing.

    Attributes:
        usage: how one of them is typed.
        files: where they are, a pattern of paths.
        has: name → what it says of itself, of all such things in these files, by the module.
    """

    usage: str
    files: str
    has: Callable[[dict[str, ast.Module]], Iterator[tuple[str, str]]]


def found(kind: str) -> dict[str, str]:
    """Name → first line of its description, of everything of a kind in ``SHELVES``."""
    shelf = SHELVES[kind]
    files = sorted(HOUSE.glob(shelf.files))
    modules = {
        ".".join(path.relative_to(HOUSE).with_suffix("").parts): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in files
    }
    return dict(shelf.has(modules))


def _models(modules: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """Classes that nothing else is made of, and variants of classes."""
    nodes = [(module, node) for module, tree in modules.items() for node in tree.body]
    parts = {name for _, node in nodes for name in _used(node)}
    for module, node in nodes:
        if isinstance(node, ast.ClassDef) and node.bases and node.name not in parts:
            yield f"{module}:{node.name}", _first_line(node)
        elif isinstance(node, ast.Assign) and _calls(node.value) == "partial":
            yield f"{module}:{ast.unparse(node.targets[0])}", _in_words(node.value)


def _used(node: ast.stmt) -> Iterator[str]:
    """The names that a class is made of, but for type hints, and those that a variant is given."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        yield from (x.value.id for x in node.value.keywords if isinstance(x.value, ast.Name))
    if not isinstance(node, ast.ClassDef):
        return
    hints = [x.annotation for x in ast.walk(node) if isinstance(x, ast.AnnAssign | ast.arg)]
    hints += [x.returns for x in ast.walk(node) if isinstance(x, ast.FunctionDef)]
    in_hints = {id(x) for hint in hints if hint is not None for x in ast.walk(hint)}
    for name in ast.walk(node):
        if isinstance(name, ast.Name) and id(name) not in in_hints:
            yield name.id


def _losses(modules: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """Functions that are called a loss, and pairs of them for adversaries."""
    for module, tree in modules.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and re.fullmatch(r"[a-z]\w*_loss", node.name):
                yield f"{module}:{node.name}", _first_line(node)
            elif isinstance(node, ast.Assign) and _calls(node.value).endswith("Loss"):
                yield f"{module}:{ast.unparse(node.targets[0])}", _in_words(node.value)


def _taking(*arguments: str, option: str = "") -> Callable[..., Iterator[tuple[str, str]]]:
    """Functions of these positional arguments, which may have that option."""

    def has(modules: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
        for module, tree in modules.items():
            for node in tree.body:
                if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                    continue
                positional = tuple(x.arg for x in (*node.args.posonlyargs, *node.args.args))
                options = {x.arg for x in node.args.kwonlyargs}
                if positional == arguments and (not option or option in options):
                    yield f"{module}:{node.name}", _first_line(node) + _needs(node)

    return has


def _needs(node: ast.FunctionDef) -> str:
    """The options that have no default."""
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    needed = [option.arg for option, default in pairs if default is None]
    return f" Needs {', '.join(needed)}." if needed else ""


def _data(modules: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """The short forms, then functions of a split alone."""
    functions = _by_name(modules, ast.FunctionDef)
    for name, form in FORMS.items():
        opens = next(x for x in (name, f"{name.removesuffix('s')}_folder") if x in functions)
        yield form, _first_line(functions[opens])
    for name, says in _taking("split")(modules):
        if name.partition(":")[2] not in FORMS:
            yield name, says


def _measurements(modules: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """Dataclasses that are called with a subject, or inherit that."""
    classes = _by_name(modules, ast.ClassDef)

    def is_called(name: str) -> bool:
        if name not in classes:
            return False
        methods = [x for x in classes[name].body if isinstance(x, ast.FunctionDef)]
        own = [x for x in methods if x.name == "__call__" and x.args.args[-1].arg == "subject"]
        return bool(own) or any(is_called(ast.unparse(base)) for base in classes[name].bases)

    for name, node in sorted(classes.items()):
        if is_called(name) and not name.startswith("_"):
            yield name, _first_line(node)


def _by_name(modules: dict[str, ast.Module], kind: type[Definition]) -> dict[str, Definition]:
    return {
        node.name: node for tree in modules.values() for node in tree.body if isinstance(node, kind)
    }


def _first_line(node: ast.FunctionDef | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _calls(node: ast.expr) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def _in_words(node: ast.expr) -> str:
    """``partial(ResNet, block=Basic)`` as ``ResNet(block=Basic)``; another call as it is."""
    if not isinstance(node, ast.Call) or _calls(node) != "partial":
        return ast.unparse(node)
    made = ast.Call(func=node.args[0], args=node.args[1:], keywords=node.keywords)
    return ast.unparse(made)


SHELVES = {
    "models": Shelf("task.model=NAME", "models/*/*.py", _models),
    "losses": Shelf(
        "task.loss_function=NAME where labels or masks are learned, task.losses=NAME of a GAN",
        "losses/*.py",
        _losses,
    ),
    "data": Shelf("data.source=NAME", "data/*.py", _data),
    "augmentations": Shelf(
        "data.augment.0=NAME, and data.augment.0.std=0.1 for what it needs",
        "data/*.py",
        _taking("key", "batch"),
    ),
    "selections": Shelf("data.select=NAME", "data/*.py", _taking("labels", option="seed")),
    "measurements": Shelf("opsin evaluate RUN NAME", "analysis/*.py", _measurements),
    "optimizers": Shelf(
        "optimizer.method=NAME",
        "train/methods.py",
        _taking("learning_rate", "weight_decay", "mask"),
    ),
    "schedules": Shelf(
        "optimizer.schedule=NAME", "train/schedules.py", _taking("peak", "steps", "warmup")
    ),
}
"""All kinds, in the order in which they are listed."""
