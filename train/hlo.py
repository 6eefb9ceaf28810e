"""What a compiled program sends and moves, read from its text (``compiled.as_text()``).

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
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_ARRAY = re.compile(r"(?P<type>[a-z]\w*)\[(?P<shape>[\d,]*)\](?P<layout>\{[^}]*\})?")
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
        bytes: of the whole array on one device, once: what is reduced, what comes out of a gather,
            what goes into a reduce-scatter, what is exchanged.
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

        All-reduce 2(n − 1)/n of the array, gather, scatter and all-to-all (n − 1)/n, a permutation
        all of it (Thakur et al., 2005, section 4).
        """
        share = (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.bytes * self.times


@dataclass(frozen=True)
class _Array:
    bytes: int
    in_memory: bool  # as opposed to what the compiler keeps on the chip


@dataclass(frozen=True)
class _Instruction:
    name: str
    kind: str  # the operation
    arrays: tuple[_Array, ...]  # what comes out
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def out(self) -> int:
        return sum(array.bytes for array in self.arrays)


@dataclass(frozen=True)
class _Program:
    computations: Mapping[str, Mapping[str, _Instruction]]
    entry: str  # the first to run
    partitions: int  # devices that run it together


def collectives(text: str) -> tuple[Collective, ...]:
    """Every collective of a compiled program, in order."""
    program = _parse(text)
    return tuple(_collectives(program, program.entry, 1, False, set()))


def bytes_accessed(text: str) -> int:
    """Bytes that one device reads from its memory and writes to it in a call of the program.

    Operands and results of every operation that is not inside a fusion, each as often as it runs.
    Of what is sliced or updated in place the slice counts alone. What the compiler keeps on the
    chip (a memory space of its own) does not count. A loop of unknown length counts once.
    """
    program = _parse(text)
    return _moved(program, program.entry)


def _parse(text: str) -> _Program:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header["name"], {})
            entry = header["name"] if header["entry"] else entry
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found)
            current[instruction.name] = instruction
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return _Program(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(found: re.Match[str]) -> _Instruction:
    rest = found["rest"]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, _, _ = rest[end:].strip().partition("(")
    start = rest.index("(", end)
    inside = rest[start : _closing(rest, start)]
    return _Instruction(
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


def _arrays(text: str) -> Iterator[_Array]:
    for found in _ARRAY.finditer(text):
        if found["type"] not in _BYTES:
            continue  # token, opaque
        elements = math.prod(int(side) for side in found["shape"].split(",") if side)
        space = re.search(r"S\((\d+)\)", found["layout"] or "")
        yield _Array(math.ceil(elements * _BYTES[found["type"]]), space is None or space[1] == "0")


def _collectives(
    program: _Program, name: str, times: int, asynchronous: bool, seen: set[tuple[str, ...]]
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
                # How a TPU writes it: an all-reduce of which a slice is kept.
                "reduce-scatter" if name.startswith("all-reduce-scatter") else kind,
                _payload(instruction, kind, devices),
                devices,
                times,
                asynchronous or pieces or started,
            )
        elif instruction.kind == "while":
            body, count = _loop(program, instruction)
            yield from _collectives(program, body, times * count, asynchronous, seen)
        else:
            later = asynchronous or instruction.kind == "async-start"
            branches = [
                list(_collectives(program, branch, times, later, seen))
                for branch in _branches(instruction)
            ]
            yield from max(branches, key=lambda found: sum(c.sent for c in found), default=[])
            for called in _CALLS.findall(instruction.text):
                yield from _collectives(program, called, times, later, seen)


def _payload(instruction: _Instruction, kind: str, devices: int) -> int:
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


def _loop(program: _Program, instruction: _Instruction) -> tuple[str, int]:
    """Body of a loop, and how often it runs: as XLA says, or up to the constant it compares to."""
    body = re.search(r"body=%?([\w.\-]+)", instruction.text)
    condition = re.search(r"condition=%?([\w.\-]+)", instruction.text)
    assert body is not None
    assert condition is not None
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.text)
    if known:
        return body[1], int(known[1])
    ends = [
        int(constant[1])
        for inside in program.computations.get(condition[1], {}).values()
        if inside.kind == "constant" and (constant := re.match(r"\((\d+)\)", inside.text))
    ]
    return body[1], ends[0] if len(ends) == 1 else 1


def _branches(instruction: _Instruction) -> list[str]:
    found = _BRANCHES.findall(instruction.text)
    return [name for pair in found for part in pair for name in re.findall(r"[\w.\-]+", part)]


# Memory.

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "iota", "get-dimension-size", "domain",
}  # fmt: skip


