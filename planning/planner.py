"""Plans for people and for programs: one setting, those around it, and what to do about memory."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from opsin.config.tree import override, paths, resolve
from opsin.data.examples import Examples
from opsin.data.files import replace_text, writing
from opsin.planning.chips import Chip, Topology
from opsin.planning.plan import Plan, plan
from opsin.planning.units import in_bytes, in_seconds, in_units
from opsin.train.experiment import Experiment
from opsin.train.sets import open_training
from opsin.train.settings import SettingError
from opsin.train.sharding import DeviceError

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")


@dataclass(frozen=True)
class Setting:
    """One way to run an experiment on a topology, with its plan.

    Attributes:
        overrides: of the experiment.
        plan: what came out.
    """

    overrides: Mapping[str, Any]
    plan: Plan

    @property
    def arguments(self) -> str:
        """The overrides as they are typed."""
        return " ".join(f"{path}={value}" for path, value in self.overrides.items())


@dataclass(frozen=True)
class Planner:
    """Makes plans of one experiment for one topology.

    Attributes:
        experiment: as configured, with the overrides of the user.
        examples: its training set, or what stands for it.
        topology: what to plan for.
        say: called with a line about what is being compiled.
    """

    experiment: Experiment
    examples: Examples
    topology: Topology
    say: Callable[[str], None] = lambda line: None

    def setting(self, overrides: Mapping[str, Any]) -> Setting:
        """The plan with these overrides.

        Raises:
            ConfigError, TopologyError, DeviceError, DurationError, SettingError: as ``plan``.
        """
        experiment = override(self.experiment, overrides)
        recomputing = [
            path for path in paths(experiment) if path.endswith(".remat") and _at(experiment, path)
        ]
        plain = override(experiment, dict.fromkeys(recomputing, False)) if recomputing else None
        return Setting(overrides, plan(experiment, self.examples, self.topology, plain=plain))

    def sweep(self) -> list[Setting]:
        """Meshes and batches around the experiment's own, the fastest of those that fit first.

        Meshes with an fsdp of 1, of the square root of the chips, or of all; batches of half to
        four times the experiment's. Once a batch does not fit on a mesh, no larger one is tried.
        """
        found = []
        for mesh in self._meshes():
            for times in (0.5, 1, 2, 4):
                batch = int(self.experiment.data.batch * times)
                if not batch:
                    continue
                setting = self._tried({**mesh, "data.batch": batch})
                found += [setting] if setting else []
                if setting and not setting.plan.fits:
                    break
        return sorted(found, key=_rank)

    def nearest(self, failed: Plan) -> Setting | None:
        """The first setting that fits: parameters in slices, smaller parts, then smaller batches.

        Slices and microbatches (``loop.accumulate``) come first: they leave the gradient as it is,
        except for batch norm, whose statistics are then those of a microbatch. A microbatch is not
        tried if a larger one shows that it cannot fit: memory shrinks no faster than its size.

        Args:
            failed: the plan of the unchanged experiment, which does not fit.
        """
        experiment, slices = self.experiment, self._slices
        batch, parts = experiment.data.batch, experiment.loop.accumulate
        least = [failed.memory.excess]  # of each mesh: how many times smaller it has to be
        meshes: list[dict[str, Any]] = [{}]
        if failed.mesh["fsdp"] != slices:
            meshes.append({"parallel.data": -1, "parallel.fsdp": slices})
            setting = self._tried(meshes[1])
            if setting and setting.plan.fits:
                return setting
            least.append(setting.plan.memory.excess if setting else 1.0)
        for path in ("loop.accumulate", "data.batch"):
            bound = list(least)  # anew: parts leave the images whole, and say nothing of batches
            for times in (2, 4, 8, 16, 32, 64):
                part = parts * times if path == "loop.accumulate" else batch // times
                for index, mesh in enumerate(meshes):
                    if times < bound[index] or part < 1:
                        continue
                    setting = self._tried({**mesh, path: part})
                    if setting and setting.plan.fits:
                        return setting
                    if setting:
                        bound[index] = max(bound[index], times * setting.plan.memory.excess)
        return None

    def _meshes(self) -> Iterator[dict[str, Any]]:
        chips = self._slices
        root = 2 ** (int(math.log2(chips)) // 2)
        for fsdp in sorted({1, root, chips}):
            if chips % fsdp == 0:
                yield {"parallel.data": -1, "parallel.fsdp": fsdp}

    @property
    def _slices(self) -> int:
        """The most that parameters can be cut into along ``fsdp``."""
        return self.topology.size // max(self.experiment.parallel.tensor, 1)

    def _tried(self, overrides: Mapping[str, Any]) -> Setting | None:
        """The plan, or None if it is impossible, such as a batch that the chips do not divide."""
        try:
            setting = self.setting(overrides)
        except (DeviceError, SettingError):
            return None
        self.say(f"{setting.arguments}: {_outcome(setting.plan)}")
        return setting


def examples_of(module: ModuleType, experiment: Experiment) -> Examples:
    """The training set of an experiment, for its shapes: its ``PLAN``, or else the set itself.

    ``PLAN`` replaces the source of the experiment's own config, and no other.

    Raises:
        DataError: the set is not here, and nothing says what it is.
    """
    own = module.config().data
    data = experiment.data
    if hasattr(module, "PLAN") and resolve(data.source) == resolve(own.source):
        return module.PLAN
    return open_training(experiment)


def arrangement(parallelism: Mapping[str, int], global_batch: int | None) -> dict[str, Any]:
    """The overrides that ``--parallelism`` and ``--global-batch`` stand for."""
    overrides: dict[str, Any] = {f"parallel.{axis}": size for axis, size in parallelism.items()}
    if global_batch is not None:
        overrides["data.batch"] = global_batch
    return overrides


def versions() -> dict[str, str]:
    """Versions of what a plan depends on, as far as it is installed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # libtpu, where a CPU is planned for
            continue
    return installed


