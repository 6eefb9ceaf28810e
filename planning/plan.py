"""The memory and speed of a run on devices that are not here.

The very step of the run is compiled for them; its parameters are shapes only. Sizes, collectives
and memory are the compiler's. The time is a model, the roofline of Williams et al., 2009: every
chip works at its published peak, and computing, memory and interconnect hide behind one another.
No real run is faster than that.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jaxtyping import PyTree

from opsin.data.examples import Examples
from opsin.planning.chips import Chip, Topology
from opsin.planning.hlo import Collective, collectives, parse
from opsin.planning.traffic import bytes_accessed
from opsin.train.experiment import Experiment
from opsin.train.feed import FeedSpec
from opsin.train.program import build
from opsin.train.settings import SettingError
from opsin.train.sharding import DeviceError, make_mesh
from opsin.train.state import State

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
        parameters: of the model.
        statistics: the other variables of the model, such as those of batch norm.
        optimizer: the state of the optimiser.
        average: the moving average, or 0.
        data: the training set where it lives on the device, and the batch.
        needed: of the whole step, by the compiler: all of these, padded, and the temporaries.
        temporaries: activations, gradients and whatever else lives within a step; None where the
            step does not fit and the compiler says no more than what it needed.
        available: of the chip; None if unknown.
    """

    parameters: int
    statistics: int
    optimizer: int
    average: int
    data: int
    needed: int
    temporaries: int | None
    available: int | None

    @property
    def excess(self) -> float:
        """Needed over available memory; 0 if that is not known."""
        return 0.0 if self.available is None else self.needed / self.available

    @property
    def fits(self) -> bool:
        """Whether the step fits; True where the memory is not known."""
        enough = self.available is None or self.needed <= self.available
        return enough and self.temporaries is not None


@dataclass(frozen=True)
class Exchange:
    """All collectives of a kind in one step of one chip.

    Attributes:
        kind: such as ``all-reduce``.
        count: how many run.
        asynchronous: how many of these leave the chip free to compute meanwhile.
        bytes: of all arrays that they communicate.
        sent: bytes that the chip sends for them; see ``planning.hlo.Collective``.
    """

    kind: str
    count: int
    asynchronous: int
    bytes: int
    sent: float


@dataclass(frozen=True)
class Cost:
    """What one chip does in one step.

    Attributes:
        model_flops: of the chip's share, without what is computed twice to save memory.
        flops: with that; both are closed forms, see ``train.host.accounting.model_flops``.
        compiler_flops: XLA's own count, of everything, and of the body of a loop once.
        compiler_bytes: XLA's own count of bytes accessed, what stays on the chip included, and the
            body of a loop once.
        bytes_accessed: between memory and chip; see ``planning.traffic.bytes_accessed``.
        exchanges: collectives by kind.
    """

    model_flops: float
    flops: float
    compiler_flops: float
    compiler_bytes: float
    bytes_accessed: int
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class Prediction:
    """The roofline of one step. A model: see the docstring of this file.

    Attributes:
        compute: seconds at the peak of matrix products.
        memory: seconds of ``bytes_accessed``.
        interconnect: seconds of what is sent, over all links of a chip.
        seconds: the longest of the three.
        seconds_without_overlap: their sum.
        limit: which of them is the longest.
        utilization: model FLOP/s over the peak.
        images_per_second: of all chips.
    """

    compute: float
    memory: float
    interconnect: float
    seconds: float
    seconds_without_overlap: float
    limit: str
    utilization: float
    images_per_second: float


