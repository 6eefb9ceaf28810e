"""``opsin evaluate``: measures a checkpoint. Nothing trains."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from opsin import analysis
from opsin.analysis.diffusion import SampledBy
from opsin.analysis.generators import SampleQuality
from opsin.commands.measured import Code, write_measured, write_splits
from opsin.commands.provenance import this_code
from opsin.commands.runs import locked
from opsin.commands.trained import Reopened, reopen
from opsin.config import catalogue
from opsin.config.hints import field_hint
from opsin.config.identity import identity
from opsin.config.names import full_name
from opsin.config.sweep import identity_of
from opsin.config.tree import named, override, parse, required
from opsin.data.checks import check_splits
from opsin.data.examples import Examples, check_same_data
from opsin.data.files import writing
from opsin.data.sources import open_source
from opsin.errors import ConfigError
from opsin.report import evaluations
from opsin.report.run_files import read_place
from opsin.train.evaluate import evaluate, final_variables, numbers_of
from opsin.train.experiment import Experiment
from opsin.train.extractor import Extractor
from opsin.train.measurements import Measurement, Subject, Track, check_measurements, measure
from opsin.train.placement import on_own_devices
from opsin.train.preparation import prepared
from opsin.train.sets import open_training


@dataclass(frozen=True)
class Evaluated:
    """One file of ``RUN/evaluations``.

    Attributes:
        name: of the measurement, or ``"splits"``.
        metrics: that it found.
        path: of the file.
    """

    name: str
    metrics: Mapping[str, float]
    path: Path


def evaluate_run(
    run: Path, asked: Sequence[str], track: Track, *, allow: Sequence[str] = ()
) -> Iterator[Evaluated]:
    """Measures the newest checkpoint of a run, and writes each number where ``report`` finds it.

    Args:
        run: its directory.
        asked: names of measurements, each with its overrides behind it (``SampleQuality
            samples=2000``). Without any: the metrics of all splits, and the measurements of the
            run's experiment in its present form, or else those of the run's config.
        track: shows how far it has come.
        allow: see ``reopen``.

    Raises:
        RunError: if this is no run, another command is at work in it, or it cannot be written.
        ConfigError: for a measurement that is not there, or options that it does not take.
        SettingError, DataError, WeightsError: if a measurement does not fit the run.
    """
    with locked(run) if (run / "config.json").exists() else nullcontext():
        yield from _evaluated(run, asked, track, allow)


def _evaluated(
    run: Path, asked: Sequence[str], track: Track, allow: Sequence[str]
) -> Iterator[Evaluated]:
    reopened = reopen(run, partial(_as_it_stands, run), allow=allow)
    experiment = reopened.experiment
    chosen_ones = _parsed(asked, experiment.measurements) if asked else experiment.measurements
    sets = {"train": open_training(experiment)}
    for name, split in experiment.data.eval_splits.items():
        sets[name] = open_source(experiment.data.source, split)
    check_same_data(reopened.described, {"class_names": list(sets["train"].class_names)})
    check_splits(sets)
    check_measurements(chosen_ones, experiment.task, sets)
    code = Code.of(experiment, chosen_ones, this_code()["commit"])
    now: Any = {"step": int(reopened.state.step), "code": code}
    if not asked and experiment.data.eval_splits:
        since = time.monotonic()
        metrics = _of_splits(reopened, sets)
        with writing(run):
            path = write_splits(run, experiment, metrics, **now, seconds=time.monotonic() - since)
        yield Evaluated(evaluations.SPLITS, metrics, path)
    average, variables = final_variables(reopened.state)
    variables = on_own_devices(variables, reopened.program.mesh)
    prepare = partial(prepared, data=experiment.data)
    subject = Subject(experiment.task, variables, sets, prepare, track)
    for each in measure(chosen_ones, subject, average=average):
        with writing(run):
            path = write_measured(run, experiment, each, **now)
        yield Evaluated(type(each.measurement).__name__, each.metrics, path)


def known_measurements() -> dict[str, type]:
    """Name → class of everything in ``analysis`` that can be measured."""
    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(analysis.__path__):
        members = vars(importlib.import_module(f"{analysis.__name__}.{module.name}"))
        found |= {name: member for name, member in members.items() if _is_measurement(member)}
    return dict(sorted(found.items()))


def _is_measurement(member: Any) -> bool:
    called = isinstance(member, type) and any("__call__" in vars(x) for x in member.__mro__)
    return called and is_dataclass(member)


def _as_it_stands(run: Path, experiment: Experiment) -> Experiment:
    """A run's experiment as its recipe evaluates it now, with the measurements of all its arms.

    As it was, if there is no such recipe any more, or none of its arms is this run.
    """
    if (place := read_place(run)) is None:
        return experiment
    if not place["experiment"].isidentifier():  # a file: whoever made the run is not to be asked
        return experiment
    try:
        module = catalogue.find(place["experiment"])
    except ConfigError:  # no such experiment any more
        return experiment
    arms, target = catalogue.arms(module), identity(experiment)
    of = identity_of(module.config(), arms)
    same = [
        override(module.config(), arm.under(experiment.seed))
        for arm in arms
        if of(arm.name, experiment.seed).run == target
    ]
    found = {identity(each): each for arm in same for each in arm.measurements}
    measurements = tuple(found.values()) or experiment.measurements
    return replace(same[0], measurements=measurements) if same else experiment


def _parsed(texts: Sequence[str], present: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Measurements by name, each with the overrides that stand behind it."""
    groups: list[tuple[str, dict[str, Any]]] = []
    for text in texts:
        if "=" not in text:
            groups.append((text, {}))
            continue
        if not groups:
            raise ConfigError(
                f"{text} has no measurement: name one before it, as in SampleQuality samples=2000"
            )
        path, value = parse(text)
        groups[-1][1][path] = value
    return tuple(_made(name, overrides, present) for name, overrides in groups)


