"""The text of a compiled program (``compiled.as_text()``), and what its devices exchange.

XLA's own ``cost_analysis`` counts the body of a loop once; here it counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e5m2": 1, "f8e4m3fn": 1, "s16": 2,
    "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
    "c64": 8, "c128": 16,
}  # fmt: skip
_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION_LINE = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_ARRAY_TEXT = re.compile(r"(?P<type>[a-z]\w*)\[(?P<shape>[\d,]*)\](?P<layout>\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))"
)


@dataclass(frozen=True)
class Collective:
    """One operation in which devices exchange data.

    Attributes:
        kind: one of ``KINDS``.
        bytes: of the whole array on one device, once: the array that is reduced or exchanged, the
            result of a gather, the operand of a reduce-scatter.
        devices: how many take part in one exchange.
        times: how often it runs in a call of the program.
        asynchronous: whether other work may run meanwhile.
    """

    kind: str
    bytes: int
    devices: int
    times: int = 1
    asynchronous: bool = False

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all runs, where a ring of n devices exchanges them.

        All-reduce 2(n − 1)/n of the array, gather and scatter (n − 1)/n (Thakur et al., 2005,
        section 4); all-to-all (n − 1)/n and a permutation all of it, without what is passed on for
        others: for these two a lower bound.
        """
        share = (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.bytes * self.times


@dataclass(frozen=True)
class Array:
    """An array that an instruction returns.

    Attributes:
        bytes: of its elements, without padding.
        in_memory: whether it is in the device's memory, as opposed to one that the compiler keeps
            on the chip.
    """

    bytes: int
    in_memory: bool


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: by which others refer to it.
        kind: the operation, such as ``fusion``.
        arrays: what comes out.
        operands: names of what goes in.
        text: from the parenthesis on: operands and attributes.
        root: whether it is the result of its computation.
    """

    name: str
    kind: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def out(self) -> int:
        """Bytes of all that comes out."""
        return sum(array.bytes for array in self.arrays)

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls, but for the branches of a condition."""
        return _CALLS.findall(self.text)

    @property
    def branches(self) -> list[str]:
        """Names of the computations that a condition chooses from."""
        found = _BRANCHES.findall(self.text)
        return [name for pair in found for part in pair for name in re.findall(r"[\w.\-]+", part)]


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: name → the instructions of it by name.
        entry: name of the first to run.
        partitions: devices that run it together.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    partitions: int

    def loop(self, instruction: Instruction) -> tuple[str, int]:
        """Body of a while loop, and how often it runs; 1 if that is unknown.

        The number is XLA's, or else the only constant that the condition has to compare with:
        JAX's loops count from zero.
        """
        body = re.search(r"body=%?([\w.\-]+)", instruction.text)
        condition = re.search(r"condition=%?([\w.\-]+)", instruction.text)
        assert body is not None
        assert condition is not None
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.text)
        if known:
            return body[1], int(known[1])
        ends = [
            int(constant[1])
            for inside in self.computations.get(condition[1], {}).values()
            if inside.kind == "constant" and (constant := re.match(r"\((\d+)\)", inside.text))
        ]
        return body[1], ends[0] if len(ends) == 1 else 1


def collectives(program: Program) -> tuple[Collective, ...]:
    """Every collective of a program, in order."""
    return tuple(_collectives(program, program.entry, 1, False, set()))


def parse(text: str) -> Program:
    """The program of a text."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header["name"], {})
            entry = header["name"] if header["entry"] else entry
        elif found := _INSTRUCTION_LINE.match(line):
            instruction = _instruction(found)
            current[instruction.name] = instruction
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(found: re.Match[str]) -> Instruction:
    rest = found["rest"]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, _, _ = rest[end:].strip().partition("(")
    start = rest.index("(", end)
    inside = rest[start : _closing(rest, start)]
    return Instruction(
        name=found["name"],
        kind=kind,
        arrays=tuple(_arrays(rest[:end])),
        operands=tuple(_OPERAND.findall(inside)),
        text=rest[start:],
        root=found["root"] is not None,
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text)


def _arrays(text: str) -> Iterator[Array]:
    for found in _ARRAY_TEXT.finditer(text):
        if found["type"] not in _BYTES:
            continue  # token, opaque
        elements = math.prod(int(side) for side in found["shape"].split(",") if side)
        space = re.search(r"S\((\d+)\)", found["layout"] or "")
        yield Array(math.ceil(elements * _BYTES[found["type"]]), space is None or space[1] == "0")


def _collectives(
    program: Program, name: str, times: int, asynchronous: bool, seen: set[tuple[str, ...]]
) -> Iterator[Collective]:
    for instruction in program.computations.get(name, {}).values():
        kind = instruction.kind.removesuffix("-start")
        if kind in KINDS:
            # A TPU does one collective piece by piece, in the fusions of a chain.
            chain = re.search(r'channel_id=(\d+),.*chain_id="(\d+)"', instruction.text)
            if chain and chain.groups() in seen:
                continue
            seen |= {chain.groups()} if chain else set()
            pieces = chain is not None or "async_collective_name" in instruction.text
            started = instruction.kind != kind
            devices = _group(instruction.text, program.partitions)
            yield Collective(
                # How a TPU writes it: an all-reduce that keeps a slice of the result.
                "reduce-scatter" if name.startswith("all-reduce-scatter") else kind,
                _payload(instruction, kind, devices),
                devices,
                times,
                asynchronous or pieces or started,
            )
        elif instruction.kind == "while":
            body, count = program.loop(instruction)
            yield from _collectives(program, body, times * count, asynchronous, seen)
        else:
            later = asynchronous or instruction.kind == "async-start"
            branches = [
                list(_collectives(program, branch, times, later, seen))
                for branch in instruction.branches
            ]
            yield from max(branches, key=lambda found: sum(c.sent for c in found), default=[])
            for called in instruction.called:
                yield from _collectives(program, called, times, later, seen)


def _payload(instruction: Instruction, kind: str, devices: int) -> int:
    arrays = [array.bytes for array in instruction.arrays]
    if instruction.kind.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # (what goes in, what comes out, flags…)
        count = len(instruction.operands)
        arrays = arrays[count : 2 * count]
    return sum(arrays) * (devices if kind == "reduce-scatter" else 1)


def _group(text: str, everyone: int) -> int:
    """How many devices exchange data with one another."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])  # whole, or a part of one
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    return everyone