@dataclass(frozen=True)
class Plan:
    """The plan of a step on a topology.

    Attributes:
        topology: such as ``v5e:16x16``.
        mesh: devices along each axis.
        batch: images of a step, over all chips.
        accumulate: microbatches that it is cut into.
        examples: training images.
        steps: of the run.
        parameters: how many the model has.
        memory: what a chip holds.
        cost: what a chip does; None where the step does not fit.
        prediction: None also where the chip has no published numbers.
        compile_seconds: time that XLA took.
        compile_cpu_seconds: CPU time of it, over all cores.
    """

    topology: str
    mesh: Mapping[str, int]
    batch: int
    accumulate: int
    examples: int
    steps: int
    parameters: int
    memory: Memory
    cost: Cost | None
    prediction: Prediction | None
    compile_seconds: float
    compile_cpu_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the step fits into the memory of a chip."""
        return self.memory.fits

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.mesh.values())


def plan(
    experiment: Experiment,
    examples: Examples,
    topology: Topology,
    *,
    plain: Experiment | None = None,
) -> Plan:
    """Compiles the training step of an experiment for a topology, and reads the result.

    Args:
        experiment: as for a run.
        examples: the training set, or ``data.sources.blank`` of its shapes: none is read.
        topology: what to compile for.
        plain: the same without recomputation, to count the FLOPs of the model.

    Raises:
        TopologyError: the topology cannot be compiled for here.
        DeviceError, DurationError, SettingError: as ``train.program.build``; and where the mesh
            does not take every device.
    """
    data, loop = experiment.data, experiment.loop
    if loop.strategy == "pmap":
        raise SettingError(
            "loop.strategy='pmap' compiles its step when it runs: plan it with loop.strategy='jit'"
        )
    devices = topology.devices()
    mesh = make_mesh(experiment.parallel, devices)
    if mesh.size != topology.size:
        taken = " x ".join(str(size) for size in mesh.shape.values())
        raise DeviceError(
            f"the mesh takes {taken} = {mesh.size} of the {topology.size} devices of {topology}: "
            "set parallel.data=-1 to take all that are left"
        )
    feed = FeedSpec.of(mesh, examples, data.batch, data.resident_megabytes)

    program = build(experiment, feed)
    store, items = feed.store(), feed.items(loop.steps_per_dispatch)
    flops = program.flops()
    counted = flops if plain is None else build(plain, feed).flops()
    began = time.perf_counter(), time.process_time()
    cost = None
    try:
        compiled: Any = program.compile()
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        took = time.perf_counter() - began[0], time.process_time() - began[1]
        needed, available = memory_asked(str(error))
        memory = _memory(program.state, (store, items), available, needed, None)
    else:
        took = time.perf_counter() - began[0], time.process_time() - began[1]
        found = compiled.memory_analysis()
        needed = (
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
            + found.temp_size_in_bytes
            + found.generated_code_size_in_bytes
        )
        memory = _memory(
            program.state, (store, items), topology.chip.hbm_bytes, needed, found.temp_size_in_bytes
        )
        cost = _cost(compiled, counted, flops, topology.size)
    known = cost is not None and topology.chip.peak_flops_bf16 is not None
    return Plan(
        topology=str(topology),
        mesh=dict(program.mesh.shape),
        batch=data.batch,
        accumulate=loop.accumulate,
        examples=feed.examples,
        steps=program.steps,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(program.state.params)),
        memory=memory,
        cost=cost,
        prediction=predict(cost, topology.chip, data.batch) if cost and known else None,
        compile_seconds=took[0],
        compile_cpu_seconds=took[1],
    )


def predict(cost: Cost, chip: Chip, batch: int) -> Prediction:
    """The roofline of a step of ``batch`` images, from what one chip does in it.

    Raises:
        ValueError: the chip has no published numbers.
    """
    peak, memory, links = chip.peak_flops_bf16, chip.hbm_bandwidth, chip.interconnect_bandwidth
    if peak is None or memory is None or links is None:
        raise ValueError(f"no published numbers for {chip.name}")
    parts = {
        "compute": cost.flops / peak,
        "memory": cost.bytes_accessed / memory,
        "interconnect": sum(exchange.sent for exchange in cost.exchanges) / links,
    }
    limit = max(parts, key=lambda name: parts[name])
    return Prediction(
        **parts,
        seconds=parts[limit],
        seconds_without_overlap=sum(parts.values()),
        limit=limit,
        utilization=cost.model_flops / (parts[limit] * peak),
        images_per_second=batch / parts[limit],
    )


def bytes_per_device(tree: PyTree) -> int:
    """Bytes that one device holds of arrays, or of shapes that have shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def exchanges(found: tuple[Collective, ...]) -> tuple[Exchange, ...]:
    """Collectives added up by kind, the one that sends most first."""
    kinds = {collective.kind for collective in found}
    totals = [
        Exchange(
            kind=kind,
            count=sum(c.times for c in found if c.kind == kind),
            asynchronous=sum(c.times for c in found if c.kind == kind and c.asynchronous),
            bytes=sum(c.bytes * c.times for c in found if c.kind == kind),
            sent=sum(c.sent for c in found if c.kind == kind),
        )
        for kind in sorted(kinds)
    ]
    return tuple(sorted(totals, key=lambda exchange: -exchange.sent))


def _cost(compiled: Any, model: Counter[str], flops: Counter[str], chips: int) -> Cost:
    program = parse(compiled.as_text())
    analysis = compiled.cost_analysis()
    return Cost(
        model_flops=model.total() / chips,
        flops=flops.total() / chips,
        compiler_flops=float(analysis["flops"]),
        compiler_bytes=float(analysis["bytes accessed"]),
        bytes_accessed=bytes_accessed(program),
        exchanges=exchanges(collectives(program)),
    )


def _memory(
    state: State, data: PyTree, available: int | None, needed: int, temporaries: int | None
) -> Memory:
    return Memory(
        parameters=bytes_per_device(state.params),
        statistics=bytes_per_device(state.mutable),
        optimizer=bytes_per_device(state.opt_state),
        average=bytes_per_device(state.ema),
        data=bytes_per_device(data),
        needed=needed,
        temporaries=temporaries,
        available=available,
    )


def memory_asked(message: str) -> tuple[int, int]:
    """Bytes that the compiler needed and those it had, from its message that memory ran out.

    It reserves some of a chip's memory for itself.

    >>> memory_asked("Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.")
    (18790481920, 16911433728)
    """
    size = r"\(?([\d.]+)([KMGT]?)\)?"
    # Of a whole program; and of temporaries so large that the compiler did not try.
    found = re.search(rf"(?:Used|temporaries) {size} (?:of|exceeds available HBM) {size}", message)
    if found is None:
        raise DeviceError(
            f"the step does not fit: {message.splitlines()[0]}: raise parallel.fsdp or "
            "loop.accumulate, or lower data.batch"
        )
    asked, available = found.group(1, 2), found.group(3, 4)
    return int(float(asked[0]) * _UNITS[asked[1]]), int(float(available[0]) * _UNITS[available[1]])