def _made(name: str, overrides: dict[str, Any], present: Sequence[Measurement]) -> Measurement:
    """The run's own measurement of that name, or a new one, with overrides."""
    inner = [own.measurement for own in present if isinstance(own, SampledBy)]
    for own in (*present, *inner):
        if type(own).__name__ == name:
            return override(own, overrides)
    return _new(_kind(name), overrides, "")


def _new(kind: Any, overrides: dict[str, Any], front: str) -> Measurement:
    """A measurement of a class, to whose fields the overrides behind ``front`` give values."""
    name, needed = kind.__name__, required(kind)
    own = {path.removeprefix(front): x for path, x in overrides.items() if path.startswith(front)}
    if missing := [field for field in needed if field not in own]:
        raise ConfigError(
            f"{name} needs {', '.join(missing)}: give {front}{missing[0]}=…, as in "
            f"{front}{missing[0]}={_example(kind, missing[0])}"
        )
    given = {field: own[field] for field in needed}
    inner = [field for field in needed if _is_measurement(own[field])]
    for field in inner:  # made of the overrides behind its own name
        given[field] = _new(own[field], overrides, f"{front}{field}.")
    rest = {path: x for path, x in own.items() if path.partition(".")[0] not in inner}
    return override(kind(**given), rest)


def _example(kind: Any, field: str) -> str:
    """What a field without a default may be, as it is typed."""
    hint, (declared,) = field_hint(kind, field), [x for x in fields(kind) if x.name == field]
    if "known_by" in declared.metadata:
        return "\"('FILE',)\""
    if hint is Extractor:
        return "experiments.extractors:LENET"
    if is_dataclass(hint) and isinstance(hint, type) and not required(hint):
        return full_name(hint)
    if hint == Measurement:
        return full_name(SampleQuality)
    return "package.module:NAME"


def _kind(name: str) -> Any:
    found = named(name)  # a class of one's own, package.module:Name
    known = known_measurements()
    kind = known.get(name, found)
    if not _is_measurement(kind):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ConfigError(
            f"there is no measurement {name!r}: did you mean {near[0]}? There are "
            f"{', '.join(known)}, and your own as package.module:Name"
        )
    return kind


def _of_splits(reopened: Reopened, sets: Mapping[str, Examples]) -> dict[str, float]:
    """The metrics of all splits, of the weights and of their moving average."""
    data = reopened.experiment.data
    found: dict[str, float] = {}
    for name in data.eval_splits:
        states = evaluate(reopened.program, reopened.state, sets[name], data.eval_batch, name)
        found |= numbers_of(states)
    return found
