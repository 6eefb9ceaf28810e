"""Tensors of a file that ``torch.save`` wrote before its zip format, read without PyTorch.

Such a file is five pickles, a magic number, a version, the machine, the tree of names and tensors
and the keys of its storages, and then the bytes of each storage. A pickle is a program: what reads
it can be told to import and call anything. The machine here knows the few instructions that such a
tree takes, has no import, and calls two functions of this file. It makes texts, numbers, lists,
tuples, mappings and tensors; anything else is refused by its name.
"""

from __future__ import annotations

import io
import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from opsin.train.weights import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
MOST_AXES = 32
KINDS = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": jnp.bfloat16,
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
    "torch BoolStorage": "u1",
}
"""What a file calls its storages, and the numbers that they hold."""


class _RefusedError(Exception):
    """Something that no tree of tensors needs, or that does not fit."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A part of a storage.

    Attributes:
        storage: which holds its numbers.
        offset: of the first one.
        size: of its axes.
        stride: between neighbours along each axis.
    """

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Its numbers in float32, as an array of its own."""
        numbers = self.storage.numbers
        width = numbers.itemsize
        part = np.ndarray(  # which compares the bounds once more
            self.size,
            numbers.dtype,
            numbers,
            self.offset * width,
            [width * step for step in self.stride],
        )
        with np.errstate(over="ignore"):
            return np.array(part, np.float32, order="C")


@dataclass(eq=False)
class _Storage:
    kind: np.dtype
    count: int
    numbers: np.ndarray


@dataclass(frozen=True, eq=False)
class _Name:
    """What stands for a function or class; nothing of that name is looked up."""

    text: str


def read(path: Path) -> Any:
    """What a file holds, usually a mapping from names to ``Tensor``.

    Raises:
        WeightsError: it cannot be read, is of another format or damaged, or holds anything that is
            neither a tensor nor text, numbers, lists, tuples and mappings around them.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    if content.startswith(b"PK"):
        raise WeightsError(
            f"{path} is of PyTorch's zip format, which PyTorch reads: pip install 'opsin[torch]', "
            "or save it as safetensors"
        )
    try:
        with warnings.catch_warnings():  # of ``pickletools``, about texts that nobody wrote so
            warnings.simplefilter("ignore")
            return _File(content).tree()
    # The last ones are of a machine whose program is damaged.
    except (_RefusedError, ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise WeightsError(
            f"{path} cannot be read as a PyTorch file of weights alone: {_short(error)}; "
            "fetch it again, or save it as safetensors"
        ) from error


class _File:
    """The machine, and what it has met in a file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.file = io.BytesIO(content)
        self.storages: dict[str, _Storage] = {}
        self.rebuilt = 0

    def tree(self) -> Any:
        """What ``torch.save`` was given, once every storage has its numbers."""
        if self.run() != MAGIC or self.run() != VERSION:
            raise _RefusedError("it does not begin as one")
        machine = self.run()
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise _RefusedError("it is of a machine that writes numbers the other way round")
        tree, keys = self.run(), self.run()
        listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not listed or sorted(keys) != sorted(self.storages):
            raise _RefusedError("the storages that it lists are not those of its tensors")
        for key in keys:
            self.fill(self.storages[key])
        if self.file.read(1):
            raise _RefusedError("there is more after the last storage")
        return tree

    def fill(self, storage: _Storage) -> None:
        """Gives a storage the numbers that come next."""
        count, start = int.from_bytes(self.file.read(8), "little"), self.file.tell()
        end = start + count * storage.kind.itemsize
        if count != storage.count or end > len(self.content):
            raise _RefusedError("a storage is cut off, or longer than its tensors say")
        self.file.seek(end)
        if count:
            storage.numbers = np.frombuffer(self.content, storage.kind, count, start)

    def run(self) -> Any:
        """What the next pickle makes."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def popped(count: int | None = None) -> list[Any]:
            """The topmost objects: so many, or those above the last mark."""
            start = marks.pop() if count is None else len(stack) - count
            if not 0 <= start <= len(stack):
                raise _RefusedError("it takes more off its stack than there is")
            taken = stack[start:]
            del stack[start:]
            return taken

        for opcode, argument, _ in pickletools.genops(self.file):
            match opcode.name:
                case "PROTO" if argument == 2:
                    pass
                case "STOP":
                    (result,) = stack
                    return result
                case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(popped()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(popped(int(opcode.name[-1]))))
                case "BINPUT" | "LONG_BINPUT":
                    memo[_int(argument)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[_int(argument)])
                case "APPEND" | "APPENDS":
                    items = popped(1 if opcode.name == "APPEND" else None)
                    _own(stack[-1], list).extend(items)
                case "SETITEM" | "SETITEMS":
                    items = popped(2 if opcode.name == "SETITEM" else None)
                    pairs = zip(items[::2], items[1::2], strict=True)
                    _own(stack[-1], dict).update((_key(name), value) for name, value in pairs)
                case "BUILD":  # attributes of a mapping, such as ``_metadata``: nothing reads them
                    popped(1)
                    _own(stack[-1], dict)
                case "GLOBAL":
                    stack.append(_Name(_known(str(argument))))
                case "REDUCE":
                    function, arguments = popped(2)
                    stack.append(self.call(function, _own(arguments, tuple)))
                case "BINPERSID":
                    stack.append(self.storage(stack.pop()))
                case _:
                    told = "" if argument is None else f" {argument!r}"
                    raise _RefusedError(f"no weights need the instruction {opcode.name}{told}")
        raise _RefusedError("it is cut off")

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What stands in the place of a call."""
        call = CALLS.get(function.text) if isinstance(function, _Name) else None
        if call is None:
            raise _RefusedError("it calls what is no function of tensors")
        made = call(*arguments)
        if isinstance(made, Tensor):
            # A storage may be shared, but a small file is not to make many large arrays.
            self.rebuilt += math.prod(max(n, 1) for n in made.size)
            if self.rebuilt > len(self.content):
                raise _RefusedError("its tensors have more numbers than it has bytes")
        return made

    def storage(self, told: Any) -> _Storage:
        """The storage that a persistent id describes, still without its numbers."""
        what, name, key, _, count, view = _own(told, tuple)
        if what != "storage" or not isinstance(name, _Name) or name.text not in KINDS:
            raise _RefusedError("it refers to what is no storage")
        if view is not None or not isinstance(key, str):
            raise _RefusedError("it has a storage within a storage")
        kind = np.dtype(KINDS[name.text])
        if not 0 <= _int(count) <= len(self.content) // kind.itemsize:
            raise _RefusedError(f"a storage of {count} numbers is more than the file")
        known = self.storages.setdefault(key, _Storage(kind, count, np.zeros(0, kind)))
        if (known.kind, known.count) != (kind, count):
            raise _RefusedError("it has two storages of one name")
        return known


def _mapping() -> dict[str, Any]:
    return {}


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any
) -> Tensor:
    del requires_grad, hooks
    whole = isinstance(storage, _Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not whole or len(size) != len(stride) or len(size) > MOST_AXES:
        raise _RefusedError("a tensor has no storage, too many axes, or not a stride for each")
    if min(_int(x) for x in (offset, *size, *stride)) < 0:
        raise _RefusedError("a tensor has a negative offset, size or stride")
    # Of an axis along which nothing follows the stride says nothing, and may be any number.
    stride = tuple(
        step if n > 1 and 0 not in size else 0 for n, step in zip(size, stride, strict=True)
    )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.count if 0 not in size else offset > storage.count:
        raise _RefusedError("a tensor reaches over the end of its storage")
    return Tensor(storage, offset, size, stride)


CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _mapping,
    "torch._utils _rebuild_tensor_v2": _tensor,
}
"""All that a file may call, and what is called in its place."""


def _known(name: str) -> str:
    if name not in KINDS and name not in CALLS:
        raise _RefusedError(f"it names {name.replace(' ', '.')}, which no weights need")
    return name


def _key(name: Any) -> str | int:
    # Of tuples within tuples within tuples Python computes the hash until its stack is full.
    if type(name) not in (str, int):
        raise _RefusedError("a name in a mapping is no text")
    return name


def _int(value: Any) -> int:
    if type(value) is not int:
        raise _RefusedError("there is something else where a whole number is needed")
    return value


def _own(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _RefusedError(f"there is something else where a {kind.__name__} is needed")
    return value


def _short(error: Exception) -> str:
    told = str(error).partition("\n")[0] or type(error).__name__
    return told if len(told) < 160 else f"{told[:160]}…"