def write(
    path: Path,
    name: str,
    command: str,
    planner: Planner,
    setting: Setting,
    swept: Sequence[Setting],
) -> str:
    """Writes a plan as JSON, and as Markdown beside it; returns the Markdown.

    Raises:
        WriteError: it cannot be written there.
    """
    text = described(name, command, planner.topology, setting, swept)
    chip = {
        field.name: getattr(planner.topology.chip, field.name)
        for field in dataclasses.fields(Chip)
        if field.name not in ("shapes", "options")
    }
    content = {
        "experiment": name,
        "command": command,
        "run": False,
        "versions": versions(),
        "chip": chip | {"sources": dict(planner.topology.chip.sources)},
        **dataclasses.asdict(setting),
        "sweep": [dataclasses.asdict(other) for other in swept],
    }
    with writing(path, "choose another place with --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(content, indent=2) + "\n")
        replace_text(path.with_suffix(".md"), text)
    return text


def described(
    name: str, command: str, topology: Topology, setting: Setting, swept: Sequence[Setting] = ()
) -> str:
    """A plan as Markdown."""
    plan = setting.plan
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    parts = f", in {plan.accumulate} microbatches" if plan.accumulate > 1 else ""
    made_by = ", ".join(f"{package} {version}" for package, version in versions().items())
    lines = [
        f"# {name} on {topology}",
        "",
        "*Planned, not run.*",
        "",
        f"    {command}",
        "",
        f"{plan.parameters:,} parameters; {plan.chips} chips, mesh {mesh}; {plan.batch:,} images a "
        f"step, {plan.batch / plan.chips:g} a chip{parts}; {plan.steps:,} steps, of a set of "
        f"{plan.examples:,} images. Compiled in "
        f"{plan.compile_seconds:,.0f} s ({plan.compile_cpu_seconds:,.0f} s of one core) with "
        f"{made_by}.",
        "",
        *_memory_table(plan),
        "",
    ]
    if not plan.fits:
        lines += [f"**{_outcome(plan)}.**", ""]
    if plan.cost is not None:
        lines += [*_work_table(plan, topology.chip), "", *_exchange_table(plan), ""]
    if plan.prediction is not None:
        lines += [*_predicted(plan, topology), ""]
    elif plan.fits:
        lines += [f"No prediction: a {topology.chip.name} has no published peak here.", ""]
    if swept:
        lines += [*_sweep_table(swept), ""]
    return "\n".join(lines)


def _memory_table(plan: Plan) -> list[str]:
    memory = plan.memory
    rows = {
        "parameters": memory.parameters,
        "statistics": memory.statistics,
        "optimiser": memory.optimizer,
        "moving average": memory.average,
        "data": memory.data,
        "temporaries (activations, gradients)": memory.temporaries,
    }
    shown = [f"| {what} | {in_bytes(count)} |" for what, count in rows.items() if count]
    whole = "" if memory.available is None else f" of {in_bytes(memory.available)}"
    total = f"| all, padded, with the program | {in_bytes(memory.needed)}{whole} |"
    return ["| memory of a chip | |", "|---|--:|", *shown, total]


def _work_table(plan: Plan, chip: Chip) -> list[str]:
    cost, predicted = plan.cost, plan.prediction
    assert cost is not None
    sent = sum(exchange.sent for exchange in cost.exchanges)
    again = cost.flops - cost.model_flops
    recomputed = f", {in_units(again, 'FLOP')} of it computed again" if again else ""
    rows = [
        ("matrix products", in_units(cost.flops, "FLOP") + recomputed, chip.peak_flops_bf16, "FLOP")
        + ((predicted.compute,) if predicted else (None,)),
        ("memory", in_units(cost.bytes_accessed, "B"), chip.hbm_bandwidth, "B")
        + ((predicted.memory,) if predicted else (None,)),
        ("interconnect", in_units(sent, "B"), chip.interconnect_bandwidth, "B")
        + ((predicted.interconnect,) if predicted else (None,)),
    ]
    table = ["| a step of a chip | | at | takes |", "|---|--:|--:|--:|"]
    for what, amount, rate, unit, seconds in rows:
        at = "unknown" if rate is None else in_units(rate, f"{unit}/s")
        table.append(f"| {what} | {amount} | {at} | {in_seconds(seconds)} |")
    return [
        *table,
        "",
        f"Operations are a closed form, bytes are read off the program. XLA's own counts are "
        f"{in_units(cost.compiler_flops, 'FLOP')}, of everything, and "
        f"{in_units(cost.compiler_bytes, 'B')}, of what stays on the chip too; both have the body "
        "of a loop once.",
    ]


def _exchange_table(plan: Plan) -> list[str]:
    assert plan.cost is not None
    if not plan.cost.exchanges:
        return ["No collectives."]
    return [
        "| collective | count | asynchronous | of arrays of | a chip sends |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {x.kind} | {x.count} | {x.asynchronous} | {in_units(x.bytes, 'B')} | "
            f"{in_units(x.sent, 'B')} |"
            for x in plan.cost.exchanges
        ),
    ]


