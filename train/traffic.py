"""Bytes between a device's memory and its cores, read from the text of a compiled program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from train.hlo import KINDS, Instruction, Program

Computation = Mapping[str, Instruction]

# Names for what is there already, and what takes no bytes worth counting.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "iota", "domain",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}


def bytes_accessed(program: Program) -> int:
    """Bytes that one device reads from its memory and writes to it in a call of a program.

    Operands and results of every operation that is not inside a fusion, each as often as it runs.
    Of what is sliced or updated in place the slice counts alone. What the compiler keeps on the
    chip (a memory space of its own) does not count. A loop of unknown length counts once.
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
            total += _read(program, computation, instruction)
            total += _written(program, computation, instruction)
    return total


def _inside(program: Program, instruction: Instruction) -> Computation:
    """What a fusion does; nothing for other operations."""
    if instruction.kind != "fusion":
        return {}
    return program.computations.get(instruction.called[0], {})


def _parameters(inside: Computation) -> dict[int, str]:
    return {
        int(x.text[1 : x.text.index(")")]): x.name for x in inside.values() if x.kind == "parameter"
    }


def _read(program: Program, computation: Computation, instruction: Instruction) -> int:
    inside = _inside(program, instruction)
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
            total += min(whole, _used(program, inside, parameters[index], whole))
        else:
            total += whole
    return total


def _used(program: Program, inside: Computation, parameter: str, whole: int) -> int:
    """Bytes of a parameter that a fusion reads: those of its slices, if nothing else uses it.

    Fusions have fusions inside.
    """
    names = {parameter}  # its own and those of its bitcasts
    total = 0
    for user in inside.values():
        if not names & set(user.operands):
            continue
        if user.kind == "bitcast":
            names.add(user.name)
        elif user.kind == "fusion":
            deeper = _inside(program, user)
            handed = [name for i, name in _parameters(deeper).items() if user.operands[i] in names]
            if any(result.name in handed for _, result in _results(program, deeper)):
                return whole  # it comes out again, for others to use
            total += sum(_used(program, deeper, name, whole) for name in handed)
        elif user.kind in _SLICES and user.operands[0] in names:
            total += user.out
        elif user.kind == "dynamic-update-slice" and user.operands[0] in names:
            continue  # in place
        elif user.kind == "tuple" or _continues(user):
            continue  # handed on as it is
        else:
            return whole
    return total


def _written(program: Program, computation: Computation, instruction: Instruction) -> int:
    arrays = instruction.arrays
    if instruction.kind == "copy-start":
        arrays = arrays[:1]  # (the copy, the original, a flag)
    elif instruction.kind.endswith("-start"):
        arrays = arrays[len(instruction.operands) :]
    whole = sum(array.bytes for array in arrays if array.in_memory)
    if instruction.kind == "dynamic-update-slice":
        return min(whole, computation[instruction.operands[1]].out)
    results = list(_results(program, _inside(program, instruction)))
    if len(results) != len(arrays):
        return whole
    return sum(
        min(array.bytes, _new(inside, result))
        for array, (inside, result) in zip(arrays, results, strict=True)
        if array.in_memory
    )


def _results(program: Program, inside: Computation) -> Iterator[tuple[Computation, Instruction]]:
    """What comes out of a fusion, one by one, each with the fusion that makes it."""
    for root in (x for x in inside.values() if x.root):
        for name in root.operands if root.kind == "tuple" else [root.name]:
            result = _origin(inside, inside[name])
            deeper = list(_results(program, _inside(program, result)))
            # Of one that gives several results, it cannot be told which of them this is.
            yield deeper[0] if len(deeper) == 1 else (inside, result)


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
    """Whether a collective goes on here that another fusion has begun, and counted."""
    if instruction.kind in KINDS:
        return "chain_id" in instruction.text
    return instruction.kind == "custom-call" and "AsyncCollective" in instruction.text
