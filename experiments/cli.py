"""The command line: what each command of ``opsin`` does.

jax is imported only once the runtime is set up, and not at all to list experiments.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import RunFailed, UserError
from experiments import catalogue
from experiments.arguments import make_parser
from experiments.config import ConfigError, override, parse_all
from experiments.runtime import Runtime, given, require, set_up

if TYPE_CHECKING:
    from experiments.runs import Options, Outcome
    from experiments.sampling import Asked
    from train.experiment import Experiment


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 a run failed, 2 the user's mistake."""
    # All that a process did before it came here is to import this file, and costs nothing but CPU.
    began = time.monotonic() - (time.process_time() if arguments is None else 0.0)
    parser = make_parser(COMMANDS)
    parser.set_defaults(began=began, arguments=arguments)
    options, rest = parser.parse_known_args(arguments)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax and TFDS: we report their errors
    # argparse takes no positional arguments after an option: overrides may stand anywhere.
    if any(text.startswith("-") for text in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    try:
        code = options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:  # whoever read, such as `| head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        code = 1
    except Exception as error:
        code = error.exit_code if isinstance(error, UserError | RunFailed) else None
        if code is None and not _among_others():
            raise
        if code is None or options.trace:
            traceback.print_exc()
        if code is not None:
            print(f"opsin: {' '.join(str(error).split())}", file=sys.stderr)
        code = 1 if code is None else code
    if code and _among_others():
        sys.stderr.flush()
        os._exit(code)  # jax would wait for the others, who stop as well
    sys.exit(code)


def _among_others() -> bool:
    """Whether this process has joined others and not left them."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _list(options: argparse.Namespace) -> int:
    found = catalogue.experiments()
    width = max(len(name) for name in found)
    for name, path in found.items():
        print(f"{name:<{width}}  {catalogue.claim(path)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    asked = given(options.coordinator, options.processes, options.process)
    _set_up(options, alone=asked is None)
    if asked is None:
        return _train(options)
    from train.processes import Group, joined

    with joined(Group(*asked, timeout=options.timeout)):
        _require(options)
        return _train(options)


def _train(options: argparse.Namespace) -> int:
    module, base, overrides = _named(options)
    if options.smoke and not hasattr(module, "SMOKE"):
        raise ConfigError(f"{options.name} has no SMOKE, overrides that make it take seconds")
    experiment = override(base, (module.SMOKE if options.smoke else {}) | overrides)
    # A mistake is answered before these are imported, which takes a moment.
    from experiments.runs import execute
    from experiments.sweep import arm_of
    from train.processes import is_first
    from train.profiling import Steps

    arm = arm_of(experiment, base, catalogue.arms(module))
    profile = Steps(*options.profile) if options.profile else None
    run_options = replace(_run_options(options), began=options.began, profile=profile)
    outcome = execute(options.name, arm, experiment, run_options)
    if not is_first():
        return _after_signal(outcome)
    if not outcome.finished:
        print(f"stopped at step {outcome.step}, saved; the same command goes on from there")
    if outcome.trained_before:
        print(f"trained before, by the code of then; to train it again: rm -r {outcome.directory}")
    for name, value in outcome.metrics.items():
        if name.count("/") == 1:
            print(f"{name:<24} {value:.4f}")
    for picture in sorted(outcome.directory.rglob("*.png")):
        print(picture)
    print(outcome.directory)
    return _after_signal(outcome)


def _sweep(options: argparse.Namespace) -> int:
    module, experiment, overrides = _configured(options)
    from experiments.runs import directory_of, execute, state_of
    from experiments.sweep import expand, share

    seeds = options.seeds or (module.TABLE.seeds if hasattr(module, "TABLE") else 3)
    planned = expand(experiment, catalogue.arms(module), seeds, overrides)
    mine = list(share(planned, options.index, options.of))
    failed = []
    for number, run in enumerate(mine, start=1):
        directory = directory_of(options.name, run.experiment, options.workdir)
        state = state_of(directory, run.experiment)
        print(
            f"[{number}/{len(mine)}] {run.arm}, seed {run.seed}: {directory} ({state})", flush=True
        )
        if options.dry_run:
            continue
        try:
            outcome = execute(options.name, run.arm, run.experiment, _run_options(options))
        except Exception as error:  # one failed run must not lose the others
            if not isinstance(error, UserError | RunFailed):
                traceback.print_exc()
            print(f"  failed: {error}", file=sys.stderr)
            failed.append(run)
            continue
        if outcome.signal is not None:
            print(f"stopped at step {outcome.step}, saved; the same command goes on from there")
            return _after_signal(outcome)
    if failed:
        names = ", ".join(f"{run.arm} (seed {run.seed})" for run in failed)
        print(f"opsin: {len(failed)} of {len(mine)} runs failed: {names}", file=sys.stderr)
        return 1
    if not options.dry_run and hasattr(module, "TABLE"):
        print(f"done; now: opsin report {options.name}")
    return 0


def _after_signal(outcome: Outcome) -> int:
    """130 after Ctrl-C, as a shell expects; 0 otherwise, for a scheduler's SIGTERM too."""
    return 130 if outcome.signal == signal.SIGINT else 0


def _plan(options: argparse.Namespace) -> int:
    from train.chips import Topology

    topology = Topology.parse(options.topology)
    here = topology.chip.name == "cpu"
    devices = topology.size if here else None
    set_up(Runtime(platform="cpu", devices=devices, cached=False, tpu_compiler=not here))
    module = catalogue.find(options.name)
    from experiments import planning

    asked = planning.arrangement(options.parallelism, options.global_batch)
    experiment = override(module.config(), parse_all(options.overrides) | asked)
    examples = planning.examples_of(module, experiment)
    planner = planning.Planner(experiment, examples, topology, partial(print, file=sys.stderr))
    setting = planner.setting({})
    swept = planner.sweep() if options.sweep else []
    output = options.out or Path("plans") / f"{options.name}-{options.topology}.json".replace(
        ":", "-"
    )
    command = shlex.join(["opsin", *(options.arguments or sys.argv[1:])])
    print(planning.write(output, options.name, command, planner, setting, swept))
    print(output)
    if setting.plan.fits:
        return 0
    nearest = planner.nearest(setting.plan)
    way_out = f"this does: {nearest.arguments}" if nearest else "nor does any setting near it"
    print(f"opsin: the step does not fit on {topology}; {way_out}", file=sys.stderr)
    return 1


def _report(options: argparse.Namespace) -> int:
    set_up(Runtime())  # before the experiments, which import jax
    from experiments import report
    from experiments.rows import collect
    from experiments.sweep import identity_of

    if options.name:
        chosen = catalogue.report_of(options.name)
        if not options.check:
            module = catalogue.find(options.name)
            of = identity_of(module.config(), catalogue.arms(module))
            rows = collect(options.workdir / options.name, chosen.arms, of)
            report.write(rows, chosen, options.results)
            print((options.results / f"{options.name}.md").read_text())
        reports = [chosen]
    else:
        names = sorted(path.stem for path in options.results.glob("*.jsonl"))
        reports = [catalogue.report_of(name) for name in names]
    if options.check:
        stale = [file for chosen in reports for file in report.check(chosen, options.results)]
        if not options.name and not report.readme_is_current(
            options.readme, report.readme_table(reports, options.results)
        ):
            stale.append(str(options.readme))
        for file in stale:
            print(f"opsin: {file} is not what its data give: run opsin report", file=sys.stderr)
        return 1 if stale else 0
    if not options.name:
        for chosen in reports:
            report.derive(chosen, options.results)
        report.update_readme(options.readme, report.readme_table(reports, options.results))
        print(f"wrote the tables of {len(reports)} experiments, and that of {options.readme}")
    print(options.results)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    _, experiment, overrides = _configured(options)
    from experiments.inspection import draw_batches

    output = options.output or Path(f"{options.name}_batch.png")
    draw_batches(override(experiment, overrides), options.batches, output)
    print(output)
    return 0


def _predict(options: argparse.Namespace) -> int:
    _set_up(options)
    from experiments.prediction import load, predict

    for line in predict(load(options.run), options.images, options.output):
        print(line, flush=True)
    print(options.output)
    return 0


def _sample(options: argparse.Namespace) -> int:
    _set_up(options)
    from experiments.sampling import sample

    asked = _asked(options)
    for path in sample(options.run, options.n, asked, path=options.path, output=options.output):
        print(path)
    return 0


def _inpaint(options: argparse.Namespace) -> int:
    _set_up(options)
    from experiments.sampling import inpaint

    for path in inpaint(
        options.run,
        options.image,
        options.mask,
        options.n,
        _asked(options),
        resamplings=options.resamplings,
        output=options.output,
    ):
        print(path)
    return 0


def _asked(options: argparse.Namespace) -> Asked:
    from experiments.sampling import Asked

    return Asked(
        label=options.label,
        seed=options.seed,
        weights=options.weights,
        sampler=options.sampler,
        steps=options.steps,
        guidance=options.guidance,
    )


def _evaluate(options: argparse.Namespace) -> int:
    _set_up(options)
    from experiments.evaluating import evaluate_run
    from train.logging import bar

    for each in evaluate_run(options.run, options.overrides, bar):
        print(each.name)
        for name, value in each.metrics.items():
            print(f"  {name:<32} {value:.4f}")
        print(each.path, flush=True)
    return 0


def _embed(options: argparse.Namespace) -> int:
    _set_up(options)
    from experiments.embedding import embed
    from train.logging import bar

    for path in embed(
        options.run,
        options.data,
        split=options.split,
        count=options.n,
        layer=options.layer,
        seed=options.seed,
        output=options.output or options.run / "embedding",
        track=bar,
    ):
        print(path)
    return 0


def _export(options: argparse.Namespace) -> int:
    _set_up(options)
    from experiments.exporting import export

    print(f"sha256 {export(options.run, options.output)}")
    print(options.output)
    return 0


def _configured(options: argparse.Namespace) -> tuple[Any, Experiment, dict[str, Any]]:
    """Sets up the runtime, then imports the experiment and reads the overrides."""
    _set_up(options)
    return _named(options)


def _named(options: argparse.Namespace) -> tuple[Any, Experiment, dict[str, Any]]:
    module = catalogue.find(options.name)
    return module, module.config(), parse_all(options.overrides)


def _set_up(options: argparse.Namespace, *, alone: bool = True) -> None:
    set_up(
        Runtime(
            platform=options.platform,
            devices=options.devices,
            deterministic=options.deterministic,
            memory_fraction=options.memory_fraction,
            cache=options.cache,
        )
    )
    if alone:  # otherwise jax must not start before it knows of the others
        _require(options)


def _require(options: argparse.Namespace) -> None:
    if options.platform:
        require(options.platform)


def _run_options(options: argparse.Namespace) -> Options:
    from experiments.runs import Options

    return Options(
        workdir=options.workdir,
        progress=not options.quiet,
        tensorboard=options.tensorboard,
        wandb=options.wandb,
    )


COMMANDS = {
    "list": _list,
    "run": _run,
    "sweep": _sweep,
    "plan": _plan,
    "report": _report,
    "inspect": _inspect,
    "predict": _predict,
    "sample": _sample,
    "inpaint": _inpaint,
    "evaluate": _evaluate,
    "embed": _embed,
    "export": _export,
}

if __name__ == "__main__":
    main()