def _predicted(plan: Plan, topology: Topology) -> list[str]:
    predicted = plan.prediction
    assert predicted is not None
    rate = predicted.images_per_second
    days = plan.steps * predicted.seconds / 86_400
    length = f"{days:.1f} days" if days >= 2 else f"{24 * days:.1f} hours"
    sources = dict.fromkeys(topology.chip.sources.values())
    return [
        f"**At best {in_seconds(predicted.seconds)} a step, limited by {predicted.limit}: "
        f"{predicted.utilization:.0%} utilization, {rate:,.0f} images/s, {rate / plan.chips:,.0f} "
        f"a chip; {length} in all.** Without any overlap of the three it is "
        f"{in_seconds(predicted.seconds_without_overlap)}, "
        f"{predicted.utilization * predicted.seconds / predicted.seconds_without_overlap:.0%}.",
        "",
        "The prediction is a model, and a bound: every chip at its published peak, products of any "
        "shape at full rate, all links of a chip in use (a slice without wrap-around has fewer), "
        "computing, memory and interconnect behind one another, no time between operations, no "
        "evaluation or checkpoint, input that keeps up. Utilization counts the operations of the "
        "model alone, not what is computed again to save memory.",
        "",
        f"Peaks: {', '.join(sources)}.",
    ]


def _sweep_table(swept: Sequence[Setting]) -> list[str]:
    table = [
        "| setting | memory | step | limit | utilization | images/s a chip |",
        "|---|--:|--:|---|--:|--:|",
    ]
    for setting in swept:
        plan, predicted = setting.plan, setting.plan.prediction
        memory = in_bytes(plan.memory.needed) + ("" if plan.fits else ", does not fit")
        row = [setting.arguments, memory]
        if predicted is None or not plan.fits:
            row += [""] * 4
        else:
            row += [
                in_seconds(predicted.seconds),
                predicted.limit,
                f"{predicted.utilization:.0%}",
                f"{predicted.images_per_second / plan.chips:,.0f}",
            ]
        table.append(f"| {' | '.join(row)} |")
    return [*table, "", "Another batch is another recipe: its learning rate is not this one's."]


def _rank(setting: Setting) -> tuple[bool, float, int]:
    predicted = setting.plan.prediction
    rate = predicted.images_per_second if predicted else 0.0
    return (not setting.plan.fits, -rate, setting.plan.memory.needed)


def _outcome(plan: Plan) -> str:
    memory = plan.memory
    if not plan.fits and memory.available is not None:
        available = in_bytes(memory.available)
        return f"does not fit: {in_bytes(memory.needed)} a chip, which has {available}"
    if plan.prediction is None:
        return f"{in_bytes(memory.needed)} a chip"
    rate = plan.prediction.images_per_second / plan.chips
    return f"{in_bytes(memory.needed)} a chip, at best {rate:,.0f} images/s a chip"


def _at(tree: Any, path: str) -> Any:
    """What stands at a path of ``paths``, as a resolved tree has it."""
    node = resolve(tree)
    for name in path.split("."):
        node = node[int(name)] if isinstance(node, list) else node[name]
    return node
