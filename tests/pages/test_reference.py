"""The reference holds every public name, read without an import, with its formulas set."""

# ruff: noqa: RUF001, formulas

import ast
import re
from pathlib import Path

import pytest

from opsin.pages import reference

HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.pages(HOUSE)


def public(path: Path) -> set[str]:
    """The functions and classes of a file."""
    body = ast.parse(path.read_text()).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"}


def test_every_public_name_appears_once(pages):
    rooms = {path.parent for path in HOUSE.glob("*/__init__.py")}
    rooms -= {HOUSE / name for name in ("experiments", "pages", "tests")}
    files = [path for room in rooms for path in room.rglob("*.py") if path.stem[0] != "_"]
    assert len(files) > 150
    for path in files:
        parts = path.relative_to(HOUSE).with_suffix("").parts
        page = pages[".".join(parts[:-1]) + ".rst"]
        _, start, rest = page.partition(f".. py:module:: opsin.{'.'.join(parts)}\n")
        assert start, path
        section = rest.partition(".. py:module::")[0]
        named = re.findall(r"^\.\. py:(?:function|class):: (\w+)", section, re.MULTILINE)
        assert sorted(named) == sorted(public(path))
    listed = pages["index.rst"].split()
    assert {name.removesuffix(".rst") for name in pages} - {"index"} <= set(listed)


CODE = '''
"""A module: q(x_t|x_0).

As typed:

    opsin run it
"""

from dataclasses import dataclass
from jaxtyping import Array, Float

from opsin.train.state import State

LIMIT = 3
"""At most."""
_HIDDEN = 4


@dataclass
class Box(Base):
    """A box.

    Attributes:
        width: of ``x_1``, w_k ≥ 0.
    """

    width: Float[Array, " n"]
    rest: tuple[int, ...] = ()

    @property
    def area(self) -> float:
        """width²."""

    def grow(self, by: Array, *, state: State):
        """Larger.

        Args:
            by: K.

        Returns:
            A state: the next one.

        Raises:
            ValueError: no.
        """

    def undocumented(self): ...


def _private(): ...
'''
PAGE = r"""
A module: q(x\ :sub:`t`\ \|x\ :sub:`0`\ ).

As typed:

::

    opsin run it

.. py:data:: LIMIT
   :value: 3

   At most.

.. py:class:: Box(width: ~jaxtyping.Float[~jaxtyping.Array, 'n'], rest: tuple[int, ...]=())

   A box.

   :param width: of ``x_1``, w\ :sub:`k` ≥ 0.

   .. py:property:: area
      :type: float

      width².

   .. py:method:: grow(by: ~jaxtyping.Array, *, state: ~opsin.train.state.State)

      Larger.

      :param by:
                 K\.

      :returns: A state: the next one.

      :raises ValueError: no.
"""


def test_a_module_becomes_a_section(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "room/__init__.py").write_text('"""A room."""\n')
    (tmp_path / "room/_private.py").write_text("")
    (tmp_path / "room/box.py").write_text(CODE.lstrip())
    found = reference.pages(tmp_path)
    assert set(found) == {"index.rst", "room.rst"}
    head = ".. py:module:: opsin.room.box\n\nopsin.room.box\n--------------\n"
    assert found["room.rst"] == f"opsin.room\n==========\n\nA room.\n\n{head}{PAGE}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("α_t x_0 + σ_t ε", r"α\ :sub:`t` x\ :sub:`0` + σ\ :sub:`t` ε"),
        ("(1 − p_k)^γ, 10000^(-4k / w)", r"(1 − p\ :sub:`k`\ )\ :sup:`γ`\ , 10000\ :sup:`-4k / w`"),
        ("σ_q² and β̃_t", r"σ\ :sub:`q`\ ² and β̃\ :sub:`t`"),
        ("a name_of_two and ``x_0 ^ 2 * |y|``", "a name_of_two and ``x_0 ^ 2 * |y|``"),
        ("e^{p/τ} R_{n−1}, 2**n - 1", r"e\ :sup:`p/τ` R\ :sub:`n−1`\ , 2\ :sup:`n` - 1"),
        ("r^(-c / (C - 1)), *all* of [*n, d]", r"r\ :sup:`-c / (C - 1)`\ , *all* of [\*n, d]"),
        ("by --dry-run, -- or a-b--c", r"by ``--dry-run``\ , -- or a-b--c"),
        ("``partial``s of |a| * b", r"``partial``\ s of \|a\| \* b"),
        (":param x_t: x_t.", r":param x_t: x\ :sub:`t`\ ."),
        ("::\n\n    x_0 = |y|\n\nx_0", "::\n\n    x_0 = |y|\n\nx\\ :sub:`0`"),
    ],
)
def test_formulas_are_set(text, expected):
    assert reference.typeset(text) == expected
