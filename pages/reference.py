"""The reference: signatures and docstrings of every public module, read without importing it.

A package is a page, a module a section of it. What comes out is reStructuredText with Sphinx's
directives, so that search, index and links to anchors are Sphinx's own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

Definition = ast.FunctionDef | ast.ClassDef


class _InFull(ast.NodeTransformer):
    """Names as they are known outside of a module: ``State`` is ``~opsin.train.state.State``.

    Sphinx shows what is behind the last dot. With a name of a library in full, no link leads to one
    of ours that is called alike.
    """

    def __init__(self, names: dict[str, str]):
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A type, in full."""
        return ast.Name(self.names.get(node.id, node.id))

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """Shapes without the blank that linters want before a single axis."""
        return ast.Constant(node.value.strip() if isinstance(node.value, str) else node.value)


ELSEWHERE = ("experiments", "pages")
"""Rooms that have no reference: experiments are in the gallery."""

_GOOGLE: Any = Config(napoleon_use_ivar=True, napoleon_use_rtype=False)
_TOKENS = re.compile(
    r"(?P<kept>``[^`]+``|^ *:\w+[^:\n]*:"  # code, the name of a field
    r"|(?<![\w*])\*\w(?:[^*\n]*\w)?\*(?![\w*])"  # what is stressed
    r"|^::\n\n(?:(?: {4}.*)?\n)*(?: {4}.*)?)"
    r"|(?<![\w-])(?P<flag>--[a-z][a-z-]*)"
    r"|(?<!\w)(?P<base>\w[\u0300-\u036f]?)_(?:\{(?P<lower>[^{}]*)\}|(?P<low>[^\W_¹²³½]+))"
    r"|(?:\^|(?<=\w)\*\*)(?:\((?P<group>(?:[^()]|\([^()]*\))*)\)|\{(?P<higher>[^{}]*)\}"
    r"|(?P<high>[\u2212-]?\w+))"
    r"|(?P<escaped>[*|]|(?<=\w)_(?!\w))",
    re.MULTILINE,
)
_SECTION = re.compile(r"^(?:Args|Attributes|Raises|Returns|Yields):$", re.MULTILINE)
_ALONE = re.compile(r"^((?: *:\w+[^:\n]*:)? *(?:[A-Za-z]|\d+))\.$", re.MULTILINE)
_GIVEN = re.compile(r"^((?:Returns|Yields):\n +)", re.MULTILINE)


def packages(house: Path) -> dict[str, list[Path]]:
    """Name of a package → its modules, for all that is public."""
    rooms = sorted(path.parent for path in house.glob("*/__init__.py"))
    folders = sorted(
        path.parent
        for room in rooms
        if room.name not in (*ELSEWHERE, "tests")
        for path in room.rglob("__init__.py")
    )
    found = {".".join(folder.relative_to(house).parts): folder for folder in folders}
    return {name: _public_modules(folder) for name, folder in found.items()}


def pages(house: Path) -> dict[str, str]:
    """File name → text of every page, and of their index."""
    found = packages(house)
    index = [
        _title("Reference", "="),
        "Every public module, by package: what a call takes and returns.",
    ]
    index.append("\n   ".join([".. toctree::", ":maxdepth: 1", "", *found]))
    texts = {"index.rst": "\n\n".join(index) + "\n"}
    for name, modules in found.items():
        folder = house.joinpath(*name.split("."))
        about = _docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        sections = [_section(path, house) for path in modules]
        texts[f"{name}.rst"] = "\n\n".join([_title(f"opsin.{name}", "="), about, *sections]) + "\n"
    return texts


def typeset(text: str) -> str:
    """Formulas of reStructuredText: x_0 with a subscript, (1 - p)^γ or 2**n with a superscript.

    Code in double backquotes stays, and a stressed *word*; a flag is code; a bar or star is itself.
    """
    return _TOKENS.sub(_set, text)


def signature(node: Definition) -> str:
    """As it is called: ``name(a: int, *, b: float = 0.0) -> int``; the fields of a dataclass."""
    if isinstance(node, ast.ClassDef):
        start = next((m for m in _functions(node) if m.name == "__init__"), None)
        fields = ", ".join(ast.unparse(field).replace(" = ", "=") for field in _fields(node))
        return f"{node.name}({_arguments(start, bound=True) if start else fields})"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({_arguments(node, bound=False)}){returns}"


def _public_modules(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]