def _moved(program: _Program, name: str) -> int:
    total = 0
    instructions = program.computations.get(name, {})
    for instruction in instructions.values():
        kind = instruction.kind
        if kind in _FREE or kind.endswith(("-done", "-update")):
            continue
        if kind == "while":
            body, count = _loop(program, instruction)
            total += count * _moved(program, body)
        elif kind in ("call", "async-start"):
            total += sum(_moved(program, called) for called in _CALLS.findall(instruction.text))
        elif kind == "conditional":
            total += max((_moved(program, branch) for branch in _branches(instruction)), default=0)
        else:
            total += _touched(program, instructions, instruction)
    return total


def _touched(
    program: _Program, instructions: Mapping[str, _Instruction], instruction: _Instruction
) -> int:
    """Bytes that one operation reads and writes."""
    inside: Mapping[str, _Instruction] = {}
    if instruction.kind == "fusion":
        (called,) = _CALLS.findall(instruction.text)[:1]
        inside = program.computations.get(called, {})
    sources = [instructions[name] for name in instruction.operands if name in instructions]
    read = 0
    for index, source in enumerate(sources):
        whole = sum(array.bytes for array in source.arrays if array.in_memory)
        read += min(whole, _read(instruction, index, inside, sources, whole))
    written = instruction.arrays
    if instruction.kind.endswith("-start"):
        written = written[:1] if instruction.kind == "copy-start" else written[len(sources) :]
    out = sum(array.bytes for array in written if array.in_memory)
    return read + min(out, _updated(instruction, inside, sources, out))


def _read(
    instruction: _Instruction,
    index: int,
    inside: Mapping[str, _Instruction],
    sources: list[_Instruction],
    whole: int,
) -> int:
    """Bytes of operand ``index`` that are read: those of its slices, if nothing else uses it."""
    if instruction.kind in ("dynamic-slice", "slice", "gather") and index == 0:
        return instruction.out
    if instruction.kind == "dynamic-update-slice":
        return 0 if index == 0 else whole
    parameter = next(
        (
            x.name
            for x in inside.values()
            if x.kind == "parameter" and x.text.startswith(f"({index})")
        ),
        None,
    )
    if parameter is None:
        return whole
    users = _users(inside, parameter)
    if not users:
        return whole
    total = 0
    for user in users:
        if user.kind in ("dynamic-slice", "slice", "gather") and user.operands[0] in _same(
            inside, parameter
        ):
            total += user.out
        elif user.kind == "dynamic-update-slice" and user.operands[0] in _same(inside, parameter):
            continue  # in place
        else:
            return whole
    return total


def _updated(
    instruction: _Instruction,
    inside: Mapping[str, _Instruction],
    sources: list[_Instruction],
    whole: int,
) -> int:
    """Bytes of the result that are written: those of the update, where it is made in place."""
    if instruction.kind == "dynamic-update-slice":
        return sources[1].out if len(sources) > 1 else whole
    root = next((x for x in inside.values() if x.root), None)
    while root is not None and root.kind == "bitcast":
        root = inside.get(root.operands[0])
    if root is not None and root.kind == "dynamic-update-slice":
        update = inside.get(root.operands[1])
        return update.out if update else whole
    return whole


def _same(inside: Mapping[str, _Instruction], name: str) -> set[str]:
    """Names of an array inside a fusion: its own and those of its bitcasts."""
    names = {name}
    for other in inside.values():
        if other.kind == "bitcast" and other.operands[0] in names:
            names.add(other.name)
    return names


def _users(inside: Mapping[str, _Instruction], name: str) -> list[_Instruction]:
    names = _same(inside, name)
    return [x for x in inside.values() if x.kind != "bitcast" and names & set(x.operands)]
