"""Bytes between a device's memory and its cores, read from the text of a compiled program.

Without loops and memory on the chip they are what ``cost_analysis`` of XLA says. That counts the
body of a loop once, a slice of a stack of layers as the whole stack, and what stays on the chip: by
it ViT-S/16 on v5e:16x16 moves 8.0 GB a step instead of 2.5, though its 12 layers count as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from opsin.planning.hlo import KINDS, Instruction, Program

Computation = Mapping[str, Instruction]

# Names for what is there already, and what takes hardly any bytes.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "iota", "domain",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}


def bytes_accessed(program: Program) -> int:
    """Bytes that one device reads from its memory and writes to it in a call of a program.

    Operands and results of every operation that is not inside a fusion, each as often as it runs.
    If an array is sliced or updated in place, only the slice counts. Arrays that the compiler keeps
    on the chip (in a memory space of its own) do not count. A loop of unknown length counts once.
    """
    return _moved(program, program.entry)


def _moved(program: Program, name: str) -> int:
    total = 0
    computation = program.computations.get(name, {})
    for instruction in computation.values():
        kind = instruction.kind
        if kind in _FREE or kind.endswith(("-done", "-update")):
            continue
        if kind == "while":
            body, count = program.loop(instruction)
            total += count * _moved(program, body)
        elif kind in ("call", "async-start"):
            total += sum(_moved(program, called) for called in instruction.called)
        elif kind == "conditional":
            total += max((_moved(program, branch) for branch in instruction.branches), default=0)
        else:
            inside = _inside(program, instruction) if kind == "fusion" else {}
            total += _read(computation, instruction, inside)
            total += _written(computation, instruction, inside)
    return total


def _inside(program: Program, fusion: Instruction) -> Computation:
    """What a fusion does, where the fusions inside it, of one result each, are written out."""
    flat: dict[str, Instruction] = {}
    for instruction in program.computations.get(fusion.called[0], {}).values():
        deeper = _inside(program, instruction) if instruction.kind == "fusion" else {}
        root = next((x.name for x in deeper.values() if x.root and x.kind != "tuple"), None)
        if root is None:
            flat[instruction.name] = instruction
            continue
        prefix = f"{instruction.name}/"
        handed = {x: instruction.operands[i] for i, x in _parameters(deeper).items()}
        for inner in deeper.values():
            kind, operands = inner.kind, tuple(prefix + operand for operand in inner.operands)
            if inner.name in handed:
                kind, operands = "bitcast", (handed[inner.name],)
            name = prefix + inner.name
            flat[name] = replace(inner, name=name, kind=kind, operands=operands, root=False)
        flat[instruction.name] = replace(instruction, kind="bitcast", operands=(prefix + root,))
    return flat


def _parameters(inside: Computation) -> dict[int, str]:
    return {
        int(x.text[1 : x.text.index(")")]): x.name for x in inside.values() if x.kind == "parameter"
    }


def _read(computation: Computation, instruction: Instruction, inside: Computation) -> int:
    parameters = _parameters(inside)
    total = 0
    for index, name in enumerate(instruction.operands):
        source = computation.get(name)
        if source is None:  # of another computation, by the name of an attribute
            continue
        whole = sum(array.bytes for array in source.arrays if array.in_memory)
        if instruction.kind in _SLICES and index == 0:
            total += min(whole, instruction.out)
        elif instruction.kind == "dynamic-update-slice" and index == 0:
            continue  # in place
        elif index in parameters:
            total += min(whole, _used(inside, parameters[index], whole))
        else:
            total += whole
    return total


def _used(inside: Computation, parameter: str, whole: int) -> int:
    """Bytes of a parameter that a fusion reads: those of its slices, if nothing else uses it."""
    names = {parameter}  # its own and those of its bitcasts
    results = {result.name for result in _results(inside)}
    total = 0
    for user in inside.values():
        if not names & set(user.operands):
            continue
        if user.kind == "bitcast":
            names.add(user.name)
        elif user.kind in _SLICES and user.operands[0] in names:
            total += user.out
        elif user.kind == "dynamic-update-slice" and user.operands[0] in names:
            if user.name not in results:
                return whole
            continue  # in place
        elif user.kind == "tuple" or _continues(user):
            continue  # handed on as it is
        else:
            return whole
    return total


def _written(computation: Computation, instruction: Instruction, inside: Computation) -> int:
    arrays = instruction.arrays
    if instruction.kind == "copy-start":
        arrays = arrays[:1]  # (the copy, the original, a flag)
    elif instruction.kind.endswith("-start"):
        arrays = arrays[len(instruction.operands) :]
    whole = sum(array.bytes for array in arrays if array.in_memory)
    if instruction.kind == "dynamic-update-slice":
        return min(whole, computation[instruction.operands[1]].out)
    results = list(_results(inside))
    if len(results) != len(arrays):
        return whole
    return sum(
        min(array.bytes, _new(inside, result))
        for array, result in zip(arrays, results, strict=True)
        if array.in_memory
    )


def _results(inside: Computation) -> Iterator[Instruction]:
    """What comes out of a fusion, one by one."""
    for root in (x for x in inside.values() if x.root):
        for name in root.operands if root.kind == "tuple" else [root.name]:
            yield _origin(inside, inside[name])


def _origin(inside: Computation, instruction: Instruction) -> Instruction:
    while instruction.kind in ("bitcast", "get-tuple-element"):
        instruction = inside[instruction.operands[0]]
    return instruction


def _new(inside: Computation, result: Instruction) -> int:
    """Bytes of a result that a fusion writes: those of an update, where it is made in place."""
    if result.kind == "dynamic-update-slice":
        return inside[result.operands[1]].out
    if result.kind == "parameter" or _continues(result):
        return 0
    return result.out


def _continues(instruction: Instruction) -> bool:
    """Whether this continues a collective that another fusion has begun, and counted."""
    if instruction.kind in KINDS:
        return "chain_id" in instruction.text
    return instruction.kind == "custom-call" and "AsyncCollective" in instruction.text