def _section(path: Path, house: Path) -> str:
    """A module: its docstring, then all that is public, in the order of the file."""
    text = path.read_text(encoding="utf-8")
    name = ".".join(("opsin", *path.relative_to(house).with_suffix("").parts))
    module = _with_links(ast.parse(text), name)
    parts = [f".. py:module:: {name}", _title(name, "-"), _docstring(module)]
    for node, following in zip(module.body, [*module.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            parts.append(_definition(node))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            parts.extend(_constants(node, following))
    return "\n\n".join(part for part in parts if part)


def _with_links(module: ast.Module, name: str) -> ast.Module:
    """Writes types in full in all annotations, so that those of this house are links."""
    names = {
        alias.asname or alias.name: f"~{node.module}.{alias.name}"
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assigned = [node.targets for node in module.body if isinstance(node, ast.Assign)]
    own = [each.id for targets in assigned for each in targets if isinstance(each, ast.Name)]
    in_full = _InFull(names | {each: f"~{name}.{each}" for each in own})
    for node in ast.walk(module):
        for field in ("annotation", "returns"):
            if (hint := getattr(node, field, None)) is not None:
                setattr(node, field, in_full.visit(hint))
    return module


def _definition(node: Definition) -> str:
    if isinstance(node, ast.FunctionDef):
        return _directive("function", signature(node), _docstring(node))
    methods = [_method(each) for each in _functions(node) if _shown(each)]
    return _directive("class", signature(node), "\n\n".join([_docstring(node), *methods]))


def _method(node: ast.FunctionDef) -> str:
    decorators = {ast.unparse(each) for each in node.decorator_list}
    text = _docstring(node)
    if "property" in decorators:
        kind = f":type: {ast.unparse(node.returns)}\n\n" if node.returns else "\n"
        return _directive("property", node.name, kind + text)
    bound = not decorators & {"staticmethod"}
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return _directive("method", f"{node.name}({_arguments(node, bound=bound)}){returns}", text)


def _constants(node: ast.Assign | ast.AnnAssign, following: ast.stmt | None) -> Iterator[str]:
    """Public names with their value, if that is short, and the string below them."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    value = ast.unparse(node.value) if node.value else ""
    shown = f":value: {value}\n\n" if 0 < len(value) <= 80 else "\n"
    below = following.value if isinstance(following, ast.Expr) else None
    about = str(below.value) if isinstance(below, ast.Constant) else ""
    for target in targets:
        if isinstance(target, ast.Name) and not target.id.startswith("_"):
            yield _directive("data", target.id, shown + typeset(about))


def _functions(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [each for each in node.body if isinstance(each, ast.FunctionDef)]


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """What the constructor of a dataclass or Flax module takes."""
    return [
        each
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and not ast.unparse(each.target).startswith("_")
        and "ClassVar" not in ast.unparse(each.annotation)
    ]


def _shown(node: ast.FunctionDef) -> bool:
    public = not node.name.startswith("_") or node.name == "__call__"
    return public and ast.get_docstring(node) is not None


def _arguments(node: ast.FunctionDef, *, bound: bool) -> str:
    """What a caller writes: without the ``self`` of a bound method."""
    text = ast.unparse(node.args)
    return re.sub(r"^(self|cls)(, (/, )?)?", "", text) if bound else text


def _docstring(node: Definition | ast.Module) -> str:
    text = ast.get_docstring(node) or ""
    first = _SECTION.search(text)
    end = first.start() if first else len(text)
    about = re.sub(r"\n\n(?=    \S)", "\n\n::\n\n", text[:end])  # what is indented is code
    text = about + _GIVEN.sub(r"\1: ", text[end:])  # else what is before a colon is a type
    lines = _ALONE.sub(r"\1\.", str(GoogleDocstring(text, _GOOGLE)).strip())  # "K." is no list
    return typeset(lines.replace(":ivar ", ":param "))  # fields are what a constructor takes


def _directive(kind: str, called: str, text: str) -> str:
    body = "\n".join(f"   {line}".rstrip() for line in text.splitlines())
    return f".. py:{kind}:: {called}\n{'' if text.startswith((':', chr(10))) else chr(10)}{body}"


def _set(found: re.Match[str]) -> str:
    after = found.string[found.end() : found.end() + 1]
    close = "" if after in ("", " ", "\n") else "\\ "
    if found["kept"]:
        joined = found["kept"].endswith("`") and after.isalnum()
        return found["kept"] + ("\\ " if joined else "")
    if found["flag"]:
        return f"``{found[0]}``{close}"
    if found["base"]:
        return rf"{found['base']}\ :sub:`{found['lower'] or found['low']}`{close}"
    if raised := found["group"] or found["higher"] or found["high"]:
        return rf"\ :sup:`{raised}`{close}"
    return f"\\{found[0]}"


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}"
